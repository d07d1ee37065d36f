"""How long a storage is waited for, as a decision and with a clock."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mvray.errors import StorageFailed
from mvray.storage import retry
from mvray.storage.retry import Patience, is_full, may_pass, waited

QUICK = Patience(limit_s=0.3, first_s=0.01, longest_s=0.04, tell_after_s=0.05)


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
    how = Patience(first_s=0.5, longest_s=15)
    assert [how.pause_s(failures, 1.0) for failures in (1, 2, 3, 5, 6, 7, 5000)] == [0.5, 1, 2, 8, 15, 15, 15]
    assert how.pause_s(3, 0.0) == 1
    assert how.pause_s(3, 0.5) == 1.5


@pytest.mark.parametrize(
    ("text", "passes"),
    [  # as Arrow 25 says it
        ("uploading object: AWS Error SLOW_DOWN during PutObject operation: Please reduce", True),
        ("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", True),
        ("AWS Error UNKNOWN (HTTP status 429) during PutObject operation: Unable to parse ExceptionName: Too", True),
        ("AWS Error INTERNAL_FAILURE during ListObjectsV2 operation: We", True),
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18, Transferred a partial file", True),
        ("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 28, Timeout was reached", True),
        ("AWS Error REQUEST_TIMEOUT during PutObject operation: Your socket", True),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", False),
        ("AWS Error NO_SUCH_BUCKET during PutObject operation: The specified bucket does not exist", False),
        ("AWS Error INVALID_ACCESS_KEY_ID during PutObject operation: x", False),
        ("AWS Error SIGNATURE_DOES_NOT_MATCH during PutObject operation: x", False),
        ("AWS Error REQUEST_TIME_TOO_SKEWED during PutObject operation: x", False),
        ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", False),
        ("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation: No response body.", False),
        ("something else", False),
    ],
)
def test_what_may_pass(text: str, passes: bool) -> None:
    assert may_pass(OSError(text)) is passes
    assert not may_pass(FileNotFoundError(text))
    assert not may_pass(PermissionError(text))


def test_a_full_disk() -> None:
    assert is_full(OSError(errno.ENOSPC, "x"))
    assert is_full(OSError(errno.EDQUOT, "x"))
    assert not is_full(OSError(errno.EACCES, "x"))


def test_what_passes_is_called_again_and_other_errors_are_not() -> None:
    away = ConnectionError("away")
    assert waited(failing(away, away, away), "s3://b", may_pass, QUICK) == "done"
    with pytest.raises(FileNotFoundError):
        waited(failing(away, FileNotFoundError("x")), "s3://b", may_pass, QUICK)


def test_it_ends_and_says_so() -> None:
    started = time.monotonic()
    with pytest.raises(
        StorageFailed, match=r"s3://b does not answer: \d+ requests in 0 s failed, .* with: away\n.*goes on"
    ):
        waited(failing(*[ConnectionError("away")] * 1000), "s3://b", may_pass, QUICK)
    assert time.monotonic() - started > 0.2
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageFailed, match=r"/runs is full .*Free some space"):
        waited(failing(*[full] * 1000), "/runs", is_full, QUICK)


def test_the_user_is_told_once_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    away = [ConnectionError("away")] * 6
    waited(failing(*away), "s3://c", may_pass, QUICK)
    assert [record.message for record in caplog.records] == [
        "s3://c does not answer for 0 s; trying on, for at most 0 s.",
        "s3://c answers again, after 0 s.",
    ]
    caplog.clear()
    waited(failing(*away[:1]), "s3://d", may_pass, QUICK)  # too short to be told
    assert caplog.records == []


def test_who_interrupts_does_not_wait() -> None:
    threading.Timer(0.2, retry.give_up).start()
    started = time.monotonic()
    with pytest.raises(StorageFailed):
        waited(failing(*[ConnectionError("away")] * 100), "s3://b", may_pass, Patience(first_s=30, longest_s=30))
    assert time.monotonic() - started < 25, "the pause is 30 s"
