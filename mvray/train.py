"""Train steps on Ray Train: the environment of every real run, and what happens when a worker is lost."""

from __future__ import annotations

import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mvray.errors import Interrupted, MvrayError, StepFailed
from mvray.job import Train
from mvray.plan import Planned
from mvray.storage import Storage

if TYPE_CHECKING:
    import torch

    from mvray.cluster import Cluster
    from mvray.crew import Crew
    from mvray.task import Task, Watched

RETRIES = 5
"""How often a Train step is started again after its workers or its controller were lost without progress."""


BUGS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, TypeError, ValueError)
"""What a mistake in a method raises."""


AT_WORK, TOLD_TO_END = threading.Event(), threading.Event()
"""Of this process, where it is a worker."""


def heed_sigterm() -> None:
    """SIGTERM ends this worker: with a checkpoint where it is at work, else at once. To be called on the main thread.

    Ray sends it too, to workers that it ends; those that have not ended soon are killed.
    """

    def told(*_: object) -> None:
        TOLD_TO_END.set()
        if not AT_WORK.is_set():
            sys.exit(1)

    signal.signal(signal.SIGTERM, told)


class OnRay:
    """One rank on Ray Train (an `Environment`)."""

    def __init__(self) -> None:
        import ray.train
        import ray.train.torch

        from mvray.alike import check_here
        from mvray.environment import use_given_threads

        check_here()
        use_given_threads()
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self._stop_task = threading.Event()

    def report(self, task: Task, metrics: Mapping[str, float]) -> bool:
        """Tell the search whose trial this is; ray.train.report would wait up to 2 s for the controller's next look."""
        if task.watched is None:
            return True
        from mvray.scoreboard import tell

        return tell(task.watched, metrics, self.rank)

    def begin(self) -> threading.Event:
        """A new task begins; setting the event ends it early."""
        AT_WORK.set()
        self._stop_task = threading.Event()
        return self._stop_task

    def release(self) -> None:
        """Free what a finished task leaves in memory, on the GPU too, before the next one."""
        import gc

        import torch

        AT_WORK.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def ending(self) -> bool:
        """Whether this process was told to end (SIGTERM)."""
        return TOLD_TO_END.is_set()

    def stopping(self) -> bool:
        return TOLD_TO_END.is_set() or self._stop_task.is_set()


def task_of(planned: Planned, epochs_before: int) -> Task:
    """The task of a Train step, whose index.parquet must be in its folder."""
    from mvray.task import Task

    step = planned.step
    assert isinstance(step, Train)
    start = planned.inputs[step.start_from.name] if step.start_from else None
    return Task(
        step=step,
        seed=planned.seed,
        folder=planned.folder.uri,
        facts=planned.facts,
        epochs=max(1, step.optim.epochs - epochs_before),
        attempt=uuid.uuid4().hex,
        columns=tuple(planned.inputs[made.name].folder.uri for made in step.data.columns),
        start_weights=f"{start.folder.uri}/weights.safetensors" if start else None,
    )


def run(
    planned: Planned, cluster: Cluster, stop: threading.Event | None = None, watched: Watched | None = None
) -> dict[str, float]:
    """Train to the end; returns the step's metrics. What an earlier, broken run left is gone on with.

    When the cluster is aborted, or ``stop`` is set, training ends with a checkpoint and Interrupted is raised.
    Raises StepFailed with the cause after ``RETRIES`` losses without a step of progress, and the method's own
    MvrayError at once.
    """
    before, asked = epochs_before(planned), stop or threading.Event()

    def stopping() -> bool:
        return asked.is_set() or cluster.aborted.is_set()

    while not planned.folder.exists("metrics.json"):
        if stopping():
            raise Interrupted("The run was interrupted.")
        task = replace(task_of(planned, before), watched=watched)
        planned.folder.write("attempt", task.attempt.encode())
        if cluster.workers == 0:
            from mvray.environment import Local
            from mvray.loop import train

            train(task, Local(stopping))
        else:
            _fit_with_retries(planned, task, cluster, stopping)
    return planned.folder.read_json("metrics.json", dict)


def epochs_before(planned: Planned) -> int:
    """How many of a Train step's epochs the step that it starts from was trained for; that one must be finished."""
    step = planned.step
    assert isinstance(step, Train)
    if step.start_from and step.count_start_epochs:
        return int(planned.inputs[step.start_from.name].metrics()["epochs"])
    return 0


def _fit_with_retries(planned: Planned, task: Task, cluster: Cluster, stopping: Callable[[], bool]) -> None:
    cluster.ready()
    import ray.exceptions
    import ray.train

    left, progress = RETRIES, _progress(planned.folder)
    while True:
        try:
            _fit(planned, task, cluster, stopping)
            return
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            raise_own(error, planned)
            now = _progress(planned.folder)
            left = RETRIES if now != progress else left - 1
            progress = now
            if left == 0:
                raise StepFailed(f"Step {planned.name!r} lost its workers {RETRIES} times in a row: {error}") from error
            cluster.say(
                f"{planned.name}: workers were lost ({type(error).__name__}); going on from the last checkpoint"
            )
            task = replace(task, attempt=uuid.uuid4().hex)
            planned.folder.write("attempt", task.attempt.encode())


def _progress(folder: Storage) -> list[str]:
    return [entry.path for entry in folder.list("checkpoints")]


def raise_own(error: BaseException, planned: Planned) -> None:
    """Raise what a worker's own code raised, out of Ray's ``error``: starting again would not help.

    A RuntimeError or OSError is what ranks see whose peer was lost, so nothing is raised for those.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, MvrayError):
            # Ray's copy of it also is a RayTaskError, whose text is the whole traceback.
            raise getattr(cause, "cause", cause) from error
    for cause in causes:
        if isinstance(cause, BUGS):
            planned.folder.write("error.txt", str(error).encode())
            own = getattr(cause, "cause", cause)
            raise StepFailed(
                f"Step {planned.name!r} ended with {type(own).__name__}: {own}. The "
                f"traceback is in {planned.folder.uri}/error.txt; --workers 0 runs the step in this process."
            ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, what it was raised from, and what the workers of a Ray Train run raised."""
    if error is None:
        return
    yield error
    for failure in getattr(error, "worker_failures", {}).values():
        yield from _causes(getattr(failure, "_base_exc", None) or failure)
    yield from _causes(error.__cause__ or getattr(error, "cause", None))


def _fit(planned: Planned, task: Task, cluster: Cluster, stopping: Callable[[], bool]) -> None:
    """Train on a crew that waits, or on a new one."""
    scale = task.step.scale

    def taken() -> Crew | None:
        planned.folder.delete("progress.json")  # what its last workers said is over
        return cluster.crews.take(scale, cluster.gpus(), planned.name, stopping)

    while crew := taken():
        if scale.min_workers not in (None, scale.workers):
            cluster.say(f"{planned.name}: {crew.size} of {scale.workers} workers")
        if crew.train(task, stopping):
            if crew.ends:
                cluster.say(f"{planned.name}: {crew.ends}; going on from a checkpoint written now")
            cluster.crews.give_back(crew)
            return
