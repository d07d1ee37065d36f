"""Groups of training workers: Ray Train runs whose workers ask a queue (a small actor) for tasks.

Ray Train's own restarts are not used: its controller waits a long time for nodes that are lost, and knows nothing of
our checkpoints. So the size of a group is decided here, in the driver: a group never changes its size; a task is ended
early with a checkpoint, and the next group, smaller or larger, goes on (pipeline/train.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from mvray.cluster import placement
from mvray.cluster.local_ray import LeanRun
from mvray.cluster.ray_train import PublicRun, RunSettings, TrainRun
from mvray.cluster.worker import OnRay
from mvray.errors import ClusterError, StepFailed
from mvray.experiment import Packed

if TYPE_CHECKING:
    from mvray.cluster.connection import Connection
    from mvray.cluster.placement import Bundle, Room
    from mvray.experiment import Scale
    from mvray.training import Task

IDLE_S = 120.0
"""A group without work for so long ends."""
FREED_S = 3.0
POLL_S = 0.2
WATCH_S = 1.0
GROW_AFTER_S = 10.0
"""Room for more workers must have been there for so long: a larger group costs a start."""
CLOSE_S = 10.0
FINISH_S = 30.0
"""How long a group that has done its work may take to end in order."""
GRACE_S = 60.0
"""How long workers have for their checkpoint when somebody waits for the end (Ctrl-C)."""


class TaskQueue:
    """An actor from which a group's workers take tasks, numbered from 0; None tells a worker to end."""

    def __init__(self, workers: int, idle_s: float) -> None:
        self._workers, self._idle_s = workers, idle_s
        self._tasks: list[bytes] = []
        self._done: dict[int, int] = {}
        self._placement_group: Any = None
        self._stopped: set[int] = set()
        self._closed = False
        self._changed = asyncio.Condition()

    async def give(self, task: bytes) -> int | None:
        """A new task for the group; its number, or None when the group is about to end."""
        async with self._changed:
            if self._closed:
                return None
            self._tasks.append(task)
            self._changed.notify_all()
            return len(self._tasks) - 1

    async def next(self, number: int) -> bytes | None:
        """Task ``number``, as soon as there is one."""
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._idle_s):
                    await self._changed.wait_for(lambda: self._closed or number < len(self._tasks))
            if number < len(self._tasks):
                return self._tasks[number]
            self._close()
            return None

    async def joined(self, placement_group: Any) -> None:
        """A worker has begun, in this placement group."""
        self._placement_group = placement_group

    async def placement_group(self) -> Any:
        """Where the workers are; None before one has begun."""
        return self._placement_group

    async def done(self, number: int) -> None:
        """A worker has finished task ``number``."""
        async with self._changed:
            self._done[number] = self._done.get(number, 0) + 1
            self._changed.notify_all()

    async def finished(self, number: int) -> None:
        """Returns when every worker has finished task ``number``."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._done.get(number, 0) == self._workers)

    async def stop(self, number: int) -> None:
        """Ask the workers to end task ``number`` early, with a checkpoint."""
        async with self._changed:
            self._stopped.add(number)
            self._changed.notify_all()

    async def stopped(self, number: int) -> bool:
        """Returns when task ``number`` is to end early (True), or is finished."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: number in self._stopped or self._done.get(number, 0) == self._workers or self._closed
            )
            return number in self._stopped

    async def close(self) -> None:
        """End the group once its tasks are done."""
        async with self._changed:
            self._close()

    def _close(self) -> None:
        self._closed = True
        self._changed.notify_all()


def _on_worker(config: dict[str, Any]) -> None:
    """What each worker of a group does."""
    import ray.util

    from mvray.training import train

    queue, here, number = config["queue"], OnRay(report=config["report"]), 0
    queue.joined.remote(ray.util.get_current_placement_group())
    while not here.ending() and (task := ray.get(queue.next.remote(number))) is not None:
        threading.Thread(target=_hear, args=(queue, number, here.begin()), name="stop", daemon=True).start()
        packed: Packed = pickle.loads(task)  # noqa: S301  of our own driver
        train(packed.open(), here)
        here.release()
        if here.ending():
            ray.get(queue.close.remote())
        ray.get(queue.done.remote(number))
        number += 1


def _hear(queue: Any, number: int, stop: threading.Event) -> None:
    """Set ``stop`` when task ``number`` is to end early."""
    import ray
    import ray.exceptions

    with contextlib.suppress(ray.exceptions.RayError):  # without its queue the whole group ends
        if ray.get(queue.stopped.remote(number)):
            stop.set()


class WorkerGroup:
    """A running Ray Train run of ``size`` workers, named after the step that it is for.

    `train` works on one task at a time. On a Ray that mvray has started lean (local_ray.py) it stays for the next step,
    as its start costs more than many a step there; elsewhere each step, and each trial, has a run of its own.
    """

    def __init__(
        self, cluster: Connection, scale: Scale, bundle: Bundle, room: Room, name: str, grow_after_s: float
    ) -> None:
        import ray

        self._grow_after_s = grow_after_s
        self.cpus, self.size = scale.cpus_per_worker, room.size
        self.ends: str | None = None
        """Why the group itself has ended its task early; None where it has not. Such a group is not used again."""
        self.bundle, self.stays, self._shared = bundle, cluster.is_lean, not cluster.is_local
        # On the driver's node: both are lost together.
        selector = {placement.NODE_ID: ray.get_runtime_context().get_node_id()}
        queue: Any = ray.remote(num_cpus=0, label_selector=selector)(TaskQueue)
        self._queue = queue.options(name=f"{name}-tasks").remote(room.size, IDLE_S)
        self._fit: Future[None] = Future()
        config = {"queue": self._queue, "report": not cluster.is_lean}
        settings = RunSettings(name, _on_worker, config, room.size, bundle, cluster.scratch(), room.not_on)
        self._room: Room | None = room if cluster.is_lean else None
        if cluster.is_lean:
            self._run: TrainRun = LeanRun(settings, room.group)
        else:
            room.release()  # Ray Train reserves its own
            self._run = PublicRun(settings)
        self.thread = threading.Thread(target=self._work, name="group", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            self._run.fit()
            self._fit.set_result(None)
        except BaseException as error:
            self._fit.set_exception(error)

    @property
    def nodes(self) -> set[str]:
        """Ids of the nodes where its workers are, as far as one has begun."""
        return placement.nodes_of(self._room.group) if self._room else set()

    def _learn_room(self) -> None:
        """Of Ray Train's own placement group, as nobody gives it back where the run's controller is lost."""
        import ray

        if self._room is None and (group := ray.get(self._queue.placement_group.remote())) is not None:
            self._room = placement.Room(group, self.size)

    @property
    def alive(self) -> bool:
        return not self._fit.done()

    def train(self, task: Task, stopping: Callable[[], bool]) -> bool:
        """Work on ``task`` to its end; False when the group had just ended, so that nothing was done.

        When ``stopping`` says so, or a node is about to be taken away, or there is room for a larger group (`ends`),
        the workers write a checkpoint and end the task early. Raises StepFailed where they do not within GRACE_S
        after ``stopping`` (`_End`), and what ended the run: ray.train.TrainingFailedError where a worker was lost or
        raised, RayActorError where Ray Train's controller was lost.
        """
        import ray
        from ray import cloudpickle

        watch = _GroupWatch(self, task.step.scale, self._grow_after_s)
        end = _End(stopping, lambda: self._shared and watch.to_end())
        try:
            # Pickled, so that the queue need not import torch.
            packed = pickle.dumps(Packed.of(task, cloudpickle.dumps))
            number = ray.get(self._queue.give.remote(packed))
            if number is None:
                return False
            finished = self._queue.finished.remote(number)
            while not ray.wait([finished], timeout=POLL_S)[0]:
                self._learn_room()
                if end.begins():
                    self._queue.stop.remote(number)
                if not self.alive:
                    self._fit.result()
                    return True  # it was asked to stop (SIGTERM) and has written a checkpoint
            ray.get(finished)
        except BaseException:
            self.free()
            raise
        finally:
            watch.give_up()
        return True

    def finish(self, timeout_s: float = FINISH_S) -> None:
        """End the group in order, which has nothing to do: what it held is free again when this returns."""
        import ray
        import ray.exceptions

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._queue.close.remote())
        self.thread.join(timeout_s)
        self.free()

    def free(self) -> None:
        """End the group at once and give back what it holds, even when its controller is dead."""
        import ray
        import ray.exceptions

        with contextlib.suppress(ray.exceptions.RayError):
            if self._room is not None:
                self._room.release()
            ray.kill(self._queue)
            self._run.end()


class _End:
    """Decides when a task ends early: when ``stopping()``, or when the group itself ``wants_end()``."""

    def __init__(self, stopping: Callable[[], bool], wants_end: Callable[[], bool]) -> None:
        self._stopping, self._wants_end = stopping, wants_end
        self._stopped_at: float | None = None
        self._begun = False

    def begins(self) -> bool:
        """Whether to ask the workers now; True once. Raises StepFailed where ``stopping`` was GRACE_S ago.

        Where the group itself wants to end, it waits as long as it takes, through a long validation too: a node that
        goes meanwhile is a lost one as any other, after which training goes on.
        """
        now = time.monotonic()
        if self._stopped_at is None and self._stopping():
            self._stopped_at = now
        if self._stopped_at is not None and now > self._stopped_at + GRACE_S:
            raise StepFailed(f"The workers wrote no checkpoint within {GRACE_S:.0f} s; an older one is there.")
        if self._begun or (self._stopped_at is None and not self._wants_end()):
            return False
        self._begun = True
        return True


class _GroupWatch:
    """Decides whether a group on a cluster of many nodes ends its task early."""

    def __init__(self, group: WorkerGroup, scale: Scale, grow_after_s: float) -> None:
        self._group, self._most, self._grow_after_s = group, scale.workers, grow_after_s
        self._looked_at = time.monotonic()
        self._more = placement.RoomRequest(group.bundle)

    def to_end(self) -> bool:
        """Whether to end the task early, for a reason that ``group.ends`` then says."""
        if time.monotonic() - self._looked_at < WATCH_S:
            return False
        self._looked_at, group = time.monotonic(), self._group
        nodes = group.nodes
        if nodes & placement.leaving():
            group.ends = "a node is about to be taken away"
        elif not nodes:
            pass  # before Ray Train has room for the group itself, a request for more would take it
        elif group.size < self._most and self._more.fulfilled_s() > self._grow_after_s:
            group.ends = f"there is room for {min(self._most, group.size + 1 + placement.slots(group.bundle))} workers"
        return group.ends is not None

    def give_up(self) -> None:
        self._more.give_up()


class WorkerGroups:
    """The groups of a cluster, and those that wait for work.

    A group with fewer workers than its step asks for ends for a larger one when there has been room for
    ``grow_after_s`` seconds.
    """

    def __init__(self, cluster: Connection, grow_after_s: float = GROW_AFTER_S) -> None:
        self._cluster, self._grow_after_s = cluster, grow_after_s
        self._idle: list[WorkerGroup] = []
        self._begun: list[WorkerGroup] = []
        self._lock = threading.Lock()

    def take(self, scale: Scale, gpus: int, name: str, label: str, stopping: Callable[[], bool]) -> WorkerGroup | None:
        """A group for a step with this ``scale``: one that waits, or a new one, for which ``name`` waits for room.

        Ray's dashboard shows a new one as ``label``. None where ``stopping`` said so meanwhile.
        """
        least, most = scale.min_workers or scale.workers, scale.workers
        bundle = {"CPU": scale.cpus_per_worker, **({"GPU": 1.0} if gpus else {})}
        if 0 < gpus < least:
            have = "is 1 GPU" if gpus == 1 else f"are {gpus} GPUs"
            raise ClusterError(f"A step asks for {least} workers, but there {have}. Use --workers {gpus}.")
        with self._lock:
            for group in [group for group in self._idle if not group.alive]:
                self._idle.remove(group)
                group.free()
            for group in self._idle:
                if least <= group.size <= most and group.cpus == scale.cpus_per_worker:
                    self._idle.remove(group)
                    return group
        self.make_room(most * scale.cpus_per_worker, most if gpus else 0)

        def say(missing: int) -> None:
            whose = "worker's" if missing == 1 else "workers'"
            self._cluster.say(f"{name}: waits for {missing} more {whose} room on the cluster")

        room = placement.reserve(bundle, least, most, say, stopping)
        if room is None:
            return None
        run_name = f"{label}-{uuid.uuid4().hex[:8]}"  # Ray Train goes on with a run of the same name
        group = WorkerGroup(self._cluster, scale, bundle, room, run_name, self._grow_after_s)
        with self._lock:
            self._begun = [other for other in self._begun if other.thread.is_alive()] + [group]
        return group

    def give_back(self, group: WorkerGroup) -> None:
        """Keep the group for the next step, or end it where it will not do for one."""
        if group.ends or not group.stays:
            group.finish()
            return
        with self._lock:
            self._idle.append(group)

    def close(self) -> None:
        """End all groups, and wait until no thread of theirs asks Ray for anything.

        Ray's core ends the process now and then where it is shut down while another thread waits in ray.get.
        """
        for group in self._begun:
            if group.thread.is_alive():
                group.free()
        until = time.monotonic() + CLOSE_S
        for group in self._begun:
            group.thread.join(max(0.0, until - time.monotonic()))

    def make_room(self, cpus: float, gpus: float) -> None:
        """End groups that wait, as long as so much is not free."""
        while not _is_free(cpus, gpus):
            with self._lock:
                if not self._idle:
                    return
                group = self._idle.pop(0)
            group.free()
            until = time.monotonic() + FREED_S
            while not _is_free(cpus, gpus) and time.monotonic() < until:
                time.sleep(POLL_S)


def _is_free(cpus: float, gpus: float) -> bool:
    import ray

    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free.get("CPU", 0.0) >= cpus and free.get("GPU", 0.0) >= gpus
