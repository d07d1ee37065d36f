"""mvray tune: search a job's settings."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from mvray.cli.jobs import close, heed_signals, load_job, planned, readable, say_costs, where_runs_are
from mvray.cli.options import job_options, same_job, workers_of, workers_option
from mvray.cli.supervisor import supervised
from mvray.errors import SettingError

if TYPE_CHECKING:
    from mvray.reports import RunLog
    from mvray.tuning import Study


def add(commands: Any) -> None:
    tune = commands.add_parser("tune", help="search the settings of a job's step; what is finished is not done again")
    job_options(tune)
    tune.add_argument(
        "--trials", type=int, metavar="N", help="how many in all, with those done before (default: the job's)"
    )
    tune.add_argument("--concurrent", type=int, metavar="N", help="at most so many at once (default: as many as fit)")
    workers_option(tune)
    tune.set_defaults(command=_tune)


def _tune(given: argparse.Namespace) -> int:
    check_options(given)
    if os.environ.get("RAY_ADDRESS"):
        return supervised(lambda patience_s: _tune_here(given, patience_s))
    return _tune_here(given)


def _tune_here(given: argparse.Namespace, patience_s: float = 0.0) -> int:
    from mvray.cluster import Cluster
    from mvray.experiment import git_commit, versions
    from mvray.pipeline import Plan, chosen, execute
    from mvray.reports import RunLog, refuge, search_table, spool_folder, tracking_uri, where_tracked
    from mvray.tracking import Progress, Tracker
    from mvray.tuning import study

    study.check(load_job(given.job, given.tiny, given.data, given.set))
    heed_signals()
    plan, storage = planned(given, one_seed=True)
    _, step = study.check(plan.job)
    base = plan.of(step, plan.job.seeds[0])
    found = study.Study(plan.job, base)
    wanted = found.checked(given.trials)
    storage.check()
    before = Plan(plan.job, storage, tuple(other for other in chosen(plan, base.name) if other is not base))
    new = [other for other in before.steps if not other.finished]
    progress = Progress()
    progress.say(
        f"{plan.job.name}: search of {base.name}, {found.summary(wanted)}. "
        f"{len(new)} of the {len(before.steps)} steps that it reads are to do first."
    )
    if line := where_tracked(storage):
        progress.say(line)
    tracker = Tracker(tracking_uri(storage), plan.job.name, spool_folder(storage), 20.0, refuge(storage))
    about = {**versions(), "git_commit": git_commit() or ""}
    log = RunLog(tracker, plan, about, given.job, search=found.about())
    cluster = Cluster(storage, None, progress.say, patience_s)
    status = "FAILED"
    try:
        execute(before, cluster, log, progress)
        from mvray.tuning import tune

        tune.search(found, cluster, log, progress, wanted, given.concurrent)
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
            with readable(progress):
                todo = [(f"{other.name} (seed {other.seed})", other.folder) for other in new if other.finished]
                tried = [found.trials[number] for number in sorted(found.trained)]
                todo += [(f"trial {trial.number}", storage.child(trial.path)) for trial in tried]
                say_costs(todo, log, progress)
            with readable(progress):
                _log_result(log, found)
        finally:
            close(log, status, progress, given.storage)
    print(search_table.as_text(found.collected()))
    _say_next(given, found)
    return 0


def check_options(given: argparse.Namespace) -> None:
    """Raises SettingError for numbers that no search can have."""
    for name in ("trials", "concurrent"):
        number = getattr(given, name)
        if number is not None and number < 1:
            raise SettingError(f"--{name} {number}: expected 1 or more.")
    if workers_of(given.workers) == (0, 0):
        raise SettingError("--workers 0: expected 1 or more: a search needs Ray. --workers 0 is for mvray run.")


def _log_result(log: RunLog, found: Study) -> None:
    """Pictures and the best settings on the study's run, also of a search that was interrupted."""
    from mvray.reports import search_figures, search_table

    collected = found.collected()
    if collected["best"] is None:
        return
    log.pictures(search_figures.pictures(found.search, collected))
    said = search_table.verdict(collected)
    log.set_tags(
        {"mvray.best": collected["set"], "mvray.best_trial": str(collected["best"]), "mlflow.note.content": said}
    )


def _say_next(given: argparse.Namespace, found: Study) -> None:
    best = found.collected()["set"]
    print(f"\nResults:  {found.folder.uri}")
    if best is not None and found.search.scheduler != "pbt":
        print(f"Use it:   {same_job('run', given)} {best}")
    print(f"Pictures: {same_job('report', given)} --html report.html")
    print(f"MLflow:   {where_runs_are(given.storage)}")
