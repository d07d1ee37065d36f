"""mvray tune: search a job's settings."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING, Any

from mvray.cli.jobs import load_job, planned
from mvray.cli.options import job_options, same_options
from mvray.errors import SettingError

if TYPE_CHECKING:
    from mvray.runlog import RunLog
    from mvray.study import Study


def add(commands: Any) -> None:
    tune = commands.add_parser("tune", help="search the settings of a job's step; what is finished is not done again")
    job_options(tune)
    tune.add_argument(
        "--trials", type=int, metavar="N", help="how many in all, with those done before (default: the job's)"
    )
    tune.add_argument("--concurrent", type=int, metavar="N", help="at most so many at once (default: as many as fit)")
    tune.add_argument("--workers", type=int, metavar="N", help="training workers of each trial")
    tune.set_defaults(command=_tune)


def _tune(given: argparse.Namespace) -> int:
    from mvray import search_report, study
    from mvray.cluster import Cluster
    from mvray.manifest import git_commit, versions
    from mvray.plan import Plan
    from mvray.progress import Progress
    from mvray.run import chosen, execute
    from mvray.runlog import RunLog, spool_folder, tracking_uri
    from mvray.tracking import Tracker

    _check_options(given)
    study.check(load_job(given.job, given.tiny, given.data, given.set))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the trials that run write a checkpoint
    plan, storage = planned(given, one_seed=True)
    _, step = study.check(plan.job)
    base = plan.of(step, plan.job.seeds[0])
    found = study.Study(plan.job, base)
    wanted = found.checked(given.trials)
    storage.check()
    before = Plan(plan.job, storage, tuple(other for other in chosen(plan, base.name) if other is not base))
    missing = sum(not other.finished for other in before.steps)
    progress = Progress()
    progress.say(
        f"{plan.job.name}: search of {base.name}, {found.summary(wanted)}. "
        f"{missing} of the {len(before.steps)} steps that it reads are to do first."
    )
    tracker = Tracker(tracking_uri(storage), plan.job.name, spool_folder(storage), delay_s=20.0)
    about = {**versions(), "git_commit": git_commit() or ""}
    log = RunLog(tracker, plan, about, given.job, search=found.about())
    cluster = Cluster(storage, None, progress.say)
    status = "FAILED"
    try:
        cluster.start(plan.job)
        execute(before, cluster, log, progress)
        from mvray import tune

        tune.search(found, cluster, log, progress, wanted, given.concurrent)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        cluster.stop()
        _log_result(log, found)
        if undelivered := log.close(status):
            progress.say(undelivered)
    print(search_report.as_text(found.collected()))
    _say_next(given, found)
    return 0


def _check_options(given: argparse.Namespace) -> None:
    for name, least, why in (
        ("trials", 1, ""),
        ("concurrent", 1, ""),
        ("workers", 1, " (a search needs Ray; --workers 0 is for mvray run)"),
    ):
        number = getattr(given, name)
        if number is not None and number < least:
            raise SettingError(f"--{name} {number}: expected {least} or more{why}.")


def _log_result(log: RunLog, found: Study) -> None:
    """Pictures and the best settings on the study's run, also of a search that was interrupted."""
    from mvray import search_figures, search_report

    collected = found.collected()
    if collected["best"] is None:
        return
    log.pictures(search_figures.pictures(found.search, collected))
    said = search_report.verdict(collected)
    log.said({"mvray.best": collected["set"], "mvray.best_trial": str(collected["best"]), "mlflow.note.content": said})


def _say_next(given: argparse.Namespace, found: Study) -> None:
    again = "".join(f" {part}" for part in same_options(given))
    best = found.collected()["set"]
    print(f"\nResults:  {found.folder.uri}")
    if best is not None and found.search.scheduler != "pbt":
        print(f"Use it:   mvray run {given.job}{again} {best}")
    print(f"Pictures: mvray report {given.job}{again} --html report.html")
    print(f"MLflow:   mvray ui --storage {given.storage}")
