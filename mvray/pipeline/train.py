"""Train steps on Ray Train: the environment of every real run, and what happens when a worker is lost."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import replace

from mvray.cluster import Cluster, WorkerGroup
from mvray.errors import Interrupted, StepFailed
from mvray.experiment import Train
from mvray.pipeline.failures import raise_own
from mvray.pipeline.plan import Planned
from mvray.storage import Storage
from mvray.training import Local, SearchTrial, StepProgress, Task, train

RETRIES = 5
"""How often a Train step is started again after its workers or its controller were lost without progress."""


def task_of(planned: Planned, epochs_before: int) -> Task:
    """The task of a Train step, whose index.parquet must be in its folder."""
    step = planned.step
    assert isinstance(step, Train)
    start = planned.inputs[step.start_from.name] if step.start_from else None
    return Task(
        step=step,
        seed=planned.seed,
        folder=planned.folder.uri,
        facts=planned.facts,
        epochs=max(1, step.optim.epochs_of(planned.facts.samples) - epochs_before),
        attempt=uuid.uuid4().hex,
        columns=tuple(planned.inputs[generated.name].folder.uri for generated in step.data.columns),
        start_weights=f"{start.folder.uri}/weights.safetensors" if start else None,
    )


def run(
    planned: Planned, cluster: Cluster, stop: threading.Event | None = None, trial: SearchTrial | None = None
) -> dict[str, float]:
    """Train to the end; returns the step's metrics. What an earlier, broken run left is gone on with.

    When the cluster is aborted, or ``stop`` is set, training ends with a checkpoint and Interrupted is raised.
    Raises StepFailed with the cause after ``RETRIES`` losses without a step of progress, and the method's own
    MvrayError at once.
    """
    before, stop_event = epochs_before(planned), stop or threading.Event()

    def stopping() -> bool:
        return stop_event.is_set() or cluster.aborted.is_set()

    while not planned.folder.exists("metrics.json"):
        if stopping():
            raise Interrupted("The run was interrupted.")
        task = replace(task_of(planned, before), search_trial=trial)
        planned.folder.write("attempt", task.attempt.encode())
        if cluster.workers == 0:
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

    retries_left, progress = RETRIES, _progress(planned.folder)
    while True:
        try:
            _fit(planned, task, cluster, stopping)
            return
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            raise_own(error, planned)
            now = _progress(planned.folder)
            retries_left = RETRIES if now != progress else retries_left - 1
            progress = now
            if retries_left == 0:
                raise StepFailed(f"Step {planned.name!r} lost its workers {RETRIES} times in a row: {error}") from error
            cluster.say(
                f"{planned.name}: workers were lost ({type(error).__name__}); going on from the last checkpoint"
            )
            task = replace(task, attempt=uuid.uuid4().hex)
            planned.folder.write("attempt", task.attempt.encode())


def _progress(folder: Storage) -> list[str]:
    return [entry.path for entry in folder.list("checkpoints")]


def _fit(planned: Planned, task: Task, cluster: Cluster, stopping: Callable[[], bool]) -> None:
    """Train on a worker group that waits, or on a new one."""
    scale = task.step.scale

    def take_group() -> WorkerGroup | None:
        StepProgress.clear(planned.folder)  # it is about the last workers
        return cluster.groups.take(scale, cluster.gpus(), planned.name, _label(planned, task), stopping)

    while group := take_group():
        if scale.min_workers not in (None, scale.workers):
            cluster.say(f"{planned.name}: {group.size} of {scale.workers} workers")
        if group.train(task, stopping):
            if group.ends:
                cluster.say(f"{planned.name}: {group.ends}; going on from a checkpoint written now")
            cluster.groups.give_back(group)
            return


def _label(planned: Planned, task: Task) -> str:
    """The Ray Train run's name, as Ray's dashboard shows it."""
    return planned.label if task.search_trial is None else f"{planned.label}-trial-{task.search_trial.number}"
