"""A command on a cluster that is joined, started again when the cluster was lost.

When the head of a cluster is lost, so is everything that Ray knew, and Ray's core ends the process of the driver in
the end, wherever that is. So the command works in a child process; this one, which knows no Ray, waits for it and
starts it again. What is finished is not done again; the rest goes on from its checkpoints. A child that was killed
(by the system, for memory) is started again as well.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

PATIENCE_S = 1200.0
"""How long the next child waits for the cluster."""
SOON_S = 60.0
MOST_SOON = 3
"""How often in a row a child may end that soon; after that the cause is not the cluster."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1


def supervised(work: Callable[[float], int]) -> int:
    """Do ``work(patience_s)`` in a child process, again after each loss of the cluster; returns its exit code.

    Signals go to the child. In the child this returns, or raises, what ``work`` does.
    """
    patience_s, soon = 0.0, 0
    while True:
        began_at = time.monotonic()
        sys.stdout.flush()
        reading, writing = os.pipe()
        passed: list[int] = []
        before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        parent, child = os.getpid(), os.fork()
        if child == 0:
            return _as_child(work, patience_s, parent, writing, before)
        os.close(writing)
        handlers = {number: signal.signal(number, _passing(child, passed)) for number in PASSED_ON}
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _, status = os.waitpid(child, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        in_order = bool(os.read(reading, 1))
        os.close(reading)
        code = os.waitstatus_to_exitcode(status)
        soon = soon + 1 if time.monotonic() - began_at < SOON_S else 0
        if in_order or passed or soon == MOST_SOON:
            return code if code >= 0 else 128 - code
        patience_s = PATIENCE_S
        print(
            f"mvray: the cluster was lost ({_ended(code)}); waiting up to {PATIENCE_S / 60:.0f} min for it, then going "
            "on from the last checkpoints. Ctrl-C ends that.",
            file=sys.stderr,
            flush=True,
        )


def _as_child(work: Callable[[float], int], patience_s: float, parent: int, writing: int, mask: set[int]) -> int:
    os.setpgid(0, 0)  # Ctrl-C at the terminal reaches the parent alone, which passes it on once
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        return work(patience_s)
    finally:
        os.write(writing, b".")


def _passing(child: int, passed: list[int]) -> Callable[[int, object], None]:
    def pass_on(number: int, _: object) -> None:
        passed.append(number)
        os.kill(child, number)

    return pass_on


def _ended(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
