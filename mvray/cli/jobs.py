"""mvray run | report: a job and what it found."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvray.cli.options import INTERRUPTED, job_options, same_job, workers_of, workers_option
from mvray.cli.supervisor import supervised
from mvray.errors import DataError, MvrayError, SettingError, UserError

if TYPE_CHECKING:
    from mvray.experiment import Job
    from mvray.pipeline import Plan
    from mvray.reports import RunLog
    from mvray.storage import Storage
    from mvray.tracking import Progress


def add(commands: Any) -> None:
    run = commands.add_parser("run", help="run a job; what is finished is not done again")
    run_options(run)
    run.set_defaults(command=_run)

    report = commands.add_parser("report", help="show a job's table")
    job_options(report)
    report.add_argument("--html", type=Path, metavar="FILE", help="write a page with table and pictures")
    report.add_argument("--json", action="store_true", help="print the report as JSON")
    report.set_defaults(command=_report)


def run_options(parser: argparse.ArgumentParser) -> None:
    """The options of run, which submit has too."""
    job_options(parser)
    parser.add_argument("--only", metavar="STEP", help="run this step, and what it reads, alone")
    workers_option(parser)


def load_job(path: Path, tiny: bool, data: str | None, settings: list[str]) -> Job:
    """The job of a job file, with the changes of the command line."""
    from mvray.experiment import Job, replaced

    if not path.is_file():
        raise SettingError(f"There is no job file {path}. Expected a file as jobs/gradcam_masking.py.")
    spec = importlib.util.spec_from_file_location(f"mvray_job_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SettingError(f"{path} is not a Python file. Expected a job file as jobs/gradcam_masking.py.")
    module = importlib.util.module_from_spec(spec)
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # a job may build on another one beside it
    try:
        spec.loader.exec_module(module)
        make: Any = getattr(module, "job", None)
        if make is None:
            raise SettingError(f"{path} has no function job(tiny=False) -> Job. See jobs/gradcam_masking.py for one.")
        job = make(tiny=tiny)
    except SyntaxError as error:
        raise SettingError(f"{path}, line {error.lineno}: {error.msg}. Mend the job file.") from None
    except UserError:
        raise
    except Exception as error:
        where = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]
        line = f", line {where[-1].lineno} ({where[-1].line})" if where else ""
        raise SettingError(f"{path}{line}: {type(error).__name__}: {error}. Mend the job file.") from error
    if not isinstance(job, Job):
        raise SettingError(f"job() of {path} returned {type(job).__name__}; expected a Job (mvray.Job).")
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise SettingError(f"--set {setting}: expected NAME=VALUE, as in --set masked.method.probability=0.3.")
        changes[name.strip()] = value
    if data is not None:
        changes["source.root"] = data
    return replaced(job, changes)


def asked_for(given: argparse.Namespace) -> Job:
    """The job that the options name, with its workers. Raises SettingError for what none of it is, --only and
    the search among it."""
    from mvray.experiment import replaced

    job = load_job(given.job, given.tiny, given.data, given.set)
    if workers := workers_of(getattr(given, "workers", None)):
        least, most = workers
        # First a pair that is in order whatever the job says.
        job = replaced(job, {"scale.min_workers": "none"})
        job = replaced(job, {"scale.workers": max(1, most)})
        job = replaced(job, {"scale.min_workers": least if least < most else "none"})
    only, names = getattr(given, "only", None), sorted({step.name for step in job.walk()})
    if only is not None and only not in names:
        raise SettingError(f"--only {only}: the job {job.name!r} has no such step; it has {', '.join(names)}.")
    if job.search is not None:
        from mvray.tuning import study

        study.check(job)  # run and report show what was searched, after hours of training
    return job


def planned(given: argparse.Namespace, one_seed: bool = False) -> tuple[Plan, Storage]:
    """The job that the options name, planned; with ``one_seed`` for the first of its seeds alone."""
    from mvray.pipeline import plan
    from mvray.storage import Storage

    if given.data and "://" not in given.data and not Path(given.data).is_dir():
        raise DataError(f"--data {given.data}: there is no such folder.")
    job = asked_for(given)
    if one_seed:
        job = replace(job, seeds=job.seeds[:1])
    storage = Storage(given.storage)
    return plan.make(job, storage), storage


def _run(given: argparse.Namespace) -> int:
    workers = workers_of(given.workers)
    if os.environ.get("RAY_ADDRESS") and workers != (0, 0):
        return supervised(lambda patience_s: _run_here(given, patience_s))
    return _run_here(given)


def _run_here(given: argparse.Namespace, patience_s: float = 0.0) -> int:
    from mvray.cluster import Cluster
    from mvray.experiment import git_commit, versions
    from mvray.pipeline import chosen, execute
    from mvray.reports import (
        RunLog,
        collect,
        comparison,
        means,
        outbox_folder,
        pictures,
        refuge,
        tracking_uri,
        where_tracked,
    )
    from mvray.reports import page as pages
    from mvray.tracking import Progress, Tracker

    heed_signals()
    workers = workers_of(given.workers)
    plan, storage = planned(given)
    steps = chosen(plan, given.only)
    storage.check()
    progress = Progress()
    todo = [planned for planned in steps if not planned.finished]
    missing = len(todo)
    progress.say(f"{plan.job.name}: {len(steps)} steps, {len(steps) - missing} finished before, {missing} to do.")
    if line := where_tracked(storage):
        progress.say(line)
    _say_bad(plan, progress)
    delay_s = 20.0 if missing else 0.0
    tracker = Tracker(tracking_uri(storage), plan.job.name, outbox_folder(storage), delay_s, refuge(storage))
    log = RunLog(tracker, plan, {**versions(), "git_commit": git_commit() or ""}, given.job)
    cluster = Cluster(storage, workers[1] if workers else None, progress.say, patience_s)
    status = "FAILED"
    try:
        execute(plan, cluster, log, progress, given.only)
        if not plan.missing():
            log.results(means(plan))
            if missing:
                log.pictures({**comparison(plan), **pictures(plan)})
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
                say_costs([(f"{p.name} (seed {p.seed})", p.folder) for p in todo if p.finished], log, progress)
        finally:
            close(log, status, progress, given.storage)
    print(pages.as_text(collect(plan), plan.job.table))
    print(f"\nResults:  {storage.uri}")
    print(f"Pictures: {same_job('report', given)} --html report.html")
    print(f"MLflow:   {where_runs_are(given.storage)}")
    return 0


def where_runs_are(storage: str) -> str:
    """The page with the runs, or the command that shows it."""
    from mvray.reports import tracking_uri
    from mvray.storage import Storage
    from mvray.tracking import page, without_password

    uri = tracking_uri(Storage(storage))
    if uri.startswith(("http://", "https://")):
        return page(without_password(uri))
    return shlex.join(["mvray", "ui", "--storage", storage])


@contextmanager
def readable(progress: Progress) -> Iterator[None]:
    """For what is read from the storage to be shown at a run's end: where that fails it is said, not raised.

    The error that ended the run, often of the same storage, must be the one that the user sees.
    """
    try:
        yield
    except (OSError, MvrayError) as error:
        progress.say(f"What this run has cost or found is not shown in full: {error}")


def say_costs(done: list[tuple[str, Storage]], log: RunLog, progress: Progress) -> None:
    """What the steps in these folders have cost, on the terminal and on the job's run."""
    from mvray.pipeline import cost

    if rows := [(name, cost.total(folder)) for name, folder in done]:
        progress.say(f"\n{cost.as_text(rows)}\n")
        log.results(cost.as_metrics(sum((spent for _, spent in rows), cost.Spent())))


def close(log: RunLog, status: str, progress: Progress, storage: str) -> None:
    """End the job's run, and say what MLflow could not be told."""
    if undelivered := log.close(status):
        command = shlex.join(["mvray", "deliver", "--storage", storage])
        progress.say(f"{undelivered} Send them with: {command} (so does the next run).")


def heed_signals() -> None:
    """SIGINT (Ctrl-C) and SIGTERM end the run with checkpoints; a second Ctrl-C ends it at once."""

    def again(number: int, _: object) -> None:
        if number == signal.SIGINT:
            print("\nmvray: ended at once. The same command goes on from the last checkpoint.", file=sys.stderr)
            os._exit(INTERRUPTED)  # Ray ends what this process leaves

    def first(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, again)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, first)


def _say_bad(plan: Plan, progress: Any) -> None:
    for _, index in plan.indexes():
        for record in index.bad:
            progress.say(f"left out: {record.location}: {record.reason}")


def _check_page(file: Path) -> None:
    """Raises SettingError, before minutes of drawing, for a file that cannot be made."""
    try:
        if not file.parent.is_dir():
            raise SettingError(f"--html {file}: there is no folder {file.parent}; expected one. Make it first.")
        if file.is_dir():
            raise SettingError(f"--html {file} is a folder; expected a file in it, as {file / 'report.html'}.")
    except OSError as error:  # a name that is too long, a folder that is closed
        raise _no_page(file, error) from None


def _no_page(file: Path, error: OSError) -> SettingError:
    return SettingError(
        f"--html {file} cannot be written ({error.strerror or error}); expected a file that can. Name another one."
    )


def _report(given: argparse.Namespace) -> int:
    from mvray.reports import collect, comparison, pictures
    from mvray.reports import page as pages

    if given.html:
        _check_page(given.html)
    plan, storage = planned(given)
    storage.check(write=False)
    found = collect(plan)
    if given.html:
        page = pages.as_html(found, plan.job.table, {**comparison(plan), **pictures(plan)})
        try:
            given.html.write_text(page)
        except OSError as error:
            raise _no_page(given.html, error) from None
        print(f"Wrote {given.html}.", file=sys.stderr)
    if given.json:
        print(pages.as_json(found))
    elif not given.html:
        print(pages.as_text(found, plan.job.table))
    return 0
