"""Storage: the same behaviour on a local folder and on a real S3 server."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from s3_proxy import SLOW_DOWN, S3Proxy

from mvray.errors import ClusterError, DataError, StorageFailed, StorageRefused
from mvray.storage import s3 as s3_module
from mvray.storage.local import Entry
from mvray.storage.retry import RetryPolicy
from mvray.storage.s3 import is_path
from mvray.storage.storage import Storage

if TYPE_CHECKING:
    from seaweed import SeaweedFS

PART = 5 << 20  # S3 itself takes no smaller ones
QUICK = RetryPolicy(first_s=0.05, longest_s=0.1)
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


@everywhere
def test_what_is_replaced_meanwhile_is_read_whole(storage: Storage) -> None:
    texts = [b"short", b"long " * 500]
    storage.write("now.json", texts[0])
    ended = threading.Event()

    def replace() -> None:
        while not ended.is_set():
            for text in texts:
                storage.write("now.json", text)

    writing = threading.Thread(target=replace)
    writing.start()
    try:
        seen, reads = set(), 0
        while reads < 150 or (len(seen) < 2 and reads < 100_000):
            seen.add(storage.read("now.json"))
            reads += 1
        assert seen == set(texts)
    finally:
        ended.set()
        writing.join()


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
    assert time.monotonic() - started < 60, "a storage that is away is waited for later, not at the start"


def test_only_links_are_removed_not_what_they_point_to(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    storage = Storage(str(tmp_path / "runs"))
    storage.write("x", b"x")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "runs" / "folder").mkdir()
    (tmp_path / "runs" / "folder" / "link").symlink_to(tmp_path / "mine")
    storage.delete("link")
    storage.delete("folder")
    assert [entry.path for entry in storage.list()] == ["x"]
    assert (tmp_path / "mine" / "file").read_text() == "x"


@pytest.mark.parametrize("key", ["../x", "a/../x", "a//x", "/x", "a/./x", "..", "a/.."])
def test_keys_that_no_path_names_are_left_out(key: str) -> None:
    assert not is_path(key)


def test_links_to_folders_above_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_text("x")
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "beside").symlink_to("a")
    (tmp_path / "itself").symlink_to("itself")
    found = Storage(str(tmp_path)).list(recursive=True)
    assert found == [Entry("a/b/x", 1, False), Entry("beside/b/x", 1, False), Entry("itself", 0, False)]
    assert [entry.path for entry in Storage(str(tmp_path)).list() if entry.is_dir] == ["a", "beside", "loop"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "shut").mkdir()
    scandir = os.scandir

    def refuse(folder: Path) -> Any:
        if folder.name == "shut":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    with pytest.raises(DataError, match=rf"folder {tmp_path}/shut, which .*\(Permission denied\); expected .*chmod"):
        Storage(str(tmp_path)).list(recursive=True)
    with pytest.raises(ClusterError, match="cannot be read"):
        Storage(str(tmp_path / "shut")).check(write=False)


def test_ordinary_keys_are_paths() -> None:
    assert all(map(is_path, ("x", "a/x", "a/..x", "a/x..y", "a\\..\\x", "a b/ü")))


@pytest.fixture
def little_room() -> Iterator[None]:
    """Files may have 10 kB: for who writes, the disk is full beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(little_room: None, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("file", b"old")
    with pytest.raises(StorageFailed, match=r"file cannot be written: the disk is full .*20,000 bytes were wanted"):
        storage.write("file", bytes(20_000))
    assert not storage.try_write("file", bytes(20_000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with pytest.raises(ClusterError, match="disk is full"):
        storage.check()
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert storage.read("file") == b"old"
    limits = (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    threading.Timer(0.5, resource.setrlimit, (resource.RLIMIT_FSIZE, limits)).start()
    storage.insist("file", bytes(20_000), RetryPolicy(limit_s=60, first_s=0.1, longest_s=0.1))  # when there is room
    assert storage.read("file") == bytes(20_000)


# -- a server that fails -------------------------------------------------------------------------


@pytest.fixture
def proxy(s3: str, s3_server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    made = S3Proxy(s3_server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
    yield made
    made.close()


@pytest.mark.slow
def test_every_method_waits_for_a_busy_server(s3: str, proxy: S3Proxy, tmp_path: Path) -> None:
    storage = Storage(s3, QUICK)
    storage.write("a/x", bytes(1000))
    storage.write("a/z", b"z")
    calls = (
        lambda: storage.write("a/y", b"y"),
        lambda: storage.read("a/x"),
        lambda: storage.read_range("a/x", 10, 5),
        lambda: storage.download("a/x", tmp_path / "x"),
        lambda: storage.size("a/x"),
        lambda: storage.exists("a/x"),
        lambda: storage.list("a"),
        lambda: storage.delete("a/z"),
    )
    threads = []
    proxy.answer = lambda method, path: SLOW_DOWN
    for call in calls:
        refused = proxy.refused
        threads.append(threading.Thread(target=call))
        threads[-1].start()
        while proxy.refused < refused + len(threads) + 1:
            time.sleep(0.01)
    assert all(thread.is_alive() for thread in threads)
    proxy.answer = lambda method, path: None
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert [entry.path for entry in storage.list("a")] == ["a/x", "a/y"]


@pytest.mark.slow
def test_an_answer_that_breaks_off_is_asked_for_again(s3: str, proxy: S3Proxy) -> None:
    storage, content = Storage(s3, QUICK), os.urandom(300_000)
    storage.write("x", content)
    proxy.cut_after = 1000
    threading.Timer(0.5, setattr, (proxy, "cut_after", None)).start()
    assert storage.read("x") == content


@pytest.mark.slow
def test_what_is_refused_is_not_tried_again(s3: str, proxy: S3Proxy) -> None:
    storage = Storage(s3)
    proxy.answer = lambda method, path: (403, "AccessDenied")
    with pytest.raises(StorageRefused, match=r"s3://\S+ cannot be used .*AccessDenied(.|\n)*Check the name, AWS"):
        storage.write("x", b"x")
    proxy.answer = lambda method, path: (404, "NoSuchBucket")
    with pytest.raises(StorageRefused, match="NoSuchBucket"):
        storage.write("x", b"x")
    assert proxy.refused == 3  # one of each, and one that asks what time it is there


@pytest.mark.slow
@pytest.mark.parametrize("ahead_s", [-3600, 3600])
def test_a_wrong_clock_is_named(s3: str, proxy: S3Proxy, ahead_s: int) -> None:
    storage = Storage(s3)
    proxy.answer = lambda method, path: (403, "RequestTimeTooSkewed")
    proxy.date = formatdate(time.time() - ahead_s, usegmt=True)
    where = "ahead of" if ahead_s > 0 else "behind"
    with pytest.raises(ClusterError, match=rf"the clock of this machine is (59|60) minutes {where} .*Set the clock"):
        storage.check()
    with pytest.raises(StorageRefused, match="Set the clock: timedatectl"):
        storage.read("x")


@pytest.mark.slow
def test_it_gives_up_with_one_message(s3: str, proxy: S3Proxy) -> None:
    storage = Storage(s3, RetryPolicy(limit_s=0.5, first_s=0.1, longest_s=0.1))
    proxy.gone()
    with pytest.raises(StorageFailed, match=r"s3://mvray-tests does not answer: \d+ requests in \d s failed"):
        storage.size("x")


@pytest.mark.slow
def test_a_large_object_goes_in_parts_and_appears_whole(s3: str, proxy: S3Proxy) -> None:
    """A writer that is killed in the middle leaves the old object."""
    storage, content = Storage(s3), os.urandom(40 << 20)
    storage.write("x", b"old")
    child = os.fork()
    if not child:
        try:
            parts = 0

            def die(method: str, path: str) -> None:
                nonlocal parts
                parts += "partNumber" in path
                if parts == 3:
                    os._exit(9)

            mine = S3Proxy(f"http://{proxy.target}")
            mine.answer = die
            os.environ["AWS_ENDPOINT_URL"] = mine.endpoint
            Storage(s3).write("x", content)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert storage.read("x") == b"old"
    storage.write("x", content)
    assert storage.read("x") == content


def sizes(storage: Storage, path: str, until: threading.Thread) -> set[int]:
    """What others see of ``path`` while ``until`` runs; -1 where it is missing."""
    seen = set()
    while until.is_alive():
        seen.add(storage.size(path) if storage.exists(path) else -1)
        time.sleep(0.02)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "refusal"),
    [
        ("uploads", SLOW_DOWN),
        ("partNumber=2", (500, "InternalError")),
        ("uploadId", SLOW_DOWN),
    ],
)
def test_a_part_that_fails_for_a_while(s3: str, proxy: S3Proxy, part: str, refusal: tuple[int, str]) -> None:
    content, sent = os.urandom(PART * 5 // 2), []

    def answer(method: str, path: str) -> tuple[int, str] | None:
        query = path.partition("?")[2]
        meant = query.startswith(part) if part == "uploadId" else part in query
        sent.append(query)
        return refusal if meant and method in ("PUT", "POST") and proxy.refused < 3 else None

    proxy.answer = answer
    writing = threading.Thread(target=Storage(s3, QUICK, PART).write, args=("x", content))
    writing.start()
    seen = sizes(Storage(s3), "x", writing)
    writing.join()
    assert proxy.refused == 3
    assert seen <= {-1, len(content)}
    assert Storage(s3).read("x") == content
    once = [query for query in sent if "partNumber=3" in query]
    assert len(once) == 1, "what is stored is not sent again"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "refusal", "error"),
    [(1000, (403, "AccessDenied"), StorageRefused), (PART * 2, SLOW_DOWN, StorageFailed)],
)
def test_a_write_that_fails_for_good_leaves_nothing(
    s3: str,
    proxy: S3Proxy,
    refusal: tuple[int, str],
    error: type[Exception],
    size: int,
) -> None:
    storage, ended = Storage(s3, RetryPolicy(limit_s=0.3, first_s=0.1, longest_s=0.1), PART), []

    def answer(method: str, path: str) -> tuple[int, str] | None:
        ended.extend([path] * (method == "DELETE"))
        wanted = "partNumber=2" if size > PART else "/x"
        return refusal if method == "PUT" and wanted in path else None

    proxy.answer = answer
    with pytest.raises(error):
        storage.write("x", bytes(size))
    assert not storage.try_write("x", bytes(size))
    assert len(ended) == (2 if size > PART else 0), "each upload is ended"
    assert storage.list() == []


@pytest.mark.slow
def test_ctrl_c_ends_an_upload(s3: str, proxy: S3Proxy) -> None:
    asked: list[str] = []

    def answer(method: str, path: str) -> None:
        asked.append(f"{method} {path}")
        if "partNumber=2" in path:
            signal.raise_signal(signal.SIGINT)  # Python hands it to the main thread
            time.sleep(0.5)

    proxy.answer = answer
    with pytest.raises(KeyboardInterrupt):
        Storage(s3, QUICK, PART).write("x", bytes(PART * 3))
    assert "partNumber=3" not in " ".join(asked)
    assert asked[-1].startswith("DELETE")
    assert Storage(s3).list() == []


@pytest.mark.slow
def test_an_upload_that_s3_has_lost_begins_again(s3: str, proxy: S3Proxy) -> None:
    """As after an answer that was lost: what is complete is no upload any more."""
    content = os.urandom(PART * 2)
    lost = ["uploadId", "partNumber=2"]

    def answer(method: str, path: str) -> tuple[int, str] | None:
        if method in ("PUT", "POST") and lost and lost[-1] in path:
            lost.pop()
            return 404, "NoSuchUpload"
        return None

    proxy.answer = answer
    Storage(s3, QUICK, PART).write("x", content)
    assert not lost
    assert Storage(s3).read("x") == content
    proxy.answer = lambda method, path: (404, "NoSuchUpload") if "partNumber=2" in path else None
    with pytest.raises(StorageFailed, match=r"has lost the upload of s3://.*/y 3 times"):
        Storage(s3, QUICK, PART).write("y", content)
    assert not Storage(s3).exists("y")


@pytest.mark.slow
def test_an_upload_whose_answers_break_off_or_whose_server_goes(s3: str, proxy: S3Proxy) -> None:
    content = os.urandom(PART * 3)
    proxy.cut_after = 20
    threading.Timer(0.5, setattr, (proxy, "cut_after", None)).start()
    Storage(s3, QUICK, PART).write("x", content)
    assert Storage(s3).read("x") == content

    def go(method: str, path: str) -> None:
        if "partNumber=2" in path:
            proxy.answer = lambda method, path: None
            threading.Thread(target=proxy.gone).start()
            threading.Timer(0.5, proxy.back).start()
            time.sleep(0.3)

    proxy.answer = go
    Storage(s3, QUICK, PART).write("y", content)
    assert Storage(s3).read("y") == content


KEYS = """
import json, sys, time
from pathlib import Path
count = Path(sys.argv[1])
count.write_text(count.read_text() + "x" if count.exists() else "x")
until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 300))
print(json.dumps({"Version": 1, "AccessKeyId": "tester", "SecretAccessKey": "tests-only", "Expiration": until}))
"""


@pytest.mark.slow
def test_a_profile_with_a_credential_process(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's own chain does not know what AWS's tools know: roles, SSO; keys that expire are fetched anew."""
    (tmp_path / "keys.py").write_text(KEYS)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    command = f"{sys.executable} {tmp_path / 'keys.py'} {tmp_path / 'count'}"
    config = f"[profile lab]\nregion = eu-west-1\nendpoint_url = {endpoint}\ncredential_process = {command}\n"
    (tmp_path / "config").write_text(config)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    storage = Storage(s3)
    storage.check()
    storage.write("x", b"x")
    assert storage.read("x") == b"x"
    assert s3_module.endpoint() == endpoint
    assert len((tmp_path / "count").read_text()) >= 2  # they expire soon
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ClusterError, match=r"no credentials for S3: .*nobody(.|\n)*AWS_PROFILE"):
        storage.check()


@pytest.mark.slow
def test_a_profile_with_a_role(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        where = f"endpoint_url = http://{host}:{port}\nregion = us-east-1\n"
        role = "role_arn = arn:aws:iam::123456789012:role/mvray\nsource_profile = base\n"
        base = "aws_access_key_id = AKIABASE\naws_secret_access_key = secret\n"
        (tmp_path / "config").write_text(f"[profile base]\n{base}{where}[profile lab]\n{role}{where}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "lab")
        keys = s3_module._connection().credentials.get_frozen_credentials()
    finally:
        server.stop()
    assert keys.access_key.startswith("ASIA")  # of the role, not the base's
    assert keys.token


@pytest.mark.parametrize("content", [b"", b"\x00" * 30, b"\xff\xfe\xfd", b'{"a": ', b"[1]", b"3"])
def test_what_is_not_as_it_was_written_is_named(tmp_path: Path, content: bytes) -> None:
    storage = Storage(str(tmp_path / "step"))
    storage.write("metrics.json", content)
    with pytest.raises(DataError, match=rf"^{tmp_path}/step/metrics.json is not as .* or remove {tmp_path}/step: the"):
        storage.read_json("metrics.json", dict)
    storage.write("metrics.json", b'{"a": 1.5}')
    assert storage.read_json("metrics.json", dict) == {"a": 1.5}
