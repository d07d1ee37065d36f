"""mvray run | tune | report | submit | jobs | logs | stop | look | group | find | ui
| deliver | doctor | sample | init: the command line.

Nothing heavy is imported here, so that help and a mistake in an option take a fraction of a second.
Each module beside this one adds the commands of its subject.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
from typing import Any

from mvray import __version__
from mvray.cli import init, jobs, pictures, places, samples, searching, submitting
from mvray.cli.options import FAILED, INTERRUPTED, USER_MISTAKE
from mvray.errors import MvrayError, UserError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (a step failed), 2 (a mistake to mend), 130 (interrupted)."""
    if not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__ or sys.stderr)  # a crash in a C++ library prints where it was
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options) or 0
        return code
    except UserError as error:
        print(f"mvray: {error}", file=sys.stderr)
        return USER_MISTAKE
    except MvrayError as error:
        print(f"mvray: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\nmvray: interrupted. The same command goes on where it stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


class _Command(argparse.ArgumentParser):
    """A command, which shows its own usage where an option is unknown, not that of `mvray`."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mvray",
        description="Distributed training on Ray for vision methods: where a network looks, how it groups.",
    )
    parser.add_argument("--version", action="version", version=f"mvray {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)
    for subject in (jobs, searching, submitting, pictures, places, samples, init):
        subject.add(commands)
    return parser
