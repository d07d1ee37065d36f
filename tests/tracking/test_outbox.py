"""The outbox and its delivery, with receivers that really go away, really refuse, and are really killed."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from full_disk import files_end_at

from mvray.errors import ClusterError
from mvray.tracking.outbox import Delivery, Outbox, Refused, content_of


class Post:
    """A receiver that is away for the first ``away`` calls."""

    def __init__(self, away=0):
        self.away, self.calls, self.taken = away, 0, []

    def __call__(self, events, files):
        self.calls += 1
        if self.calls <= self.away:
            raise ConnectionError("nobody there")
        self.taken.append(events)

    @property
    def numbers(self):
        return [event["n"] for events in self.taken for event in events]


@pytest.fixture
def outbox(tmp_path):
    outbox = Outbox.create(tmp_path, "there")
    yield outbox
    outbox.close()


def put(outbox, *numbers, kind="metrics", run="a"):
    for n in numbers:
        outbox.append({"kind": kind, "run": run, "n": n})


def test_everything_arrives_in_order_while_it_is_written(outbox):
    post = Post()
    delivery = Delivery(post)
    thread = threading.Thread(target=delivery.deliver, args=(outbox, True))
    thread.start()
    for n in range(200):
        put(outbox, n)
        delivery.wake()
    delivery.hurry(10)
    thread.join()
    assert post.numbers == list(range(200))
    assert outbox.report() == ""


def test_metrics_of_one_run_go_together_and_nothing_else_does(outbox):
    put(outbox, 1, 2)
    put(outbox, 3, run="b")
    put(outbox, 4, 5, kind="tags", run="b")
    put(outbox, 6)
    post = Post()
    Delivery(post).deliver(outbox)
    assert [[event["n"] for event in events] for events in post.taken] == [[1, 2], [3], [4], [5], [6]]


@pytest.fixture
def said():
    """What the outbox logs, heard at its own logger: libraries that other tests import rearrange the root's."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("mvray.tracking.outbox")
    level, off = logger.level, logging.root.manager.disable
    logging.disable(logging.NOTSET)
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    yield heard
    logger.removeHandler(handler)
    logger.setLevel(level)
    logging.disable(off)


@pytest.mark.slow
def test_a_receiver_that_was_away_gets_everything(outbox, said):
    put(outbox, 1, 2)
    put(outbox, 3, kind="tags")
    post = Post(away=2)
    delivery = Delivery(post)
    started = time.monotonic()
    delivery.deliver(outbox)
    assert post.numbers == [1, 2, 3]
    assert delivery.error == ""
    assert time.monotonic() - started > 2.5, "the pauses are 1 s and 2 s"
    assert sum("Tracking is away" in line for line in said) == 1


def test_what_cannot_be_delivered_in_time_stays_and_is_named(outbox, tmp_path):
    put(outbox, 1, 2)
    put(outbox, 3, kind="end")
    delivery = Delivery(Post(away=10**6))
    delivery.hurry(0.2)
    delivery.deliver(outbox)
    assert "Not delivered yet: 1 end, 2 metrics." in outbox.report()
    assert str(outbox.folder) in outbox.report()
    assert delivery.error == "ConnectionError: nobody there"

    outbox.close()
    later = Post()
    assert Delivery(later).deliver_left(tmp_path, "elsewhere") == ""
    assert later.numbers == [], "it is not for that address"
    assert Delivery(later).deliver_left(tmp_path, "there") == ""
    assert later.numbers == [1, 2, 3]
    assert list(tmp_path.iterdir()) == []


def test_an_outbox_in_use_is_left_alone(outbox, tmp_path):
    put(outbox, 1)
    post = Post()
    Delivery(post).deliver_left(tmp_path, "there")
    assert post.numbers == []


def test_an_impatient_delivery_gives_up_at_once_and_keeps_all(outbox, tmp_path):
    put(outbox, 1)
    outbox.close()
    post = Post(away=1)
    delivery = Delivery(post)
    assert "Not delivered yet: 1 metrics" in delivery.deliver_left(tmp_path, "there", patient=False)
    assert post.calls == 1
    assert delivery.deliver_left(tmp_path, "there", patient=False) == ""
    assert post.numbers == [1]


def test_what_is_refused_is_kept_with_its_reason_and_the_rest_goes_on(outbox):
    name = outbox.keep(b"picture")
    put(outbox, 1)
    outbox.append({"kind": "file", "run": "a", "n": 2, "content": name})
    put(outbox, 3)
    taken = []

    def picky(events, files):
        if events[0]["kind"] == "file":
            raise Refused("no pictures here")
        taken.extend(event["n"] for event in events)

    Delivery(picky).deliver(outbox)
    assert taken == [1, 3]
    refused = json.loads((outbox.folder / "refused.jsonl").read_text())
    assert (refused["n"], refused["reason"]) == (2, "no pictures here")
    assert (outbox.folder / name).read_bytes() == b"picture"
    assert "Refused: 1 events" in outbox.report()


def test_files_are_kept_until_they_are_taken(outbox):
    name = outbox.keep(b"picture")
    outbox.append({"kind": "file", "run": "a", "content": name})
    seen = []
    Delivery(lambda events, files: seen.append((files / events[0]["content"]).read_bytes())).deliver(outbox)
    assert seen == [b"picture"]
    assert list((outbox.folder / "files").iterdir()) == []


def test_a_line_that_the_disk_took_half_of_is_not_there(outbox):
    put(outbox, 1)
    events = outbox.folder / "events.jsonl"
    whole = events.stat().st_size
    for _ in range(2):
        with files_end_at(whole + 10), pytest.raises(OSError, match="too large"):
            put(outbox, 2)
        assert events.stat().st_size == whole + 10
        assert [event["n"] for _, event in outbox.waiting()] == [1]
    outbox.mark(whole, [])
    put(outbox, 3, 4)
    assert [event["n"] for _, event in outbox.waiting()] == [3, 4]
    assert [json.loads(line)["n"] for line in events.read_text().splitlines()] == [1, 3, 4]


def test_an_outbox_whose_last_line_is_half_is_closed_in_peace(outbox):
    with files_end_at(10), pytest.raises(OSError, match="too large"):
        put(outbox, 1)
    with files_end_at(10):
        outbox.close()


def test_a_file_that_the_disk_took_half_of_is_not_kept(outbox):
    with files_end_at(100), pytest.raises(OSError, match="too large"):
        outbox.keep(bytes(1000))
    assert list((outbox.folder / "files").iterdir()) == []


def test_a_place_that_takes_no_outbox_is_named(tmp_path):
    (tmp_path / "file").touch()  # root may write to any folder
    with pytest.raises(
        ClusterError, match=r"file/.spool cannot be written \(Not a directory\); expected a folder where"
    ):
        Outbox.create(tmp_path / "file" / ".spool", "there")
    with (
        files_end_at(2),
        pytest.raises(ClusterError, match=r"File too large.*Start the command in a folder of your own"),
    ):
        Outbox.create(tmp_path / "full", "there")
    assert list((tmp_path / "full").iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from mvray.tracking.outbox import Outbox
outbox = Outbox.create(Path(sys.argv[1]), "there")
for n in range(10**9):
    outbox.append({"kind": "metrics", "run": "a", "n": n})
    print(n, flush=True)
"""


def test_nothing_that_was_written_is_lost_when_the_writer_is_killed(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    for _ in range(500):
        writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    written = 500 + len(writer.communicate()[0].splitlines())
    left = next(Outbox.left_in(tmp_path, "there"))
    with (left.folder / "events.jsonl").open("ab") as lines:
        lines.write(b'{"kind": "metrics", "run": "a", "n"')  # the worst moment: half a line
    left.close()

    post = Post()
    assert Delivery(post).deliver_left(tmp_path, "there") == ""
    assert post.numbers == list(range(len(post.numbers)))
    assert len(post.numbers) in (written, written + 1)


def test_delivery_goes_on_where_a_killed_delivery_stopped(outbox, tmp_path):
    put(outbox, 1, 2, kind="tags")
    put(outbox, 3)

    class Killed(BaseException):
        pass

    def dies(events, files):
        if events[0]["n"] == 2:
            raise Killed

    with pytest.raises(Killed):
        Delivery(dies).deliver(outbox)
    outbox.close()
    post = Post()
    Delivery(post).deliver_left(tmp_path, "there")
    assert post.numbers == [2, 3]


def test_what_no_outbox_writes_is_refused_and_touches_nothing(outbox, tmp_path, said):
    """Below a local storage others may write, too: what an event names is uploaded and removed."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    put(outbox, 1)
    for content in (str(victim), "../../victim", None):
        outbox.append({"kind": "file", "run": "a", "content": content, "path": "x"})
    with (outbox.folder / "events.jsonl").open("ab") as lines:
        lines.write(b'{"kind": 1}\n[]\nno json\n' + b"[" * 100_000 + b"\n")
    put(outbox, 2)
    post = Post()
    Delivery(post).deliver(outbox)
    assert post.numbers == [1, 2]
    assert victim.read_text() == "mine"
    assert "Refused: 7 events" in outbox.report()
    (warning,) = said
    assert warning.startswith("Tracking refused foreign")
    assert f"Find out who can write to {outbox.folder}" in warning


def test_the_content_of_an_event_is_a_file_that_was_kept(outbox, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    files = outbox.folder / "files"
    link = "0" * 32
    (files / link).symlink_to(victim)
    for content in (str(victim), "../../victim", link, link + "\n", ""):
        event = {"kind": "file", "run": "a", "content": content}
        with pytest.raises(Refused, match="is no file that mvray has put there"):
            content_of(event, files)
        outbox.refuse([event], "no")
        outbox.mark(0, [event])
    assert victim.read_text() == "mine"
    assert sorted(file.name for file in outbox.folder.iterdir()) == [
        "address",
        "delivered",
        "events.jsonl",
        "files",
        "refused.jsonl",
    ]


def test_an_outbox_with_links_or_that_cannot_be_read_is_passed_over(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    outboxes = [Outbox.create(tmp_path / "outboxes", "there") for _ in range(4)]
    for outbox in outboxes:
        put(outbox, 1)
        outbox.close()
    linked, refused, garbled, _ = (outbox.folder for outbox in outboxes)
    (linked / "events.jsonl").unlink()
    (linked / "events.jsonl").symlink_to(victim)
    (refused / "delivered.new").symlink_to(victim)
    (garbled / "address").write_bytes(b"\xff\xfe")
    (outboxes[3].folder / "delivered").write_text("-5")
    post = Post()
    assert Delivery(post).deliver_left(tmp_path / "outboxes", "there") == ""
    assert post.numbers == [1]
    assert victim.read_text() == "mine\n"


def test_what_an_older_version_left_is_delivered(tmp_path):
    """Folders and lines as mvray has written them since 0.1.0's first events."""
    left = tmp_path / ".spool" / "20250101-120000-0123abcd"
    (left / "files").mkdir(parents=True)
    (left / "files" / ("ab" * 16)).write_bytes(b"\x89PNG")
    delivered = '{"kind": "stale", "run": "", "experiment": "job", "time_s": 1.5}\n'
    waiting = '{"kind": "start", "run": "r", "experiment": "job", "time_s": 2.5, "name": "step", "parent": null, '
    waiting += '"tags": {}, "params": {}}\n{"kind": "file", "run": "r", "experiment": "job", "time_s": 3.5, '
    waiting += f'"path": "pictures/1.png", "content": "{"ab" * 16}"}}\n'
    (left / "events.jsonl").write_text(delivered + waiting)
    (left / "delivered").write_text(str(len(delivered)))
    (left / "address").write_text("there")
    taken = []

    def take(events, files):
        taken.extend((event["kind"], event["run"]) for event in events)
        if events[0]["kind"] == "file":
            taken.append(content_of(events[0], files).read_bytes())

    assert Delivery(take).deliver_left(tmp_path / ".spool", "there") == ""
    assert taken == [("start", "r"), ("file", "r"), b"\x89PNG"]
    assert not left.exists()
