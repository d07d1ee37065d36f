"""Waiting for a storage that fails for a while: how long, and what the user is told."""

from __future__ import annotations

import errno
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mvray.errors import StorageFailed

T = TypeVar("T")

log = logging.getLogger(__name__)

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""What the system says where a disk, a user's share of it, or what a process may write is full."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a storage is waited for: pauses from ``first_s`` that double up to ``longest_s``, ``limit_s`` in all.

    The user is told after ``tell_after_s``, once for each time that it is away.
    """

    limit_s: float = 300.0
    first_s: float = 0.5
    longest_s: float = 15.0
    tell_after_s: float = 20.0

    def pause_s(self, failures: int, spread: float) -> float:
        """The pause after so many failures (from 1). ``spread``, 0 to 1, keeps apart those who wait for the same."""
        pause_s = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return pause_s * (0.5 + 0.5 * spread)


FOR_ROOM = RetryPolicy(limit_s=600.0, first_s=2.0)
"""For what must be written in the end, while somebody makes room on the disk."""

_given_up = threading.Event()
_told: set[str] = set()
_lock = threading.Lock()


def give_up() -> None:
    """From now on nobody in this process waits: the user has interrupted it."""
    _given_up.set()


def begin() -> None:
    """A new run in this process, which waits again."""
    _given_up.clear()


def is_full(error: OSError) -> bool:
    """Whether the disk had no room."""
    return error.errno in FULL


def retried(call: Callable[[], T], name: str, may_pass: Callable[[OSError], bool], policy: RetryPolicy) -> T:
    """What ``call`` returns, called again while ``may_pass`` says of its error that it may.

    Raises StorageFailed when that takes longer than ``policy`` allows, other errors at once.
    """
    failures, since_s = 0, time.monotonic()
    while True:
        try:
            result = call()
        except OSError as error:
            if not may_pass(error):
                raise
            failures += 1
            away_s, pause_s = time.monotonic() - since_s, policy.pause_s(failures, random.random())
            if away_s + pause_s > policy.limit_s or _given_up.is_set():
                raise StorageFailed(_gave_up(name, away_s, failures, error)) from error
            if away_s > policy.tell_after_s:
                state = "is full" if is_full(error) else "does not answer"
                _tell(name, f"{name} {state} for {away_s:.0f} s; trying on, for at most {policy.limit_s:.0f} s.")
            _given_up.wait(pause_s)
        else:
            if failures and name in _told:
                _told.discard(name)
                _warn(f"{name} answers again, after {time.monotonic() - since_s:.0f} s.")
            return result


def _gave_up(name: str, away_s: float, failures: int, error: OSError) -> str:
    if is_full(error):
        return f"{name} is full ({error}). Free some space; the same command goes on with what is stored."
    return (
        f"{name} does not answer: {failures} requests in {away_s:.0f} s failed, the last with: {error}\n"
        "Expected an answer. Check the network and the server; the same command goes on with what is stored."
    )


def _tell(name: str, text: str) -> None:
    with _lock:
        if name in _told:
            return
        _told.add(name)
    _warn(text)


def _warn(text: str) -> None:
    log.disabled = False  # MLflow's database migrations switch off every logger there is
    log.warning(text)
