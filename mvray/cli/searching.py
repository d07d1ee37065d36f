"""mvray tune: search a job's settings."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from mvray.cli.options import (
    check_job_options,
    job_options,
    keywords_of,
    same_job,
    where_runs_are,
    workers_for_api,
    workers_of,
    workers_option,
)
from mvray.cli.signals import interruptible
from mvray.cli.supervisor import supervised
from mvray.errors import SettingError

if TYPE_CHECKING:
    from mvray.api import SearchResult


def add(commands: Any) -> None:
    tune = commands.add_parser("tune", help="search the settings of a job's step; what is finished is not done again")
    job_options(tune)
    tune.add_argument(
        "--trials", type=int, metavar="N", help="how many in all, with those done before (default: the job's)"
    )
    tune.add_argument("--concurrent", type=int, metavar="N", help="at most so many at once (default: as many as fit)")
    workers_option(tune)
    tune.set_defaults(command=_tune)


def _tune(options: argparse.Namespace) -> int:
    check_options(options)
    check_job_options(options)
    if os.environ.get("RAY_ADDRESS"):
        return supervised(lambda patience_s: _tune_here(options, patience_s))
    return _tune_here(options)


def _tune_here(options: argparse.Namespace, patience_s: float = 0.0) -> int:
    from mvray import api

    limits = {"trials": options.trials, "concurrent": options.concurrent, "patience_s": patience_s}
    workers = workers_for_api(options.workers)
    with interruptible():
        result = api.tune(options.job, **keywords_of(options), workers=workers, **limits)
    print(result)
    _say_next(options, result)
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Raises SettingError for numbers that no search can have."""
    for name, number in (("trials", options.trials), ("concurrent", options.concurrent)):
        if number is not None and number < 1:
            raise SettingError(f"--{name} {number}: expected 1 or more.")
    if workers_of(options.workers) == (0, 0):
        raise SettingError("--workers 0: expected 1 or more: a search needs Ray. --workers 0 is for mvray run.")


def _say_next(options: argparse.Namespace, result: SearchResult) -> None:
    best = result.report["set"]
    print(f"\nResults:  {result.study.folder.uri}")
    if best is not None and result.study.search.scheduler != "pbt":
        print(f"Use it:   {same_job('run', options)} {best}")
    print(f"Pictures: {same_job('report', options)} --html report.html")
    print(f"MLflow:   {where_runs_are(options.storage)}")
