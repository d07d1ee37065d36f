"""Waiting for a storage that fails for a while: what may pass, how long it is waited for, what the user is told."""

from __future__ import annotations

import errno
import logging
import random
import re
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
_AWS = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_PASSES = frozenset(
    ("SLOW_DOWN", "THROTTLING", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "NETWORK_CONNECTION", "REQUEST_TIMEOUT")
)
_PASSING_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504, 507))


@dataclass(frozen=True)
class Patience:
    """How long a storage is waited for: pauses from ``first_s`` that double up to ``longest_s``, ``limit_s`` in all.

    The user is told after ``tell_after_s``, once for each time that it is away.
    """

    limit_s: float = 300.0
    first_s: float = 0.5
    longest_s: float = 15.0
    tell_after_s: float = 20.0

    def pause_s(self, failures: int, drawn: float) -> float:
        """The pause after so many failures (from 1). ``drawn``, 0 to 1, spreads out those who wait for the same."""
        whole = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return whole * (0.5 + 0.5 * drawn)


PATIENCE = Patience()
FOR_ROOM = Patience(limit_s=600.0, first_s=2.0)
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


def reason(error: OSError) -> tuple[str, int]:
    """S3's name for an error and the HTTP status, "" and 0 where they are not known."""
    found = _AWS.search(str(error))
    return (found[1], int(found[2] or 0)) if found else ("", 0)


def may_pass(error: OSError) -> bool:
    """Whether the same request to S3 may succeed later: it is busy, away or slow. False for what it refuses."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    name, status = reason(error)
    return name in _PASSES or status in _PASSING_STATUS or isinstance(error, ConnectionError | TimeoutError)


def is_full(error: OSError) -> bool:
    """Whether the disk had no room."""
    return error.errno in FULL


def waited(call: Callable[[], T], name: str, passes: Callable[[OSError], bool], patience: Patience = PATIENCE) -> T:
    """What ``call`` returns, called again while ``passes`` says of its error that it may pass.

    Raises StorageFailed when that takes longer than ``patience``, other errors at once.
    """
    failures, since_s = 0, time.monotonic()
    while True:
        try:
            done = call()
        except OSError as error:
            if not passes(error):
                raise
            failures += 1
            away_s, pause_s = time.monotonic() - since_s, patience.pause_s(failures, random.random())
            if away_s + pause_s > patience.limit_s or _given_up.is_set():
                raise StorageFailed(_gave_up(name, away_s, failures, error)) from error
            if away_s > patience.tell_after_s:
                _tell(
                    name, f"{name} {_what(error)} for {away_s:.0f} s; trying on, for at most {patience.limit_s:.0f} s."
                )
            _given_up.wait(pause_s)
        else:
            if failures and name in _told:
                _told.discard(name)
                _say(f"{name} answers again, after {time.monotonic() - since_s:.0f} s.")
            return done


def _what(error: OSError) -> str:
    return "is full" if is_full(error) else "does not answer"


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
    _say(text)


def _say(text: str) -> None:
    log.disabled = False  # MLflow's database migrations switch off every logger there is
    log.warning(text)
