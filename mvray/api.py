"""What the command line and Python users both call: run, tune and report a job, and load what it has trained."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvray.cluster import Cluster
from mvray.errors import DataError, MvrayError, SettingError
from mvray.experiment import Job, git_commit, job_file, replaced, versions
from mvray.inference import Result, SearchResult, StepResult, load_step
from mvray.pipeline import Plan, Planned, check_only, cost, execute, plan, selected_steps
from mvray.reports import RunLog, comparison, means, pictures, search_figures, search_table
from mvray.storage import Storage
from mvray.tracking import Progress, Tracker, outbox_folder, refuge, tracking_uri, where_tracked
from mvray.tuning import Study, study, tune_study

if TYPE_CHECKING:
    from mvray.nn import Method

STORAGE = "runs"
DELIVERY_DELAY_S = 20.0
"""MLflow is imported after so long: it must not compete with the start of training."""
__all__ = [
    "Result",
    "SearchResult",
    "StepResult",
    "load",
    "load_job",
    "report",
    "run",
    "tune",
]
Workers = int | tuple[int, int] | None


def load_job(
    job: Job | Path | str,
    tiny: bool = False,
    data: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: Workers = None,
) -> Job:
    """A job, or that of a job file, with changes: where its data lies, settings by dotted name, training workers.

    Raises SettingError for what none of it is, the job's own search among it.
    """
    if not isinstance(job, Job):
        job = job_file.load(Path(job), tiny)
    elif tiny:
        raise SettingError("tiny=True belongs to a job file; give job(tiny=True) where the job is made in Python.")
    changes = dict(settings or {})
    if data is not None:
        changes["source.root"] = str(data)
    job = replaced(job, changes)
    if workers:
        least, most = (workers, workers) if isinstance(workers, int) else workers
        # First a pair that is in order whatever the job says.
        job = replaced(job, {"scale.min_workers": "none"})
        job = replaced(job, {"scale.workers": max(1, most)})
        job = replaced(job, {"scale.min_workers": least if least < most else "none"})
    if job.search is not None:
        study.check(job)  # run and report show what was searched, after hours of training
    return job


def check_data(data: str | Path | None) -> None:
    """Raises DataError where ``data`` is a folder that is not there."""
    if data is not None and "://" not in str(data) and not Path(data).is_dir():
        raise DataError(f"--data {data}: there is no such folder.")


def run(
    job: Job | Path | str,
    *,
    data: str | Path | None = None,
    storage: str | Path = STORAGE,
    workers: Workers = None,
    only: str | None = None,
    settings: Mapping[str, Any] | None = None,
    tiny: bool = False,
    patience_s: float = 0.0,
) -> Result:
    """Run a job; what is finished is not done again, what was interrupted goes on.

    ``workers`` are those of every Train step (0: in this process without Ray; a pair: as many as there is room for),
    ``only`` names a step to run with what it reads alone. A cluster that is joined (RAY_ADDRESS) may take
    ``patience_s`` to answer. Raises UserError for a mistake before anything is started, StepFailed where a step fails.
    """
    check_data(data)
    place = Storage(str(storage))
    job_of_steps = load_job(job, tiny, data, settings, workers)
    check_only(job_of_steps, only)
    job_plan = plan.make(job_of_steps, place)
    steps = selected_steps(job_plan, only)
    place.check()
    progress = Progress()
    todo = [planned for planned in steps if not planned.finished]
    progress.say(
        f"{job_plan.job.name}: {len(steps)} step{'' if len(steps) == 1 else 's'}, "
        f"{len(steps) - len(todo)} finished before, {len(todo)} to do."
    )
    _say_changed_code(steps, progress)
    _say_bad(job_plan, progress)
    about = {**versions(), "git_commit": git_commit() or ""}
    tracker = _tracker(place, job_plan.job.name, DELIVERY_DELAY_S if todo else 0.0, progress)
    log = RunLog(tracker, job_plan, about, _path_of(job))
    cluster = Cluster(place, workers if isinstance(workers, int) else None, progress.say, patience_s)

    def costs() -> list[tuple[str, Storage]]:
        return [(planned.title, planned.folder) for planned in todo if planned.finished]

    with _session(cluster, log, progress, str(storage), costs):
        execute(job_plan, cluster, log, progress, only)
        if not job_plan.missing():
            log.results(means(job_plan))
            if todo:
                log.pictures({**comparison(job_plan), **pictures(job_plan)})
    return Result(job_plan)


def tune(
    job: Job | Path | str,
    *,
    data: str | Path | None = None,
    storage: str | Path = STORAGE,
    workers: Workers = None,
    trials: int | None = None,
    concurrent: int | None = None,
    settings: Mapping[str, Any] | None = None,
    tiny: bool = False,
    patience_s: float = 0.0,
) -> SearchResult:
    """Search the settings of a job's step, as its ``search`` says, until there are ``trials`` in all.

    At most ``concurrent`` at once. Raises as `run`, and SettingError for a job without a search.
    """
    check_data(data)
    place = Storage(str(storage))
    job_of_steps = load_job(job, tiny, data, settings, workers)
    _, step = study.check(job_of_steps)
    job_plan = plan.make(replace(job_of_steps, seeds=job_of_steps.seeds[:1]), place)
    base = job_plan.of(step, job_plan.job.seeds[0])
    searched = Study(job_plan.job, base)
    count = searched.checked(trials)
    place.check()
    before = Plan(
        job_plan.job, place, tuple(other for other in selected_steps(job_plan, base.name) if other is not base)
    )
    new = [other for other in before.steps if not other.finished]
    progress = Progress()
    progress.say(
        f"{job_plan.job.name}: search of {base.name}, {searched.summary(count)}. "
        f"{len(new)} of the {len(before.steps)} steps that it reads are to do first."
    )
    about = {**versions(), "git_commit": git_commit() or ""}
    tracker = _tracker(place, job_plan.job.name, DELIVERY_DELAY_S, progress)
    log = RunLog(tracker, job_plan, about, _path_of(job), search=searched.about())
    cluster = Cluster(place, None, progress.say, patience_s)

    def costs() -> list[tuple[str, Storage]]:
        steps = [(other.title, other.folder) for other in new if other.finished]
        tried = [searched.trials[number] for number in sorted(searched.trained)]
        return steps + [(f"trial {trial.number}", place.child(trial.path)) for trial in tried]

    with _session(cluster, log, progress, str(storage), costs, lambda: _log_search(log, searched)):
        execute(before, cluster, log, progress)
        tune_study(searched, cluster, log, progress, count, concurrent)
    return SearchResult(searched)


def report(
    job: Job | Path | str,
    *,
    data: str | Path | None = None,
    storage: str | Path = STORAGE,
    settings: Mapping[str, Any] | None = None,
    tiny: bool = False,
) -> Result:
    """What a job has found so far; nothing is run."""
    check_data(data)
    place = Storage(str(storage))
    job_plan = plan.make(load_job(job, tiny, data, settings), place)
    place.check(write=False)
    return Result(job_plan)


def load(path: str | Path, job: str | Path | None = None) -> Method:
    """The trained method of the finished Train step in the folder ``path``: a torch module in eval mode.

    It has ``predict(batch)``. ``job`` is the job file where the method is your own and lies elsewhere. Raises
    DataError where ``path`` is not the folder of a finished Train step.
    """
    if job is not None:
        job_file.load(Path(job))
    return load_step(str(path))[0]


def _path_of(job: Job | Path | str) -> Path | None:
    return None if isinstance(job, Job) else Path(job)


def _tracker(storage: Storage, name: str, delay_s: float, progress: Progress) -> Tracker:
    if line := where_tracked(storage):
        progress.say(line)
    return Tracker(tracking_uri(storage), name, outbox_folder(storage), delay_s, refuge(storage))


@contextmanager
def _session(
    cluster: Cluster,
    log: RunLog,
    progress: Progress,
    storage: str,
    costs: Callable[[], list[tuple[str, Storage]]],
    at_end: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Work on a cluster; afterwards, whatever happens, it is left, costs are shown and MLflow's run is closed."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception:
        cluster.end_if_lost()
        raise
    finally:
        try:
            cluster.stop()
            with _readable(progress):
                _say_costs(costs(), log, progress)
            if at_end is not None:
                with _readable(progress):
                    at_end()
        finally:
            if undelivered := log.close(status):
                again = shlex.join(["mvray", "deliver", "--storage", storage])
                progress.say(f"{undelivered} Send them with: {again} (so does the next run).")


@contextmanager
def _readable(progress: Progress) -> Iterator[None]:
    """Around reads of the storage for what a run shows at its end: an error there is shown, not raised.

    The error that ended the run, often of the same storage, must be the one that the user sees.
    """
    try:
        yield
    except (OSError, MvrayError) as error:
        progress.say(f"What this run has cost or found is not shown in full: {error}")


def _say_costs(folders: Sequence[tuple[str, Storage]], log: RunLog, progress: Progress) -> None:
    """What the steps in these folders have cost, on the terminal and on the job's run."""
    if rows := [(name, cost.total(folder)) for name, folder in folders]:
        progress.say(f"\n{cost.as_text(rows)}\n")
        log.results(cost.as_metrics(sum((step_cost for _, step_cost in rows), cost.Cost())))


def _say_bad(job_plan: Plan, progress: Progress) -> None:
    for _, index in job_plan.indexes():
        for record in index.bad:
            progress.say(f"left out: {record.location}: {record.reason}")


def _say_changed_code(steps: Sequence[Planned], progress: Progress) -> None:
    """Finished steps count by settings and versions: say where code of one's own has changed since."""
    for planned in steps:
        if planned.finished and (changed := planned.changed_code()):
            progress.say(
                f"{planned.title} is finished, with {', '.join(changed)} as before the last change there. If that "
                f"changes results, raise the `version` of its settings class, or remove {planned.folder.uri}."
            )


def _log_search(log: RunLog, searched: Study) -> None:
    """Pictures and the best settings on the study's run, also of a search that was interrupted."""
    collected = searched.collected()
    if collected["best"] is None:
        return
    log.pictures(search_figures.pictures(searched.search, collected))
    verdict = search_table.verdict(collected)
    log.set_tags(
        {"mvray.best": collected["set"], "mvray.best_trial": str(collected["best"]), "mlflow.note.content": verdict}
    )
