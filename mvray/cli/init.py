"""mvray init: a folder with a method, a job and a test of one's own."""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from mvray.errors import SettingError

FILES = ("method.py", "job.py", "test_method.py", "README.md")


def add(commands: Any) -> None:
    init = commands.add_parser("init", help="write a folder with a method, a job and a test to start from")
    init.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder, or one without such files")
    init.set_defaults(command=_init)


def _init(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    existing = [name for name in FILES if (folder / name).exists()]
    if existing:
        raise SettingError(f"{folder} has {', '.join(existing)} already; expected a new folder. Name another one.")
    name = re.sub(r"\W+", "_", folder.resolve().name).strip("_").lower() or "own"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            text = (files("mvray.cli") / "template" / f"{file}.in").read_text()
            (folder / file).write_text(text.format(name=name, folder=folder))
    except OSError as error:
        raise SettingError(
            f"{folder} cannot be written ({error.strerror}); expected a folder that can. Name another one."
        ) from None
    print(f"Wrote {', '.join(FILES)} to {folder}.")
    print(f"Try it:   python -m pytest {folder}")
    print(f"Run it:   mvray run {folder / 'job.py'} --tiny --data FOLDER   (a folder of pictures for each class)")
    return 0
