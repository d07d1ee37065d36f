"""Storage: the same behaviour on a local folder and on a real S3 server."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import pytest

from mvray.errors import ClusterError, DataError
from mvray.storage import Entry, Storage

PLACES = ["local", pytest.param("s3", marks=pytest.mark.slow)]


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "root with space"))
    return Storage(request.getfixturevalue("s3"))


everywhere = pytest.mark.parametrize("storage", PLACES, indirect=True)


@everywhere
def test_what_is_written_is_read_again(storage: Storage) -> None:
    storage.write("a/b 100% ü.bin", b"0123456789")
    storage.write("a/b 100% ü.bin", b"abcdefghij")
    assert storage.read("a/b 100% ü.bin") == b"abcdefghij"
    assert storage.read_range("a/b 100% ü.bin", 2, 3) == b"cde"
    assert storage.read_range("a/b 100% ü.bin", 8, 30) == b"ij"
    assert storage.size("a/b 100% ü.bin") == 10
    storage.write("a/empty", b"")
    assert storage.read("a/empty") == b""


@everywhere
def test_list_is_sorted_and_relative(storage: Storage) -> None:
    for path in ("b/2", "b/1", "a", "b/c/3"):
        storage.write(path, b"xy")
    assert storage.list() == [Entry("a", 2, False), Entry("b", 0, True)]
    assert storage.list("b") == [Entry("b/1", 2, False), Entry("b/2", 2, False), Entry("b/c", 0, True)]
    assert [entry.path for entry in storage.list(recursive=True)] == ["a", "b/1", "b/2", "b/c/3"]
    assert [entry.path for entry in storage.child("b").list(recursive=True)] == ["1", "2", "c/3"]
    assert storage.list("nothing") == []


@everywhere
def test_exists_and_delete(storage: Storage) -> None:
    storage.write("a/1", b"x")
    storage.write("a/2", b"x")
    storage.write("ab", b"x")
    assert storage.exists("a")
    assert storage.exists("a/1")
    assert not storage.exists("a/3")
    storage.delete("a/1")
    assert not storage.exists("a/1")
    storage.delete("a")
    storage.delete("a")
    assert [entry.path for entry in storage.list(recursive=True)] == ["ab"]


@everywhere
def test_a_missing_file_is_file_not_found(storage: Storage, tmp_path: Path) -> None:
    storage.write("folder/x", b"x")
    for call in (storage.read, storage.size, lambda path: storage.read_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError):
            call("none")
    with pytest.raises(FileNotFoundError):
        storage.size("folder")
    with pytest.raises(FileNotFoundError):
        storage.download("none", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@everywhere
def test_download(storage: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * 100_000  # more than one part of an S3 upload
    storage.write("deep/er/file.gz", content)  # whose ending must not mean anything
    assert storage.size("deep/er/file.gz") == len(content)
    storage.download("deep/er/file.gz", tmp_path / "new folder" / "target")
    assert (tmp_path / "new folder" / "target").read_bytes() == content


@everywhere
def test_paths_cannot_leave_the_root(storage: Storage) -> None:
    for path in ("../x", "a/../../x", "/etc/passwd"):
        for call in (storage.read, storage.exists, storage.delete, storage.child, storage.list):
            with pytest.raises(DataError, match="below"):
                call(path)


@everywhere
def test_pickles_and_compares_by_address(storage: Storage) -> None:
    storage.write("x", b"1")
    copy = pickle.loads(pickle.dumps(storage))  # noqa: S301 - our own bytes
    assert copy == storage
    assert hash(copy) == hash(storage)
    assert copy.read("x") == b"1"


@everywhere
def test_check_leaves_nothing_behind(storage: Storage) -> None:
    storage.check()
    assert storage.list(recursive=True) == []


def test_local_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage("runs/../runs/").uri == str(tmp_path / "runs")
    assert Storage(f"file://{tmp_path}/a%20b").uri == str(tmp_path / "a b")
    assert Storage("runs").local("x") == tmp_path / "runs" / "x"
    assert Storage("runs").full("x/y") == str(tmp_path / "runs" / "x" / "y")
    assert Storage("runs").is_local
    assert Storage("/").child("tmp").uri == "/tmp"  # noqa: S108 - only its name


def test_s3_addresses() -> None:
    storage = Storage("s3://bucket/a//b/")
    assert storage.uri == "s3://bucket/a/b"
    assert storage.child("c").uri == "s3://bucket/a/b/c"
    assert storage.full("x") == "s3://bucket/a/b/x"
    assert storage.local("x") is None
    assert not storage.is_local


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://host/x", "s3://", "s3:///x"])
def test_an_unknown_scheme_is_refused_in_words(uri: str) -> None:
    with pytest.raises(ClusterError, match="expected a local folder or s3://BUCKET"):
        Storage(uri)


def test_files_on_the_way_are_not_listed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("done", b"x")
    (tmp_path / ".other.0123.partial").write_bytes(b"half")
    assert storage.list() == [Entry("done", 1, False)]


def test_a_local_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ClusterError, match="cannot be written"):
        Storage(str(tmp_path / "file")).check()


@pytest.mark.slow
def test_missing_bucket_wrong_keys_and_no_server(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"s3://not-there/x cannot be written .*\n?.*Expected a bucket that exists"):
        Storage("s3://not-there/x").check()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ClusterError, match="signature"):
        Storage(s3).check()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"endpoint: http://127.0.0.1:1.*connect"):
        Storage(s3).check()
    with pytest.raises(ClusterError, match=r"cannot be read \(endpoint: http://127.0.0.1:1\)"):
        Storage(s3).check(write=False)
    assert time.monotonic() - started < 5
