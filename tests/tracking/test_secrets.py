"""A planted password reaches neither the outbox nor what is said nor MLflow's errors."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from servers import has_asked

from mvray.errors import ClusterError
from mvray.storage.storage import Storage
from mvray.tracking.tracker import Tracker

PLANTED = "planted-secret-9f3a"


@pytest.mark.slow
def test_a_password_in_the_server_s_address_is_not_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "other")
    caplog.set_level(logging.WARNING)
    tracker = Tracker(f"http://ada:{PLANTED}@127.0.0.1:1/ml", "toys", tmp_path / "outbox")
    tracker.start_run("toys", params={"seed": 1})
    has_asked(tracker)
    said = tracker.close(timeout_s=0)
    assert "Not delivered yet: 1 stale, 1 start" in said
    assert "127.0.0.1" in said  # MLflow's error names the address
    assert "Tracking is away" in caplog.text
    files = [file for file in (tmp_path / "outbox").rglob("*") if file.is_file()]
    assert files
    for text in (said, caplog.text, *(file.read_text() for file in files)):
        assert PLANTED not in text


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://KEY:{PLANTED}@bucket/runs",
        f"s3://{PLANTED}@bucket",
        f"s3://KEY:wJalrX/{PLANTED}@bucket/runs",
        f"s3://KEY:/{PLANTED}@bucket",
        f"S3://KEY:wJalrX/{PLANTED}@bucket",
        f"https://KEY:wJalrX/{PLANTED}@bucket",
    ],
)
def test_keys_in_an_address_are_refused_without_repeating_them(uri: str) -> None:
    with pytest.raises(ClusterError, match=r"Found a name or key before '@'.*expected s3://BUCKET/PREFIX") as raised:
        Storage(uri)
    assert PLANTED not in str(raised.value)
