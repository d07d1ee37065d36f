"""A queue of events on local disk, and its delivery in order, however long that takes.

The one who writes never waits. An event counts as delivered once the receiver took it; after a crash
the last ones may be delivered again, so a receiver must take an event twice without harm.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mvray.errors import ClusterError
from mvray.tracking.redact import redacted

Event = dict[str, Any]
"""JSON with at least ``kind`` and ``run``. Of kind "file", ``content`` names a file that `Outbox.keep` keeps, and
``path`` is where it goes, in words of a folder and a name."""

FOREIGN = "foreign"
"""The kind of an entry in an outbox that no Outbox has written."""
_KEPT = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(r"(?!\.{1,2}\Z)[^/\\\x00-\x1f\x7f\ud800-\udfff]{1,255}")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
AWAY_S = 15.0
"""How long the end of an execution waits for a receiver that does not answer; there is a later delivery."""
EVENTS_PER_READ = 1000

log = logging.getLogger(__name__)


class Refused(Exception):
    """The receiver will never take this event; it is kept in the outbox's refused.jsonl."""


class Away(Exception):
    """The receiver does not take events now, for the reason that the message gives in words; they wait."""


def is_kept(name: Any) -> bool:
    """Whether `Outbox.keep` gives such names."""
    return isinstance(name, str) and bool(_KEPT.fullmatch(name))


def content_of(event: Event, files: Path) -> Path:
    """The file in ``files`` with the content of an event. Raises Refused for any other place: it is uploaded and
    removed, and who may write to the storage may have written the event."""
    name = str(event.get("content"))
    if not is_kept(name) or files.is_symlink() or (files / name).is_symlink():
        raise Refused(f"its content {name!r} is no file that mvray has put there")
    return files / name


def event_of(line: bytes) -> Event:
    """The event in a line; one of the kind FOREIGN, with ``why``, where no Outbox writes such a line."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return _foreign("a line that is no JSON")
    if not isinstance(event, dict) or not all(isinstance(event.get(name), str) for name in ("kind", "run")):
        return _foreign("a line without a kind and a run")
    if event["kind"] == "file":
        if not is_kept(event.get("content")):
            return _foreign(f"the content {event.get('content')!r}")
        if not all(_PART.fullmatch(part) for part in str(event.get("path", "-")).split("/")):
            return _foreign(f"the path {event['path']!r}")
    return event


def _foreign(why: str) -> Event:
    return {"kind": FOREIGN, "run": "", "why": f"{why[:200]}, which mvray does not write"}


Receiver = Callable[[list[Event], Path], None]
"""Takes events of one kind and run, and the folder of their files; asked again unless it raises Refused."""


class Outbox:
    """The events of one execution, locked by the process that writes or delivers them.

    ``address`` says for whom they are; ``events.jsonl`` only grows; ``delivered`` says how many of
    its bytes have been taken; ``files`` keeps contents; ``refused.jsonl`` lists what was refused.
    ``owned`` is False where another process holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Without a buffer: one would still hold what the disk had no room for, and fail again when it is closed.
        self._lines = (folder / "events.jsonl").open("ab", buffering=0)
        self._half_from: int | None = None
        self._mutex = threading.Lock()
        self.owned = True
        try:
            fcntl.flock(self._lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.owned = False

    @classmethod
    def create(cls, parent: Path, address: str) -> Outbox:
        """A new outbox in a sub-folder of ``parent`` with a name of its own.

        Raises ClusterError where nothing can be written there.
        """
        folder = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        try:
            (folder / "files").mkdir(parents=True)
            (folder / "address.new").write_text(address)
            outbox = cls(folder)
            # Last: nobody looks at an outbox without an address, so nobody takes the lock before us.
            (folder / "address.new").rename(folder / "address")
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise ClusterError(
                f"{parent} cannot be written ({error.strerror}); expected a folder where events can wait for MLflow. "
                "Start the command in a folder of your own, and free some space if its disk is full."
            ) from error
        return outbox

    @classmethod
    def left_in(cls, parent: Path, address: str) -> Iterator[Outbox]:
        """The outboxes in ``parent`` for ``address`` whose writer has ended, oldest first.

        Without those that hold a link, which would be read and written elsewhere.
        """
        for file in sorted(parent.glob("*/address")):
            if any(path.is_symlink() for path in (file.parent, *file.parent.rglob("*"))):
                continue
            try:
                if file.read_text(errors="replace") != address:
                    continue
                outbox = cls(file.parent)
            except (FileNotFoundError, PermissionError):  # delivered and removed just now; another user's
                continue
            if outbox.owned:
                yield outbox
            outbox.close()

    @staticmethod
    def addresses(parent: Path) -> list[str]:
        """For whom the outboxes in ``parent`` are."""
        return sorted({file.read_text(errors="replace") for file in parent.glob("*/address")})

    def append(self, event: Event) -> None:
        """Raises OSError where the disk does not take it; then it is not there at all, and may be appended again."""
        line = json.dumps(event).encode() + b"\n"
        with self._mutex:
            if self._half_from is not None:  # readers pass a half line over, but the next would be glued to it
                self._lines.truncate(self._half_from)
                self._half_from = None
            end = os.fstat(self._lines.fileno()).st_size
            try:
                while line:
                    line = line[self._lines.write(line) :]
            except OSError:
                self._half_from = end
                raise

    def keep(self, content: bytes) -> str:
        """Keep the content of a file until its event has been taken; returns the name to give the event.

        Raises OSError where the disk does not take it; then nothing is kept.
        """
        name = uuid.uuid4().hex
        try:
            (self.folder / "files" / name).write_bytes(content)
        except OSError:
            (self.folder / "files" / name).unlink(missing_ok=True)
            raise
        return name

    def waiting(self, limit: int = EVENTS_PER_READ) -> list[tuple[int, Event]]:
        """The next events that have not been taken, each with the offset behind it."""
        offset = self.delivered()
        events: list[tuple[int, Event]] = []
        with (self.folder / "events.jsonl").open("rb") as lines:
            lines.seek(offset)
            for line in lines:
                # A killed writer leaves half a line at the end: an event that was never whole.
                if not line.endswith(b"\n") or len(events) == limit:
                    break
                offset += len(line)
                events.append((offset, event_of(line)))
        return events

    def delivered(self) -> int:
        """How many bytes of the events need no delivery any more."""
        file = self.folder / "delivered"
        text = file.read_text(errors="replace") if file.exists() else ""
        return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0

    def read(self, start: int, end: int) -> bytes:
        """The lines of the events from byte ``start`` to ``end``."""
        with (self.folder / "events.jsonl").open("rb") as lines:
            lines.seek(start)
            return lines.read(end - start)

    def mark(self, offset: int, events: list[Event]) -> None:
        """Everything before ``offset``, of which ``events`` are the last, needs no delivery any more."""
        fresh = self.folder / "delivered.new"
        fresh.write_text(str(offset))
        fresh.replace(self.folder / "delivered")
        for event in events:
            if event["kind"] == "file":
                with contextlib.suppress(Refused):
                    content_of(event, self.folder / "files").unlink(missing_ok=True)

    def refuse(self, events: list[Event], reason: str) -> None:
        for event in events:
            if event["kind"] == "file":
                with contextlib.suppress(Refused):
                    shutil.copy(content_of(event, self.folder / "files"), self.folder / event["content"])
            with (self.folder / "refused.jsonl").open("a") as lines:
                lines.write(json.dumps({**event, "reason": reason}) + "\n")

    def report(self) -> str:
        """What has not been taken, in words; "" if everything has."""
        kinds = [event["kind"] for _, event in self.waiting(limit=10**9)]
        refused = self.folder / "refused.jsonl"
        sentences = []
        if kinds:
            counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
            sentences.append(f"Not delivered yet: {counted}. They wait in {self.folder}.")
        if refused.exists():
            sentences.append(
                f"Refused: {len(refused.read_text().splitlines())} events, listed with the reason in {refused}."
            )
        return " ".join(sentences)

    def close(self) -> None:
        self._lines.close()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()


class Delivery:
    """Hands outboxes to a receiver, with pauses that grow while it is away. Runs in a thread of the caller's.

    ``error`` is what the receiver said when it was asked last, "" if it took what it was given; ``sent``
    is how many events it took.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.error, self.sent = "", 0
        self._news = threading.Event()
        self._closing = threading.Event()
        self._deadline_s = self._away_until_s = float("inf")

    def wake(self) -> None:
        """There is a new event."""
        self._news.set()

    def hurry(self, timeout_s: float) -> None:
        """No event will follow; give up after ``timeout_s``, and after 15 s without an answer."""
        self._deadline_s = time.monotonic() + timeout_s
        self._closing.set()
        self._news.set()

    def deliver_left(self, parent: Path, address: str, patient: bool = True) -> str:
        """Deliver what executions that have ended left in ``parent``. Returns what still is there, in words."""
        sentences = []
        for outbox in Outbox.left_in(parent, address):
            self.deliver(outbox, patient=patient)
            if sentence := outbox.report():
                sentences.append(sentence)
            else:
                outbox.remove()
        return " ".join(sentences)

    def deliver(self, outbox: Outbox, wait_for_more: bool = False, patient: bool = True) -> None:
        """Deliver ``outbox`` to its end; with ``wait_for_more``, also what comes until `hurry` is called.

        Without ``patient``, the first error ends it; what is left stays in the outbox.
        """
        pause_s = FIRST_PAUSE_S
        while time.monotonic() < min(self._deadline_s, self._away_until_s):
            self._news.clear()
            last = self._closing.is_set() or not wait_for_more
            try:
                waiting = outbox.waiting()
                for group in _together(waiting):
                    self._hand_over(outbox, group)
                    pause_s, self.error, self._away_until_s = FIRST_PAUSE_S, "", float("inf")
            except Exception as error:  # whatever it is, the events are safe and are delivered later
                reason = str(error) if isinstance(error, Away) else f"{type(error).__name__}: {error}"
                if not self.error:
                    log.disabled = False  # MLflow's database migrations switch off every logger there is
                    log.warning("Tracking is away; events wait in %s. %s", outbox.folder, redacted(reason))
                self.error = redacted(reason)
                if self._closing.is_set():
                    self._away_until_s = min(self._away_until_s, time.monotonic() + AWAY_S)
                if not patient:
                    return
                self._pause(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            if not waiting and last:
                return
            if not waiting:
                self._news.wait()

    def _pause(self, pause_s: float) -> None:
        if self._closing.is_set():
            until_s = min(self._deadline_s, self._away_until_s)
            time.sleep(max(0.0, min(FIRST_PAUSE_S, until_s - time.monotonic())))
        else:
            self._closing.wait(pause_s)

    def _hand_over(self, outbox: Outbox, group: list[tuple[int, Event]]) -> None:
        events = [event for _, event in group]
        try:
            if events[0]["kind"] == FOREIGN:
                raise Refused(f"{events[0]['why']}. Find out who can write to {outbox.folder}")
            self._receiver(events, outbox.folder / "files")
            self.sent += len(events)
        except Refused as refusal:
            log.disabled = False
            reason = redacted(str(refusal))
            log.warning("Tracking refused %s of %s: %s", events[0]["kind"], events[0]["run"], reason)
            outbox.refuse(events, reason)
        outbox.mark(group[-1][0], events)


def _together(waiting: list[tuple[int, Event]]) -> Iterator[list[tuple[int, Event]]]:
    """Metrics of one run that follow each other go together, and what is foreign; everything else goes alone."""
    group: list[tuple[int, Event]] = []
    for offset, event in waiting:
        alike = group and all(event[name] == group[0][1][name] for name in ("kind", "run"))
        if group and not (alike and event["kind"] in ("metrics", FOREIGN)):
            yield group
            group = []
        group.append((offset, event))
    if group:
        yield group
