"""Copies of what waits for MLflow, in the storage: a cluster's node vanishes, and its disk with it.

    <storage>/.spool/<name of the spool>/
      address            as in the spool; written last, so that a copy without it does not count
      events-<byte>      the spool's events from that byte on, whole lines
      files/             contents that those events name
      writer             when its execution copied last; gone once that has ended
      claim              who is fetching it

An event may be in a copy and be delivered too: a receiver takes it twice without harm.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
import uuid
from pathlib import Path

from mvray.redact import redacted
from mvray.spool import Spool
from mvray.storage import Storage

PLACE = ".spool"
COPY_S = 120.0
GONE_S = 900.0
"""A writer that has not copied for so long has vanished. Clocks of nodes may differ by minutes."""
CLAIM_S = 2.0

log = logging.getLogger(__name__)


class SpoolCopy:
    """Keeps a copy of what waits in ``spool``; none as long as everything is delivered within two minutes."""

    def __init__(self, spool: Spool, storage: Storage, interval_s: float = COPY_S) -> None:
        self._spool, self._place = spool, storage.child(f"{PLACE}/{spool.folder.name}")
        self._copied = 0  # bytes of the events; 0: there is no copy
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(interval_s,), name="mvray-spool-copy", daemon=True)
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
        waiting = self._spool.waiting(limit=10**9)
        if not waiting:
            if self._copied:
                self._place.delete("")
                self._copied = 0
            return
        start = max(self._copied, self._spool.delivered())
        new = [event for end, event in waiting if end > start]
        for event in new:
            # One that is gone was delivered while this went on.
            if event["kind"] == "file" and (file := self._spool.folder / "files" / event["content"]).exists():
                self._place.write(f"files/{event['content']}", file.read_bytes())
        if new:
            lines = self._spool.read(start, waiting[-1][0])
            self._place.write(f"events-{start:015d}", lines)
        if not self._copied:
            self._place.write("address", (self._spool.folder / "address").read_bytes())
        self._copied = waiting[-1][0]
        self._place.write("writer", str(time.time()).encode())


def fetch(storage: Storage, parent: Path, address: str) -> None:
    """Put the copies for ``address`` whose execution has ended beside the spools in ``parent``."""
    try:
        for entry in storage.list(PLACE):
            name = entry.path.rpartition("/")[2]
            place = storage.child(f"{PLACE}/{name}")
            if not (parent / name).exists() and _is_for(place, address) and _claimed(place):
                _download(place, parent / name)
    except OSError as error:
        log.warning("%s cannot be searched for what waits for MLflow: %s", storage.uri, redacted(str(error)))


def forget(storage: Storage, parent: Path, address: str) -> None:
    """Remove the copies for ``address`` of whose spools nothing waits in ``parent`` any more."""
    try:
        for entry in storage.list(PLACE):
            name = entry.path.rpartition("/")[2]
            place = storage.child(f"{PLACE}/{name}")
            if not (parent / name).exists() and _is_for(place, address) and _is_ours(place):
                place.delete("")
    except OSError as error:
        log.warning("Copies in %s could not be removed: %s", storage.uri, redacted(str(error)))


def waiting_for(storage: Storage) -> list[str]:
    """The addresses of the copies in the storage."""
    places = [storage.child(entry.path) for entry in storage.list(PLACE)]
    return sorted({place.read("address").decode() for place in places if place.exists("address")})


_US = uuid.uuid4().hex


def _is_for(place: Storage, address: str) -> bool:
    return place.exists("address") and place.read("address").decode() == address and not _recent(place, "writer")


def _recent(place: Storage, name: str) -> bool:
    """Whether the time in this file is less than a quarter of an hour ago."""
    try:
        return abs(time.time() - float(place.read(name).split()[0])) < GONE_S
    except FileNotFoundError:
        return False


def _is_ours(place: Storage) -> bool:
    try:
        return place.read("claim").decode().endswith(_US)
    except FileNotFoundError:
        return False


def _claimed(place: Storage) -> bool:
    """Claim a copy; of several who do at the same time one gets it, since two would open each run twice."""
    if _recent(place, "claim") and not _is_ours(place):
        return False
    place.write("claim", f"{time.time()} {_US}".encode())
    time.sleep(CLAIM_S)
    return _is_ours(place)


def _download(place: Storage, folder: Path) -> None:
    fresh = folder.with_name(f".{folder.name}.{_US}")  # nobody looks at it before it is whole
    (fresh / "files").mkdir(parents=True)
    try:
        with (fresh / "events.jsonl").open("wb") as lines:
            for entry in place.list():
                if entry.path.startswith("events-"):
                    lines.write(place.read(entry.path))
        for entry in place.list("files"):
            place.download(entry.path, fresh / entry.path)
        (fresh / "address").write_bytes(place.read("address"))
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
