"""Copies of what waits for MLflow, in the storage: a cluster's node vanishes, and its disk with it.

    <storage>/.spool/<name of the outbox>/
      address            as in the outbox; written last, so that a copy without it does not count
      events-<byte>      the outbox's events from that byte on, whole lines
      files/             contents that those events name
      writer             when its execution copied last; gone once that has ended
      claim              who is fetching it

An event may be in a copy and be delivered too: a receiver takes it twice without harm. A copy with anything in it
that is not as mvray writes it is left where it is: what events name is read, uploaded and removed.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from mvray.storage import Storage
from mvray.tracking.outbox import FOREIGN, Outbox, event_of, is_kept
from mvray.tracking.redact import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACE = ".spool"
COPY_S = 120.0
GONE_S = 900.0
"""A writer that has not copied for so long has vanished. Clocks of nodes may differ by minutes."""
CLAIM_S = 2.0
"""What a claim takes to be seen by others who claim the same."""

_NAME, _EVENTS = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}"), re.compile(r"events-\d{15}")

log = logging.getLogger(__name__)


class OutboxCopy:
    """Keeps a copy of what waits in ``outbox``; none as long as everything is delivered within two minutes."""

    def __init__(self, outbox: Outbox, storage: Storage, interval_s: float = COPY_S) -> None:
        self._outbox, self._place = outbox, storage.child(f"{PLACE}/{outbox.folder.name}")
        self._copied = 0  # bytes of the events; 0: there is no copy
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(interval_s,), name="mvray-outbox-copy", daemon=True)
        self._thread.start()

    def close(self) -> str:
        """The execution has ended: copy the rest, or remove the copy. Returns where it is, in words."""
        self._ended.set()
        self._thread.join()
        try:
            self._update()
            if not self._copied:
                return ""
            self._place.delete("writer")
        except OSError as error:
            return f"They could not be copied to {self._place.uri}: {redacted(str(error))}."
        return f"A copy of them is in {self._place.uri}."

    def _keep(self, interval_s: float) -> None:
        while not self._ended.wait(interval_s):
            try:
                self._update()
            except OSError as error:
                log.warning("What waits for MLflow could not be copied to the storage: %s", redacted(str(error)))

    def _update(self) -> None:
        waiting = self._outbox.waiting(limit=10**9)
        if not waiting:
            if self._copied:
                self._place.delete("")
                self._copied = 0
            return
        start = max(self._copied, self._outbox.delivered())
        new = [event for end, event in waiting if end > start]
        for event in new:
            # One that is gone was delivered while this went on.
            if event["kind"] == "file" and (file := self._outbox.folder / "files" / event["content"]).exists():
                self._place.write(f"files/{event['content']}", file.read_bytes())
        if new:
            lines = self._outbox.read(start, waiting[-1][0])
            self._place.write(f"events-{start:015d}", lines)
        self._place.write("writer", str(time.time()).encode())
        if not self._copied:  # after "writer": without that it would count as one whose execution has ended
            self._place.write("address", (self._outbox.folder / "address").read_bytes())
        self._copied = waiting[-1][0]


def fetch(storage: Storage, parent: Path, address: str, claim_s: float = CLAIM_S) -> None:
    """Put the copies for ``address`` whose execution has ended beside the outboxes in ``parent``.

    Each is claimed for ``claim_s`` before, so that one of several who do this at once gets it.
    """
    foreign = []
    try:
        for name, place in _copies(storage):
            if (parent / name).exists() or not _is_for(place, address) or not _claimed(place, claim_s):
                continue
            if why := _download(place, parent / name):
                foreign.append(f"{place.uri} ({why})")
                place.delete("claim")  # what is claimed counts as fetched and is forgotten
    except OSError as error:
        log.warning("%s cannot be searched for what waits for MLflow: %s", storage.uri, redacted(str(error)))
    if foreign:
        log.warning(
            "Left aside, not sent to MLflow: %s. Find out who can write to this storage; then remove %s.",
            ", ".join(foreign),
            "that folder" if len(foreign) == 1 else "those folders",
        )


def forget(storage: Storage, parent: Path, address: str) -> None:
    """Remove the copies for ``address`` of whose outboxes nothing waits in ``parent`` any more."""
    try:
        for name, place in _copies(storage):
            if not (parent / name).exists() and _is_for(place, address) and _is_ours(place):
                place.delete("")
    except OSError as error:
        log.warning("Copies in %s could not be removed: %s", storage.uri, redacted(str(error)))


def waiting_for(storage: Storage) -> list[str]:
    """The addresses of the copies in the storage."""
    return sorted({address for _, place in _copies(storage) if (address := _address(place))})


_US = uuid.uuid4().hex


def _copies(storage: Storage) -> Iterator[tuple[str, Storage]]:
    for entry in storage.list(PLACE):
        name = entry.path.rpartition("/")[2]
        if _NAME.fullmatch(name):
            yield name, storage.child(f"{PLACE}/{name}")


def _address(place: Storage) -> str:
    return place.read("address").decode(errors="replace") if place.exists("address") else ""


def _is_for(place: Storage, address: str) -> bool:
    return _address(place) == address and not _recent(place, "writer")


def _recent(place: Storage, name: str) -> bool:
    """Whether the time in this file is less than a quarter of an hour ago."""
    try:
        return abs(time.time() - float(place.read(name).split()[0])) < GONE_S
    except (FileNotFoundError, ValueError, IndexError):
        return False


def _is_ours(place: Storage) -> bool:
    try:
        return place.read("claim").endswith(_US.encode())
    except FileNotFoundError:
        return False


def _claimed(place: Storage, claim_s: float) -> bool:
    """Claim a copy; of several who do at the same time one gets it, since two would open each run twice."""
    if _recent(place, "claim") and not _is_ours(place):
        return False
    place.write("claim", f"{time.time()} {_US}".encode())
    time.sleep(claim_s)
    return _is_ours(place)


def _download(place: Storage, folder: Path) -> str:
    """Copy it to ``folder``. Returns what is foreign in it, in words; then nothing is copied."""
    fresh = folder.with_name(f".{folder.name}.{_US}")  # nobody looks at it before it is whole
    (fresh / "files").mkdir(parents=True)
    try:
        with (fresh / "events.jsonl").open("wb") as lines:
            for entry in place.list():
                if entry.path.startswith("events-"):
                    if not _EVENTS.fullmatch(entry.path) or _is_link(place, entry.path):
                        return f"the file {entry.path!r}"
                    lines.write(place.read(entry.path))
        with (fresh / "events.jsonl").open("rb") as lines:
            for line in lines:
                if (event := event_of(line))["kind"] == FOREIGN:
                    return str(event["why"])
        for entry in place.list("files"):
            name = entry.path.rpartition("/")[2]
            if not is_kept(name) or entry.is_dir or _is_link(place, entry.path) or _is_link(place, "files"):
                return f"the file {entry.path!r}"
            place.download(entry.path, fresh / "files" / name)
        (fresh / "address").write_bytes(place.read("address"))
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return ""


def _is_link(place: Storage, path: str) -> bool:
    return (local := place.local(path)) is not None and local.is_symlink()
