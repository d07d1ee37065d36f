"""mvray run | report: a job and what it found."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from mvray.cli.options import (
    check_job_options,
    job_options,
    keywords_of,
    same_job,
    where_runs_are,
    workers_for_api,
    workers_option,
)
from mvray.cli.signals import interruptible
from mvray.cli.supervisor import supervised
from mvray.errors import SettingError


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


def _run(options: argparse.Namespace) -> int:
    workers = workers_for_api(options.workers)
    check_job_options(options)
    if os.environ.get("RAY_ADDRESS") and workers != 0:
        return supervised(lambda patience_s: _run_here(options, patience_s))
    return _run_here(options)


def _run_here(options: argparse.Namespace, patience_s: float = 0.0) -> int:
    from mvray import api

    workers = workers_for_api(options.workers)
    more = {"workers": workers, "only": options.only, "patience_s": patience_s}
    with interruptible():
        result = api.run(options.job, **keywords_of(options), **more)
    print(result)
    print(f"\nResults:  {result.plan.storage.uri}")
    print(f"Pictures: {same_job('report', options)} --html report.html")
    print(f"MLflow:   {where_runs_are(options.storage)}")
    return 0


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


def _report(options: argparse.Namespace) -> int:
    if options.html:
        _check_page(options.html)
    check_job_options(options)
    from mvray import api

    result = api.report(options.job, **keywords_of(options))
    if options.html:
        page = result.html()
        try:
            options.html.write_text(page)
        except OSError as error:
            raise _no_page(options.html, error) from None
        print(f"Wrote {options.html}.", file=sys.stderr)
    if options.json:
        print(result.json())
    elif not options.html:
        print(result)
    return 0
