"""What commands of more than one subject share: exit codes, and the options that name a job."""

from __future__ import annotations

import argparse
from pathlib import Path

USER_MISTAKE, FAILED, INTERRUPTED = 2, 1, 130
STORAGE = "runs"


def job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB", help="a job file, as jobs/gradcam_masking.py")
    parser.add_argument("--tiny", action="store_true", help="the same job in minutes on two cores")
    parser.add_argument("--data", metavar="ROOT", help="where the data lies (a folder or s3://...)")
    parser.add_argument("--storage", default=STORAGE, metavar="URI", help="where results go (default: ./runs)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of the job")


def same_options(given: argparse.Namespace) -> list[str]:
    options = ["--tiny"] if given.tiny else []
    options += ["--data", given.data] if given.data else []
    options += ["--storage", given.storage] if given.storage != STORAGE else []
    for setting in given.set:
        options += ["--set", setting]
    return options
