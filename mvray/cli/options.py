"""What commands of more than one subject share: exit codes, and the options that name a job."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from mvray.errors import SettingError

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


def workers_of(text: str | None) -> tuple[int, int] | None:
    """The least and the most workers that --workers asks for; None where it was not given."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    least = int(found[1]) if found else -1
    most = int(found[2] or least) if found else -1
    if not found or most < least or (found[2] and least < 1):
        raise SettingError(f"--workers {text}: expected 0 (no Ray) or more, or a range as in 2-8.")
    return least, most


def same_options(given: argparse.Namespace) -> list[str]:
    options = ["--tiny"] if given.tiny else []
    options += ["--data", given.data] if given.data else []
    options += ["--storage", given.storage] if given.storage != STORAGE else []
    for setting in given.set:
        options += ["--set", setting]
    return options


def same_job(command: str, given: argparse.Namespace) -> str:
    """Another command for the same job with the same options, ready for a shell."""
    return shlex.join(["mvray", command, str(given.job), *same_options(given)])
