"""Commands as tests give them: mvray's in this process, and git's."""

import contextlib
import io
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mvray.cli import main


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def mvray(*arguments: object) -> Said:
    """A command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


def git(root: Path, *words: str) -> str:
    names = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
    return subprocess.run(["git", *names, *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
