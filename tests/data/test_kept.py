"""Files on S3 that are read again: fetched once per node, within a limit, and never taken for others."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from processes import forked
from s3_proxy import S3Proxy

from mvray.data import node_cache
from mvray.data.dataset import SampleDataset
from mvray.data.frames import frames
from mvray.data.loader import dataset
from mvray.data.readers.folder import Folder
from mvray.data.readers.videos import Videos
from mvray.errors import DataError
from mvray.experiment.inputs import Clips, Pictures
from mvray.experiment.steps import Data
from mvray.storage.storage import Storage

if TYPE_CHECKING:
    from seaweed import SeaweedFS

TINY = Pictures(24, 24, 3)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this node keeps files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    node_cache.begin_task(20)
    yield tmp_path / f"mvray-{os.getuid()}" / "files"
    node_cache.begin_task(20)


@pytest.fixture
def proxy(s3_server: SeaweedFS, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    made = S3Proxy(s3_server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
    yield made
    made.close()


def on_s3(folder: Path, uri: str) -> str:
    there = Storage(uri)
    for entry in Storage(str(folder)).list(recursive=True):
        there.write(entry.path, (folder / entry.path).read_bytes())
    return uri


def epoch(samples: SampleDataset, number: int = 0) -> list[np.ndarray]:
    return [next(iter(samples[row, number].values())) for row in range(len(samples))]


def files(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


@pytest.mark.slow
def test_the_second_epoch_fetches_nothing(drawings: Path, s3: str, proxy: S3Proxy, place: Path) -> None:
    data = Data(Folder(on_s3(drawings, s3)), TINY)
    rows, before = data.source.index().rows, proxy.served
    samples = dataset(data, rows)
    assert proxy.served == before, "nothing is fetched before it is asked for"
    first = epoch(samples)
    assert proxy.served - before >= len(rows)
    assert len(files(place)) == len(rows)
    before = proxy.served
    again = epoch(samples, 1), epoch(dataset(copy.deepcopy(data), rows))  # as another worker has it
    assert proxy.served == before
    here = epoch(dataset(replace(data, source=Folder(str(drawings))), rows))
    assert all(np.array_equal(a, b) and np.array_equal(a, c) for a, b, c in zip(first, again[0], here, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first, again[1], strict=True))
    proxy.gone()
    assert len(epoch(samples, 2)) == len(rows)


@pytest.mark.slow
def test_of_an_object_that_was_replaced_the_old_copy_is_not_used(
    drawings: Path, s3: str, proxy: S3Proxy, place: Path
) -> None:
    data = Data(Folder(on_s3(drawings, s3)), TINY)
    rows = data.source.index().rows
    epoch(dataset(data, rows))
    name, kept = rows["location"][0].as_py(), files(place)
    Storage(s3).write(name, Storage(s3).read(name) + b"\0")
    data = replace(data, source=Folder(s3))
    rows = data.source.index().rows
    before = proxy.served
    epoch(dataset(data, rows))
    assert proxy.served > before
    assert len(files(place)) == len(kept) + 1


@pytest.mark.slow
def test_videos_that_are_read_whole_are_kept(videos: Path, s3: str, proxy: S3Proxy, place: Path) -> None:
    data = Data(Videos(on_s3(videos, s3)), Clips(frames=2, height=24, width=24))
    rows = data.source.index().rows
    assert sum(1 for _ in frames(data.source, rows, every=50)) >= len(rows)
    before = proxy.served
    epoch(dataset(data, rows))
    assert proxy.served == before
    assert len(files(place)) == len(rows)


def test_local_files_are_not_copied(drawings: Path, place: Path) -> None:
    data = Data(Folder(str(drawings)), TINY)
    epoch(dataset(data, data.source.index().rows))
    assert files(place) == []


def test_what_is_not_what_it_should_be_is_read_again(place: Path) -> None:
    asked: list[int] = []

    def read() -> bytes:
        asked.append(1)
        return b"content"

    assert node_cache.fetch_once("a", 7, read) == node_cache.fetch_once("a", 7, read) == b"content"
    assert len(asked) == 1
    (file,) = place.iterdir()
    for spoilt in (b"", b"cont", b"content and more"):
        file.write_bytes(spoilt)
        assert node_cache.fetch_once("a", 7, read) == b"content"
        assert file.read_bytes() == b"content"
    assert len(asked) == 4
    assert node_cache.fetch_once("a", 8, read) == b"content"  # replaced meanwhile: given, not kept
    assert node_cache.fetch_once("b", 7, read) == b"content"
    assert len(asked) == 6
    assert len(files(place)) == 2


def test_it_stays_within_the_limit(place: Path) -> None:
    """Of more data than the limit a part is kept, the same in each epoch; what earlier tasks left makes room."""
    node_cache.begin_task(100_000 / 2**30)

    def fetched(prefix: str) -> int:
        count = []
        for n in range(200):
            node_cache.fetch_once(f"{prefix}{n}", 1000, lambda: count.append(1) or bytes(1000))
        return len(count)

    def bytes_kept() -> int:
        return sum(path.stat().st_size for path in place.iterdir())

    assert fetched("a") == 200
    assert 85_000 <= bytes_kept() <= 100_000
    kept = files(place)
    assert fetched("a") == 200 - len(kept)
    assert files(place) == kept
    time.sleep(0.05)
    node_cache.begin_task(100_000 / 2**30)
    assert fetched("b") == 200
    assert bytes_kept() <= 100_000
    assert len(set(files(place)) & set(kept)) < 20
    node_cache.begin_task(0)
    assert fetched("c") == 200


def test_a_full_disk_is_done_without(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    tries: list[Path] = []

    def full(path: Path, _: bytes) -> int:
        tries.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for n in range(5):
        assert node_cache.fetch_once(str(n), 1, lambda: b"x") == b"x"
    assert len(tries) == 1, "not tried again at once"
    assert [record.message for record in caplog.records] == [
        f"{place} is full: work goes on without a copy of the data there, slower. Free some space, or set TMPDIR."
    ]
    assert files(place) == []


def fetched() -> int:
    """How often files are read from afar when each is asked for three times."""
    count: list[int] = []
    for _ in range(3):
        for n in range(100):
            content = node_cache.fetch_once(str(n), 1000, lambda n=n: count.append(1) or bytes([n]) * 1000)
            assert content == bytes([n]) * 1000
    return len(count)


def test_processes_share_what_they_fetch(place: Path) -> None:
    both = [forked(lambda pipe: pipe.send(fetched())) for _ in range(2)]
    assert 100 <= sum(pipe.recv() for _, pipe in both) <= 200
    assert fetched() == 0
    assert len(files(place)) == 100


def test_a_place_that_another_user_has_made_is_refused(place: Path, tmp_path: Path, monkeypatch) -> None:
    """In a folder for all, another user may have put a link of the name, or files that look like ours."""
    mine = os.getuid()
    node_cache.fetch_once("a", 1, lambda: b"x")
    node_cache.build_once(place / "b.arrow", lambda file: file.write_bytes(b"x"))
    node_cache.begin_task(20)
    stat = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda path: os.stat_result((*stat(path)[:4], mine + 1, *stat(path)[5:10])))
    with pytest.raises(DataError, match="belongs to another user"):
        node_cache.fetch_once("a", 1, lambda: b"x")
    with pytest.raises(DataError, match="belongs to another user"):
        node_cache.build_once(place / "b.arrow", lambda file: file.write_bytes(b"x"))
