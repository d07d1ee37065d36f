"""The cluster that a job runs on: the connection to Ray, and the worker groups that train there."""

from __future__ import annotations

from collections.abc import Callable

from mvray.cluster.connection import HEADROOM_CPUS, Connection
from mvray.cluster.worker_group import GROW_AFTER_S, WorkerGroups
from mvray.experiment import Step
from mvray.storage import Storage


class Cluster(Connection):
    """A connection with worker groups. ``workers`` overrides every Train step's (0: this process, no Ray).

    A cluster that is to be joined may take ``patience_s`` to answer.
    """

    def __init__(
        self,
        storage: Storage,
        workers: int | None = None,
        say: Callable[[str], None] = print,
        patience_s: float = 0.0,
        grow_after_s: float = GROW_AFTER_S,
    ) -> None:
        super().__init__(storage, workers, say, patience_s)
        self.groups = WorkerGroups(self, grow_after_s)

    def make_room(self, step: Step) -> None:
        """End worker groups that wait for work and hold what ``step`` needs."""
        self.ready()
        cpus, gpus = step.room(self.gpus())
        self.groups.make_room(cpus + HEADROOM_CPUS, gpus)

    def _before_leaving(self) -> None:
        self.groups.close()
