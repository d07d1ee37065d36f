"""How long a storage is waited for, as a decision and with a clock."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mvray.errors import StorageFailed
from mvray.storage import retry
from mvray.storage.retry import RetryPolicy, is_full, retried
from mvray.storage.s3 import S3Error, may_pass

QUICK = RetryPolicy(limit_s=0.3, first_s=0.01, longest_s=0.04, tell_after_s=0.05)


@pytest.fixture(autouse=True)
def _as_new() -> Iterator[None]:
    retry.begin()
    yield
    retry.begin()


def failing(*errors: OSError) -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


def test_pauses_double_to_a_limit_and_are_spread_out() -> None:
    how = RetryPolicy(first_s=0.5, longest_s=15)
    assert [how.pause_s(failures, 1.0) for failures in (1, 2, 3, 5, 6, 7, 5000)] == [0.5, 1, 2, 8, 15, 15, 15]
    assert how.pause_s(3, 0.0) == 1
    assert how.pause_s(3, 0.5) == 1.5


@pytest.mark.parametrize(
    ("code", "status", "passes"),
    [
        ("SlowDown", 503, True),
        ("503", 503, True),  # HEAD, whose answer has no body
        ("TooManyRequests", 429, True),
        ("InternalError", 500, True),
        ("InternalError", 0, True),  # of one key of many that are deleted at once
        ("RequestTimeout", 400, True),
        ("403", 403, False),
        ("NoSuchBucket", 404, False),
        ("InvalidAccessKeyId", 403, False),
        ("RequestTimeTooSkewed", 403, False),
        ("400", 400, False),
        ("301", 301, False),
        ("", 0, False),
    ],
)
def test_what_may_pass(code: str, status: int, passes: bool) -> None:
    assert may_pass(S3Error("x", code, status)) is passes


def test_a_server_that_is_away_may_come_back_and_what_is_missing_or_forbidden_may_not() -> None:
    assert may_pass(ConnectionError("away"))
    assert not may_pass(FileNotFoundError("x"))
    assert not may_pass(PermissionError("x"))


def test_a_full_disk() -> None:
    assert is_full(OSError(errno.ENOSPC, "x"))
    assert is_full(OSError(errno.EDQUOT, "x"))
    assert not is_full(OSError(errno.EACCES, "x"))


def test_what_passes_is_called_again_and_other_errors_are_not() -> None:
    away = ConnectionError("away")
    assert retried(failing(away, away, away), "s3://b", may_pass, QUICK) == "done"
    with pytest.raises(FileNotFoundError):
        retried(failing(away, FileNotFoundError("x")), "s3://b", may_pass, QUICK)


def test_it_ends_and_says_so() -> None:
    started = time.monotonic()
    with pytest.raises(
        StorageFailed, match=r"s3://b does not answer: \d+ requests in 0 s failed, .* with: away\n.*goes on"
    ):
        retried(failing(*[ConnectionError("away")] * 1000), "s3://b", may_pass, QUICK)
    assert time.monotonic() - started > 0.2
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageFailed, match=r"/runs is full .*Free some space"):
        retried(failing(*[full] * 1000), "/runs", is_full, QUICK)


def test_the_user_is_told_once_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    away = [ConnectionError("away")] * 6
    retried(failing(*away), "s3://c", may_pass, QUICK)
    assert [record.message for record in caplog.records] == [
        "s3://c does not answer for 0 s; trying on, for at most 0 s.",
        "s3://c answers again, after 0 s.",
    ]
    caplog.clear()
    retried(failing(*away[:1]), "s3://d", may_pass, QUICK)  # too short to be told
    assert caplog.records == []


def test_who_interrupts_does_not_wait() -> None:
    threading.Timer(0.2, retry.give_up).start()
    started = time.monotonic()
    with pytest.raises(StorageFailed):
        retried(failing(*[ConnectionError("away")] * 100), "s3://b", may_pass, RetryPolicy(first_s=30, longest_s=30))
    assert time.monotonic() - started < 25, "the pause is 30 s"
