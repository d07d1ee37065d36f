"""Where a Train step says how far it is, on which nodes, and how busy their GPUs are."""

from __future__ import annotations

import functools
import logging
import re
import socket
import threading
import time
from typing import TYPE_CHECKING

from mvray.tracking import duration, load
from mvray.training.progress import StepProgress
from mvray.training.ranks import gathered

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mvray.storage import Storage
    from mvray.training.checkpoint import Checkpoints
    from mvray.training.environment import Environment

log = logging.getLogger(__name__)

SHOW_EVERY_S = 1.0
SHOW_EVERY_REMOTE_S = 15.0
GPU_EVERY_S = 10.0
NODES_NAMED = 3


class LiveProgress:
    """Where rank 0 says how far it is (progress.json), now and then; the driver reads it.

    With ``checkpoints``, it also says what is wrong with those. What cannot be written is left out.
    """

    def __init__(self, folder: Storage, here: Environment, epochs: int) -> None:
        self._folder, self._here, self._epochs = folder, here, epochs
        self._shown_at, self._warned = 0.0, False
        self.checkpoints: Checkpoints | None = None
        self.before_s: float | None = None
        """What the running epoch took before its first batch; None where that was in another process."""
        self.after_s: float | None = None
        """What the epoch before took after its last batch; None while there was none in this process."""
        self._every_s = SHOW_EVERY_S if folder.is_local else SHOW_EVERY_REMOTE_S
        self._where = where(gathered(socket.gethostname(), here))
        self._gpus = gpu_use() if here.device.type == "cuda" else None

    def show(
        self, epoch: int, done: int, batches: int, rate: float, history: list[dict[str, float]], now: bool = False
    ) -> None:
        """``done`` of ``batches`` of ``epoch`` at ``rate`` batches a second; at intervals unless ``now``."""
        if self._here.rank or not (now or time.monotonic() - self._shown_at > self._every_s):
            return
        self._shown_at = time.monotonic()
        if epoch >= self._epochs:
            text = f"epoch {epoch}/{self._epochs}, done, {rate:.1f} steps/s"
        else:
            text = f"epoch {epoch + 1}/{self._epochs}, step {done}/{batches}"
            text += f", {rate:.1f} steps/s, {self._left(epoch, done, batches, rate)} left" if rate else ""
        text += f", {self._where}{self._gpus.text if self._gpus else ''}"
        checkpoints = self.checkpoints
        trouble = f"{checkpoints.damage} {checkpoints.trouble}".strip() if checkpoints else ""
        world = self._here.world
        gpus = world if self._gpus else 0
        progress = StepProgress(text, world, gpus=gpus, history=tuple(history), trouble=trouble)
        if not progress.write(self._folder) and trouble and not self._warned:
            self._warned = True
            log.warning(trouble)  # the driver cannot be told

    def _left(self, epoch: int, done: int, batches: int, rate: float) -> str:
        """The time that is left: once a whole epoch was timed an upper bound, as patience may end training earlier."""
        epochs = self._epochs - epoch
        left_s = (epochs * batches - done) / rate + epochs * (self.after_s or 0.0)
        left_s += (epochs - 1 if done else epochs) * (self.before_s or 0.0)
        is_measured = self.before_s is not None and self.after_s is not None
        return f"{'at most' if is_measured else 'about'} {duration(left_s)}"


def where(nodes: list[str]) -> str:
    """The node of each worker, in words."""
    workers = f"{len(nodes)} worker{'s' if len(nodes) > 1 else ''}"
    names = sorted(set(nodes))
    return f"{workers} on {', '.join(names) if len(names) <= NODES_NAMED else f'{len(names)} nodes'}"


def gpu_words(busy: Iterable[float]) -> str:
    """ ", GPU 93 %", the mean of ``busy``; "" where there is none."""
    percents = list(busy)
    return f", GPU {sum(percents) / len(percents):.0f} %" if percents else ""


class GpuUse:
    """How busy the GPUs of this node are, in percent, asked for in a thread of its own; None where nobody knows.

    ``everywhere`` is the same for each rank's node, as of the ranks' last exchange (coordination.py).
    """

    def __init__(self) -> None:
        self.here: float | None = None
        self.everywhere: list[float | None] = []
        threading.Thread(target=self._ask, name="gpu-use", daemon=True).start()

    @property
    def text(self) -> str:
        return gpu_words(busy for busy in (self.everywhere or [self.here]) if busy is not None)

    def _ask(self) -> None:
        while True:
            busy = [value for name, value in load().items() if re.fullmatch(r"system/gpu_\d+_util.*", name)]
            self.here = sum(busy) / len(busy) if busy else None
            time.sleep(GPU_EVERY_S)


@functools.cache
def gpu_use() -> GpuUse:
    """This process's GpuUse, started at the first call."""
    return GpuUse()
