"""Copies of what waits, in a local folder and on S3 (slow), from where another machine delivers it."""

import json
import logging
import shutil
import time

import pytest

from mvray.storage.storage import Storage
from mvray.tracking import outbox_backup
from mvray.tracking.outbox import Delivery, Outbox
from mvray.tracking.outbox_backup import OutboxCopy, fetch, forget, waiting_for


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def storage(request, tmp_path):
    uri = str(tmp_path / "storage") if request.param == "local" else request.getfixturevalue("s3")
    return Storage(uri)


@pytest.fixture
def outbox(tmp_path):
    outbox = Outbox.create(tmp_path / "node", "there")
    yield outbox
    outbox.close()


def put(outbox, *numbers):
    for n in numbers:
        outbox.append({"kind": "metrics", "run": "a", "n": n})


def deliver(storage, parent):
    """What a delivery on another machine brings."""
    taken = []

    def post(events, files):
        for event in events:
            taken.append(event["n"] if "n" in event else (files / event["content"]).read_bytes())

    fetch(storage, parent, "there", claim_s=0.1)
    assert Delivery(post).deliver_left(parent, "there") == ""
    forget(storage, parent, "there")
    return taken


def vanish(outbox):
    """The node goes, and its disk."""
    outbox.close()
    shutil.rmtree(outbox.folder)


def test_an_ended_execution_leaves_what_waits(storage, outbox, tmp_path):
    put(outbox, 1, 2, 3)
    Delivery(lambda events, files: None).deliver(outbox)
    copy = OutboxCopy(outbox, storage, interval_s=0.2)
    time.sleep(0.5)
    assert storage.list(".spool") == [], "everything is delivered"
    put(outbox, 4, 5)
    outbox.append({"kind": "file", "run": "a", "content": outbox.keep(b"picture")})
    until = time.monotonic() + 30
    while not waiting_for(storage) and time.monotonic() < until:
        time.sleep(0.1)
    assert waiting_for(storage) == ["there"]
    other = tmp_path / "other"
    other.mkdir()
    assert deliver(storage, other) == [], "its execution goes on"
    put(outbox, 6)
    assert copy.close() == f"A copy of them is in {storage.uri}/.spool/{outbox.folder.name}."
    vanish(outbox)
    fetch(storage, other, "elsewhere", claim_s=0.1)
    assert list(other.iterdir()) == [], "it is not for that address"
    assert deliver(storage, other) == [4, 5, b"picture", 6]
    assert list(other.iterdir()) == []
    assert waiting_for(storage) == []
    assert deliver(storage, other) == []


def test_a_copy_counts_only_once_its_execution_is_known_to_go_on(storage, outbox, tmp_path, monkeypatch):
    """Whichever files of the first copy are there already, nobody fetches it."""
    other = tmp_path / "other"
    other.mkdir()
    write, fetched = Storage.write, []

    def slow(self, path, data):
        write(self, path, data)
        if path != "claim":
            fetched.append((path, deliver(storage, other)))

    put(outbox, 1, 2)
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write", slow)
        copy = OutboxCopy(outbox, storage, interval_s=1000)
        assert copy.close() != ""  # copies what waits
    assert [path for path, _ in fetched] == ["events-000000000000000", "writer", "address"]
    assert all(taken == [] for _, taken in fetched)
    assert deliver(storage, other) == [1, 2]


def test_a_killed_execution_is_taken_over_after_a_while(storage, outbox, tmp_path):
    put(outbox, 1, 2)
    copy = OutboxCopy(outbox, storage, interval_s=0.1)
    until = time.monotonic() + 30
    while not storage.exists(f".spool/{outbox.folder.name}/writer") and time.monotonic() < until:
        time.sleep(0.1)
    vanished = time.time()
    copy._ended.set()  # as when its process is killed: the rest of close() never comes
    copy._thread.join()
    vanish(outbox)
    other = tmp_path / "other"
    other.mkdir()
    assert deliver(storage, other) == []
    place = storage.child(f".spool/{outbox.folder.name}")
    place.write("writer", str(vanished - outbox_backup.GONE_S - 1).encode())
    assert deliver(storage, other) == [1, 2]


def test_what_arrived_in_the_end_leaves_no_copy(storage, outbox):
    put(outbox, 1)
    copy = OutboxCopy(outbox, storage, interval_s=0.1)
    until = time.monotonic() + 30
    while not waiting_for(storage) and time.monotonic() < until:
        time.sleep(0.1)
    Delivery(lambda events, files: None).deliver(outbox)
    assert copy.close() == ""
    assert waiting_for(storage) == []


def test_only_one_fetches(storage, outbox, tmp_path):
    put(outbox, 1)
    OutboxCopy(outbox, storage).close()
    vanish(outbox)
    place = storage.child(storage.list(".spool")[0].path)
    place.write("claim", f"{time.time()} another".encode())
    (tmp_path / "other").mkdir()
    assert deliver(storage, tmp_path / "other") == []
    place.write("claim", f"{time.time() - outbox_backup.GONE_S - 1} another".encode())
    assert deliver(storage, tmp_path / "other") == [1]


def test_a_delivery_that_failed_goes_on_from_the_copy(storage, outbox, tmp_path):
    put(outbox, 1, 2)
    OutboxCopy(outbox, storage).close()
    vanish(outbox)
    other = tmp_path / "other"
    other.mkdir()
    fetch(storage, other, "there", claim_s=0.1)
    forget(storage, other, "there")
    assert waiting_for(storage) == ["there"], "it still waits in the folder"
    (folder,) = other.iterdir()
    assert [json.loads(line)["n"] for line in (folder / "events.jsonl").read_text().splitlines()] == [1, 2]
    assert deliver(storage, other) == [1, 2]
    assert waiting_for(storage) == []


SOUND = {"kind": "file", "run": "a", "experiment": "e", "path": "x.png", "content": "0" * 32}


@pytest.mark.parametrize(
    "event",
    [
        {**SOUND, "content": "PLACE/victim"},
        {**SOUND, "content": "../../../victim"},
        {**SOUND, "content": "0" * 32 + "\n"},
        {**SOUND, "content": None},
        {**SOUND, "path": "/victim"},
        {**SOUND, "path": "../../victim"},
        {**SOUND, "path": "a\\..\\victim"},
        {**SOUND, "path": "a\0b"},
        {"kind": "file"},
        ["no event"],
    ],
)
def test_what_mvray_does_not_write_is_left_aside(storage, tmp_path, caplog, event):
    """Who may write to the bucket could have had any file of ours uploaded, and removed then."""
    caplog.set_level(logging.WARNING, "mvray.tracking.outbox_backup")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    bad, good = (storage.child(f".spool/20260101-00000{n}-0123abcd") for n in (0, 1))
    for place in (bad, good):
        place.write("address", b"there")
        place.write("writer", b"not a time")
        place.write(f"files/{'0' * 32}", b"picture")
    line = json.dumps(event).replace("PLACE", str(tmp_path))
    bad.write(f"events-{0:015d}", f"{line}\n".encode())
    good.write(f"events-{0:015d}", f"{json.dumps(SOUND)}\n".encode())
    other = tmp_path / "other"
    other.mkdir()
    assert deliver(storage, other) == [b"picture"], "the rest is delivered"
    assert victim.read_text() == "mine"
    assert list(other.iterdir()) == []
    assert bad.exists("events-000000000000000"), "it is evidence"
    assert not good.exists("")
    (said,) = caplog.messages
    assert said.startswith(f"Left aside, not sent to MLflow: {bad.uri} (")
    assert "which mvray does not write). Find out who can write to this storage; then remove that folder." in said


def test_links_and_other_names_in_a_copy_are_left_aside(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "mvray.tracking.outbox_backup")
    storage, victim, other = Storage(str(tmp_path / "storage")), tmp_path / "victim", tmp_path / "other"
    victim.write_text("mine")
    other.mkdir()
    places = [storage.child(f".spool/20260101-00000{n}-0123abcd") for n in range(3)]
    for place in places:
        place.write("address", b"there")
        place.write("files/.keep", b"") if place is places[0] else place.write(f"files/{'1' * 32}", b"")
    places[1].local(f"files/{'0' * 32}").symlink_to(victim)
    places[2].local("events-000000000000000").symlink_to(victim)
    storage.write(".spool/notes/address", b"there")
    assert deliver(storage, other) == []
    (said,) = caplog.messages
    assert [f"{place.uri} (the file" in said for place in places] == [True] * 3
    assert victim.read_text() == "mine"
    assert all(place.exists("address") for place in places)
