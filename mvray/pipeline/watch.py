"""A step is followed while it runs: its line on the terminal, its epochs for the log, what it costs."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

from mvray.cluster import Cluster
from mvray.errors import DataError
from mvray.pipeline.cost import CostMeter
from mvray.pipeline.plan import Planned
from mvray.pipeline.step_log import ProgressLines, StepLog
from mvray.training import StepProgress

POLL_S = 1.0


class StepWatch:
    """Reads the step's progress every second, in a thread, while the block runs."""

    def __init__(
        self, planned: Planned, run: str, log: StepLog, lines: ProgressLines, cluster: Cluster, poll_s: float = POLL_S
    ) -> None:
        self._planned, self._run, self._log, self._lines, self._cluster = planned, run, log, lines, cluster
        self._poll_s = poll_s
        self._meter = CostMeter(planned.folder, planned.step.scale)
        self._held = (0.0, 0.0)
        """CPUs and GPUs: none until the first word of its workers, as a step waits for room until then."""
        self._trouble = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> StepWatch:
        StepProgress.clear(self._planned.folder)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        self._meter.keep()

    def _watch(self) -> None:
        while not self._ended.wait(self._poll_s):
            self._look()

    def _look(self) -> None:
        with contextlib.suppress(OSError, DataError):  # a storage may fail now and then: the next look will do
            self._held = self._read()
        self._meter.read(*self._held)

    def _read(self) -> tuple[float, float]:
        planned = self._planned
        try:
            progress = StepProgress.read(planned.folder)
        except FileNotFoundError:
            self._lines.show(planned.id, None)
            return 0.0, 0.0
        self._lines.show(planned.id, f"{planned.title}: {progress.text}")
        if bool(progress.trouble) != bool(self._trouble):  # once, whichever checkpoint it is
            self._trouble = progress.trouble
            self._lines.say(f"{planned.title}: {progress.trouble or 'Checkpoints are stored again.'}")
        self._log.epochs(self._run, planned, list(progress.history))
        cpus, gpus = planned.step.room(self._cluster.gpus(), progress.workers)
        return (
            cpus if progress.cpus is None else progress.cpus,
            gpus if progress.gpus is None else progress.gpus,
        )
