"""When the ranks of a training run stop, and when they write a checkpoint: the same answer on every rank.

The same exchange tells rank 0 how busy the nodes' GPUs are, for its progress line.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mvray.training.live_progress import gpu_use
from mvray.training.ranks import gathered

if TYPE_CHECKING:
    from mvray.experiment import Scale
    from mvray.training.environment import Environment

AGREE_EVERY_S = 1.0
"""How often the ranks exchange it, in one tiny collective. A notice of preemption comes seconds to minutes ahead."""
MOST_STEPS = 100


class Coordination:
    """Every rank asks it: `reached` after every step but an epoch's last, `stopping` after every epoch."""

    def __init__(self, scale: Scale, here: Environment, agree_every_s: float = AGREE_EVERY_S) -> None:
        self._scale, self._here, self._agree_every_s = scale, here, agree_every_s
        self._gpus = gpu_use() if here.device.type == "cuda" else None
        self._steps = self._left = 1
        self._exchanged_at = self._saved_at = time.monotonic()

    def saved(self) -> None:
        """A checkpoint was handed over to be written."""
        self._saved_at = time.monotonic()

    def stopping(self) -> bool:
        """Whether to stop now, where a checkpoint was just written. The ranks exchange it each time."""
        return any(gathered(self._here.stopping(), self._here))

    def reached(self, position: int) -> tuple[bool, bool]:
        """Whether to stop now, with a checkpoint, and whether one is due after ``position`` batches of the epoch."""
        due = self._scale.checkpoint_steps is not None and position % self._scale.checkpoint_steps == 0
        # Half the minutes: a checkpoint counts once it is stored, which may take until the next one is due.
        late = time.monotonic() - self._saved_at > 60 * self._scale.checkpoint_minutes / 2
        if self._here.world == 1:
            return self._here.stopping(), due or late
        self._left -= 1
        if self._left:
            return False, due
        now = time.monotonic()
        busy = self._gpus.here if self._gpus else None
        votes = gathered((self._here.stopping(), late, now - self._exchanged_at, busy), self._here)
        if self._gpus:
            self._gpus.everywhere = [vote[3] for vote in votes]
        # Rank 0's clock decides how many steps there are until the next exchange.
        per_step_s = votes[0][2] / self._steps
        self._steps = self._left = max(1, min(MOST_STEPS, int(self._agree_every_s / max(per_step_s, 1e-6))))
        self._exchanged_at = now
        return any(vote[0] for vote in votes), due or votes[0][1]
