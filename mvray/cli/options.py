"""What commands of more than one subject share: exit codes, the options that name a job, and their first checks."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvray.errors import DataError, SettingError
from mvray.storage import Storage

if TYPE_CHECKING:
    from mvray.experiment import Job

USER_MISTAKE, FAILED, INTERRUPTED = 2, 1, 130
STORAGE = "runs"


def job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB", help="a job file, as jobs/gradcam_masking.py")
    parser.add_argument("--tiny", action="store_true", help="the same job in minutes on two cores")
    parser.add_argument("--data", metavar="ROOT", help="where the data lies (a folder or s3://...)")
    parser.add_argument("--storage", default=STORAGE, metavar="URI", help="where results go (default: ./runs)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of the job")


def workers_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        metavar="N|MIN-MAX",
        help="training workers; MIN-MAX: as many as there is room for (0: in this process, without Ray)",
    )


def check_job_options(options: argparse.Namespace) -> None:
    """Raises UserError for what can be seen without loading the job file: torch and a job take seconds to load."""
    settings_of(options.set)
    Storage(options.storage)
    if not options.job.is_file():
        raise SettingError(f"There is no job file {options.job}. Expected a file as jobs/gradcam_masking.py.")
    if options.data and "://" not in options.data and not Path(options.data).is_dir():
        raise DataError(f"--data {options.data}: there is no such folder.")


def workers_of(text: str | None) -> tuple[int, int] | None:
    """The least and the most workers that --workers asks for; None where it was not given."""
    if text is None:
        return None
    numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    least = int(numbers[1]) if numbers else -1
    most = int(numbers[2] or least) if numbers else -1
    if not numbers or most < least or (numbers[2] and least < 1):
        raise SettingError(f"--workers {text}: expected 0 (no Ray) or more, or a range as in 2-8.")
    return least, most


def workers_for_api(text: str | None) -> int | tuple[int, int] | None:
    """--workers as mvray.run takes it."""
    workers = workers_of(text)
    return workers[1] if workers and workers[0] == workers[1] else workers


def settings_of(pairs: list[str]) -> dict[str, Any]:
    """The settings of all --set NAME=VALUE."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SettingError(f"--set {pair}: expected NAME=VALUE, as in --set masked.method.probability=0.3.")
        settings[name.strip()] = value
    return settings


def keywords_of(options: argparse.Namespace) -> dict[str, Any]:
    """What mvray.run, tune and report take of the options that name a job."""
    settings = settings_of(options.set)
    return {"data": options.data, "storage": options.storage, "settings": settings, "tiny": options.tiny}


def job_of(options: argparse.Namespace, only: str | None = None) -> Job:
    """The job that the options name, with its settings and workers."""
    from mvray import api
    from mvray.pipeline import check_only

    check_job_options(options)
    workers = workers_for_api(vars(options).get("workers"))
    job = api.load_job(options.job, options.tiny, options.data, settings_of(options.set), workers)
    check_only(job, only)
    return job


def same_options(options: argparse.Namespace) -> list[str]:
    words = ["--tiny"] if options.tiny else []
    words += ["--data", options.data] if options.data else []
    words += ["--storage", options.storage] if options.storage != STORAGE else []
    for setting in options.set:
        words += ["--set", setting]
    return words


def same_job(command: str, options: argparse.Namespace) -> str:
    """Another command for the same job with the same options, ready for a shell."""
    return shlex.join(["mvray", command, str(options.job), *same_options(options)])


def where_runs_are(storage: str) -> str:
    """The page with the runs, or the command that shows it."""
    from mvray.tracking import page, tracking_uri, without_password

    uri = tracking_uri(Storage(storage))
    if uri.startswith(("http://", "https://")):
        return page(without_password(uri))
    return shlex.join(["mvray", "ui", "--storage", storage])
