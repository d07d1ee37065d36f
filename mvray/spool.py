"""A queue of events on local disk, and a courier that delivers it in order however long that takes.

The one who writes never waits. An event counts as delivered once the receiver took it; after a crash
the last ones may be delivered again, so a receiver must take an event twice without harm.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mvray.redact import redacted

Event = dict[str, Any]
"""JSON with at least ``kind`` and ``run``. Of kind "file", ``content`` names a file that `Spool.keep` keeps."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
AWAY_S = 15.0
"""How long the end of an execution waits for a receiver that does not answer; there is a later delivery."""
EVENTS_PER_READ = 1000

log = logging.getLogger(__name__)


class Refused(Exception):
    """The receiver will never take this event; it is kept in the spool's refused.jsonl."""


class Away(Exception):
    """The receiver does not take events now, for the reason that the message gives in words; they wait."""


Receiver = Callable[[list[Event], Path], None]
"""Takes events of one kind and run, and the folder of their files; asked again unless it raises Refused."""


class Spool:
    """The events of one execution, locked by the process that writes or delivers them.

    ``address`` says for whom they are; ``events.jsonl`` only grows; ``delivered`` says how many of
    its bytes have been taken; ``files`` keeps contents; ``refused.jsonl`` lists what was refused.
    ``owned`` is False where another process holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = (folder / "events.jsonl").open("ab")
        self._mutex = threading.Lock()
        self.owned = True
        try:
            fcntl.flock(self._lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.owned = False

    @classmethod
    def create(cls, parent: Path, address: str) -> Spool:
        """A new spool in a sub-folder of ``parent`` with a name of its own."""
        folder = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        (folder / "files").mkdir(parents=True)
        spool = cls(folder)
        # Last: nobody looks at a spool without an address, so nobody takes the lock before us.
        (folder / "address").write_text(address)
        return spool

    @classmethod
    def left_in(cls, parent: Path, address: str) -> Iterator[Spool]:
        """The spools in ``parent`` for ``address`` whose writer has ended, oldest first."""
        for file in sorted(parent.glob("*/address")):
            try:
                if file.read_text() != address:
                    continue
                spool = cls(file.parent)
            except FileNotFoundError:  # another run has just delivered and removed it
                continue
            if spool.owned:
                yield spool
            spool.close()

    @staticmethod
    def addresses(parent: Path) -> list[str]:
        """For whom the spools in ``parent`` are."""
        return sorted({file.read_text() for file in parent.glob("*/address")})

    def append(self, event: Event) -> None:
        line = json.dumps(event).encode() + b"\n"
        with self._mutex:
            self._lines.write(line)
            self._lines.flush()

    def keep(self, content: bytes) -> str:
        """Keep the content of a file until its event has been taken; returns the name to give the event."""
        name = uuid.uuid4().hex
        (self.folder / "files" / name).write_bytes(content)
        return name

    def waiting(self, limit: int = EVENTS_PER_READ) -> list[tuple[int, Event]]:
        """The next events that have not been taken, each with the offset behind it."""
        offset = self.delivered()
        found: list[tuple[int, Event]] = []
        with (self.folder / "events.jsonl").open("rb") as lines:
            lines.seek(offset)
            for line in lines:
                # A killed writer leaves half a line at the end: an event that was never whole.
                if not line.endswith(b"\n") or len(found) == limit:
                    break
                offset += len(line)
                found.append((offset, json.loads(line)))
        return found

    def delivered(self) -> int:
        """How many bytes of the events need no delivery any more."""
        file = self.folder / "delivered"
        return int(file.read_text()) if file.exists() else 0

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
                (self.folder / "files" / event["content"]).unlink(missing_ok=True)

    def refuse(self, events: list[Event], reason: str) -> None:
        for event in events:
            if event["kind"] == "file":
                shutil.copy(self.folder / "files" / event["content"], self.folder / event["content"])
            with (self.folder / "refused.jsonl").open("a") as lines:
                lines.write(json.dumps({**event, "reason": reason}) + "\n")

    def report(self) -> str:
        """What has not been taken, in words; "" if everything has."""
        kinds = [event["kind"] for _, event in self.waiting(limit=10**9)]
        refused = self.folder / "refused.jsonl"
        said = []
        if kinds:
            counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
            said.append(f"Not delivered yet: {counted}. They wait in {self.folder}.")
        if refused.exists():
            said.append(
                f"Refused: {len(refused.read_text().splitlines())} events, listed with the reason in {refused}."
            )
        return " ".join(said)

    def close(self) -> None:
        self._lines.close()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()


class Courier:
    """Hands spools to a receiver, with pauses that grow while it is away. Runs in a thread of the caller's.

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
        said = []
        for spool in Spool.left_in(parent, address):
            self.deliver(spool, patient=patient)
            if left := spool.report():
                said.append(left)
            else:
                spool.remove()
        return " ".join(said)

    def deliver(self, spool: Spool, wait_for_more: bool = False, patient: bool = True) -> None:
        """Deliver ``spool`` to its end; with ``wait_for_more``, also what comes until `hurry` is called.

        Without ``patient``, the first error ends it; what is left stays in the spool.
        """
        pause_s = FIRST_PAUSE_S
        while time.monotonic() < min(self._deadline_s, self._away_until_s):
            self._news.clear()
            last = self._closing.is_set() or not wait_for_more
            try:
                waiting = spool.waiting()
                for group in _together(waiting):
                    self._hand_over(spool, group)
                    pause_s, self.error, self._away_until_s = FIRST_PAUSE_S, "", float("inf")
            except Exception as error:  # whatever it is, the events are safe and are delivered later
                said = str(error) if isinstance(error, Away) else f"{type(error).__name__}: {error}"
                if not self.error:
                    log.disabled = False  # MLflow's database migrations switch off every logger there is
                    log.warning("Tracking is away; events wait in %s. %s", spool.folder, redacted(said))
                self.error = redacted(said)
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

    def _hand_over(self, spool: Spool, group: list[tuple[int, Event]]) -> None:
        events = [event for _, event in group]
        try:
            self._receiver(events, spool.folder / "files")
            self.sent += len(events)
        except Refused as refusal:
            log.disabled = False
            said = redacted(str(refusal))
            log.warning("Tracking refused %s of %s: %s", events[0]["kind"], events[0]["run"], said)
            spool.refuse(events, said)
        spool.mark(group[-1][0], events)


def _together(waiting: list[tuple[int, Event]]) -> Iterator[list[tuple[int, Event]]]:
    """Metrics of one run that follow each other go together; everything else goes alone."""
    group: list[tuple[int, Event]] = []
    for offset, event in waiting:
        if group and not (event["kind"] == group[0][1]["kind"] == "metrics" and event["run"] == group[0][1]["run"]):
            yield group
            group = []
        group.append((offset, event))
    if group:
        yield group
