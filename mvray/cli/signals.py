"""How a command that works for long is interrupted. In the command line alone: a library leaves signals as they are."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mvray.cli.options import INTERRUPTED


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT (Ctrl-C) and SIGTERM end the run with checkpoints; a second Ctrl-C ends the process at once."""

    def again(number: int, _: object) -> None:
        if number == signal.SIGINT:
            print("\nmvray: ended at once. The same command goes on from the last checkpoint.", file=sys.stderr)
            os._exit(INTERRUPTED)  # Ray ends what this process leaves

    def first(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, again)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
