"""A training worker on Ray Train: the loop's environment there, and how it is ended."""

from __future__ import annotations

import gc
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mvray.cluster.node_versions import check_here
from mvray.cluster.trial_reports import tell

if TYPE_CHECKING:
    import torch

    from mvray.training import Task


REPORTED_S = 10.0
"""How long the end of a task waits for its last reports."""
AT_WORK, TOLD_TO_END = threading.Event(), threading.Event()
"""The state of this process where it is a worker: it works on a task; it was told to end (SIGTERM)."""


def heed_sigterm() -> None:
    """SIGTERM ends this worker: with a checkpoint where it is at work, else at once. To be called on the main thread.

    Ray sends it too, to workers that it ends; those that have not ended soon are killed.
    """

    def on_sigterm(*_: object) -> None:
        TOLD_TO_END.set()
        if not AT_WORK.is_set():
            sys.exit(1)

    signal.signal(signal.SIGTERM, on_sigterm)


class Reports:
    """Metrics for Ray Train, told in a thread of their own: ray.train.report waits up to 2 s for the controller's next
    look, and no step is to wait for that. Every rank reports the same epochs, as Ray Train asks."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[dict[str, float] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._report, name="reports", daemon=True)
        self._thread.start()

    def put(self, metrics: Mapping[str, float]) -> None:
        self._waiting.put(dict(metrics))

    def close(self) -> None:
        """Wait for what is left, not for ever: a lost peer never reports."""
        self._waiting.put(None)
        self._thread.join(REPORTED_S)

    def _report(self) -> None:
        import ray.train

        while (metrics := self._waiting.get()) is not None:
            ray.train.report(metrics)


class OnRay:
    """One rank on Ray Train (an `Environment`)."""

    def __init__(self, report: bool) -> None:
        import ray.train
        import ray.train.torch

        from mvray.training import use_given_threads

        check_here()
        use_given_threads()
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self._stop_task = threading.Event()
        self._reports = Reports() if report else None

    def report(self, task: Task, metrics: Mapping[str, float]) -> bool:
        """Tell Ray Train of an epoch, and the search whose trial this is."""
        if self._reports is not None:
            self._reports.put(metrics)
        if task.search_trial is None:
            return True
        return tell(task.search_trial, metrics, self.rank)

    def begin(self) -> threading.Event:
        """A new task begins; setting the event ends it early."""
        AT_WORK.set()
        self._stop_task = threading.Event()
        return self._stop_task

    def release(self) -> None:
        """Free what a finished task leaves in memory, on the GPU too, before the next one."""
        import torch

        if self._reports is not None:
            self._reports.close()
        AT_WORK.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def ending(self) -> bool:
        """Whether this process was told to end (SIGTERM)."""
        return TOLD_TO_END.is_set()

    def stopping(self) -> bool:
        return TOLD_TO_END.is_set() or self._stop_task.is_set()
