"""Crews: groups of Ray Train workers that stay after a Train step and take the next one.

Starting a Ray Train run costs half a minute on two cores, nearly all of it processes and imports. So
a crew is one Ray Train run whose workers ask a desk (a small actor) for task after task, until
it is closed, is idle too long, or loses a worker. It is used again for a step of the same shape.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from mvray.errors import ClusterError, StepFailed

if TYPE_CHECKING:
    from mvray.cluster import Cluster
    from mvray.job import Scale
    from mvray.task import Task

IDLE_S = 120.0
"""A crew without work for so long ends: on a shared cluster others may want its GPUs."""
ROOM_S = 30.0
POLL_S = 0.2
GRACE_S = 60.0
"""How long workers that were asked to stop have for their checkpoint."""

Shape = tuple[int, float]


class Desk:
    """Where a crew's workers ask for work; an actor. Tasks are numbered from 0; None means go home."""

    def __init__(self, workers: int, idle_s: float) -> None:
        self._workers, self._idle_s = workers, idle_s
        self._tasks: list[bytes] = []
        self._done: dict[int, int] = {}
        self._stopped: set[int] = set()
        self._closed = False
        self._held: Any = None
        self._changed = asyncio.Condition()

    async def give(self, task: bytes) -> int | None:
        """A new task for the crew; its number, or None when the crew is about to end."""
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
        """Send the crew home when it has done what it was given."""
        async with self._changed:
            self._close()

    def _close(self) -> None:
        self._closed = True
        self._changed.notify_all()

    async def hold(self, placement_group: Any) -> None:
        """Keep what must be freed when the crew's controller is killed."""
        self._held = placement_group

    async def held(self) -> Any:
        return self._held


def _on_worker(config: dict[str, Any]) -> None:
    """What each worker of a crew does."""
    import ray
    import ray.util
    from ray import cloudpickle

    from mvray.loop import train
    from mvray.train import OnRay

    desk, here, number = config["desk"], OnRay(), 0
    if here.rank == 0:
        ray.get(desk.hold.remote(ray.util.get_current_placement_group()))
    while not here.ending() and (task := ray.get(desk.next.remote(number))) is not None:
        threading.Thread(target=_hear, args=(desk, number, here.begin()), name="stop", daemon=True).start()
        train(cloudpickle.loads(task), here)
        here.release()
        ray.get(desk.done.remote(number))
        number += 1


def _hear(desk: Any, number: int, stop: threading.Event) -> None:
    """Set ``stop`` when task ``number`` is to end early."""
    import ray
    import ray.exceptions

    with contextlib.suppress(ray.exceptions.RayError):  # a desk that is lost takes the whole crew with it
        if ray.get(desk.stopped.remote(number)):
            stop.set()


class Crew:
    """A running Ray Train run. `train` works on one task at a time."""

    def __init__(self, cluster: Cluster, scale: Scale, gpus: int) -> None:
        import ray

        self.shape = shape_of(scale)
        desk: Any = ray.remote(num_cpus=0)(Desk)
        self._desk = desk.remote(scale.workers, IDLE_S)
        self._fit: Future[None] = Future()
        self._trainer = _trainer(cluster, scale, gpus, {"desk": self._desk})
        threading.Thread(target=self._run, name="crew", daemon=True).start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
            self._fit.set_result(None)
        except BaseException as error:
            self._fit.set_exception(error)

    @property
    def alive(self) -> bool:
        return not self._fit.done()

    def train(self, task: Task, stopping: Callable[[], bool]) -> bool:
        """Work on ``task`` to its end; False when the crew had just ended, so that nothing was done.

        When ``stopping`` says so, the workers write a checkpoint and end the task early. Raises StepFailed where they
        do not within GRACE_S, and what ended the run: ray.train.TrainingFailedError where a worker was lost or raised,
        RayActorError where Ray Train's controller was lost.
        """
        import ray
        from ray import cloudpickle

        try:
            # Pickled, so that the desk need not import torch.
            number = ray.get(self._desk.give.remote(cloudpickle.dumps(task)))  # type: ignore[no-untyped-call]
            if number is None:
                return False
            finished = self._desk.finished.remote(number)
            asked_at = 0.0
            while not ray.wait([finished], timeout=POLL_S)[0]:
                if stopping() and not asked_at:
                    asked_at = time.monotonic()
                    self._desk.stop.remote(number)
                if asked_at and time.monotonic() > asked_at + GRACE_S:
                    raise StepFailed(f"The workers wrote no checkpoint within {GRACE_S:.0f} s; an older one is there.")
                if not self.alive:
                    self._fit.result()
                    return True  # it was asked to stop (SIGTERM) and has written a checkpoint
            ray.get(finished)
        except BaseException:
            self.free()
            raise
        return True

    def free(self) -> None:
        """End the crew and give back what it holds, even when its controller is dead."""
        import ray
        import ray.exceptions
        import ray.util

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._desk.close.remote())
            held = ray.get(self._desk.held.remote())
            if held is not None and not self.alive:
                ray.util.remove_placement_group(held)


class Crews:
    """The crews of a cluster that wait for work."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._idle: list[Crew] = []
        self._lock = threading.Lock()

    def take(self, scale: Scale, gpus: int) -> Crew:
        """A crew of this shape: one that waits, or a new one."""
        with self._lock:
            for crew in [crew for crew in self._idle if not crew.alive]:
                self._idle.remove(crew)
                crew.free()
            for crew in self._idle:
                if crew.shape == shape_of(scale):
                    self._idle.remove(crew)
                    return crew
        self.make_room(scale.workers * scale.cpus_per_worker, scale.workers if gpus else 0)
        return Crew(self._cluster, scale, gpus)

    def give_back(self, crew: Crew) -> None:
        with self._lock:
            self._idle.append(crew)

    def make_room(self, cpus: float, gpus: float) -> None:
        """Send crews home that wait, as long as so much is not free."""
        while not _is_free(cpus, gpus):
            with self._lock:
                if not self._idle:
                    return
                crew = self._idle.pop(0)
            crew.free()
            until = time.monotonic() + ROOM_S
            while (crew.alive or not _is_free(cpus, gpus)) and time.monotonic() < until:
                time.sleep(POLL_S)


def shape_of(scale: Scale) -> Shape:
    """Steps of equal shape can share a crew."""
    return scale.workers, scale.cpus_per_worker


def _is_free(cpus: float, gpus: float) -> bool:
    import ray

    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free.get("CPU", 0.0) >= cpus and free.get("GPU", 0.0) >= gpus


def _trainer(cluster: Cluster, scale: Scale, gpus: int, config: dict[str, Any]) -> Any:
    """The Ray Train run of a crew."""
    import ray.train

    if 0 < gpus < scale.workers:
        raise ClusterError(f"A step asks for {scale.workers} workers, but there are {gpus} GPUs. Use --workers {gpus}.")
    settings: dict[str, Any] = {
        "train_loop_config": config,
        "scaling_config": ray.train.ScalingConfig(
            num_workers=scale.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": scale.cpus_per_worker, **({"GPU": 1} if gpus else {})},
        ),
        "run_config": ray.train.RunConfig(name=f"crew-{uuid.uuid4().hex}", storage_path=cluster.scratch()),
    }
    if cluster.is_local:
        from mvray.one_machine import trainer

        return trainer(_on_worker, **settings)
    import ray.train.torch

    return ray.train.torch.TorchTrainer(_on_worker, **settings)
