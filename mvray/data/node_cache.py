"""Files that a node's processes share, in a folder of this user alone: what they make once and map into memory
(`build_once`), and what they have fetched and read again (`fetch_once`).

They are copies of what lies elsewhere, so any of them may be removed: those that nobody opened for long, and
the longest unused ones where all of them are more than `limit` allows, but never what a process that lives has
opened. Where there is no room for one, work goes on without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import math
import os
import shutil
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from mvray.errors import DataError
from mvray.storage import is_full

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEPT_S = 7 * 24 * 3600.0
"""How long such a file stays after it was last opened."""
LIMIT_BYTES = 20 << 30
DISK_SHARE = 0.2
"""At most this share of the disk, where that is less."""

LOOK_S = 30.0
"""How long a process whose files had no room left waits before it looks for some again."""
_STEP = 8
"""A process takes at most this part of the room that is left before it looks again: others fill it, too."""
_REMOVABLE = (".arrow", ".kept")

log = logging.getLogger(__name__)

_limit_bytes = LIMIT_BYTES
_begun_s = time.time()
_room_bytes, _looked_s, _room_lock = 0, -LOOK_S, threading.Lock()
_open: dict[Path, int] = {}
_told: set[Path] = set()


def begin_task(gigabytes: float) -> None:
    """A task begins: the node may keep so much, and what this process has used until now is in use no more."""
    global _limit_bytes, _begun_s, _room_bytes, _looked_s
    _limit_bytes, _begun_s = int(gigabytes * (1 << 30)), time.time()
    _room_bytes, _looked_s = 0, -LOOK_S
    while _open:
        os.close(_open.popitem()[1])


def limit(folder: Path) -> int:
    """Bytes that all such files may take on the disk of ``folder``."""
    return min(_limit_bytes, int(DISK_SHARE * shutil.disk_usage(folder).total))


def node_folder(name: str) -> Path:
    """The folder ``name`` below the one that the user's processes of this node share."""
    return Path(tempfile.gettempdir()) / f"mvray-{os.getuid()}" / name


def build_once(file: Path, make: Callable[[Path], None]) -> Path | None:
    """``file``, which ``make`` writes to the path it is given where nobody has made it yet.

    Of several processes that ask, one makes it and the others wait. It appears whole or not at all; what a
    killed process leaves is never used. It stays until this process ends or says `begin`. None where the disk is full
    although all was removed that nobody uses: the user is told, and the caller does without. Raises
    DataError where the folder is not ours.
    """
    _private(file.parent.parent)
    if _taken(file):
        return file
    file.parent.mkdir(exist_ok=True)
    try:
        with _alone(file.with_suffix(".lock")):
            if not _taken(file) and not _make(file, make):
                _make_room(file.parent, 0)
                if not _make(file, make):
                    _tell_full(file.parent)
                    return None
    except OSError as error:  # not even for the lock
        if not is_full(error):
            raise
        _tell_full(file.parent)
        return None
    _make_room(file.parent, limit(file.parent))
    return file


def fetch_once(name: str, size: int, read: Callable[[], bytes], folder: Path | None = None) -> bytes:
    """What ``read`` gives, from this node's disk where one of its processes has read it before.

    ``name`` and ``size``, in bytes, tell it apart from all else. Where there is no room, what was used last before
    this task began is removed; nothing else, since of data larger than the limit each epoch would remove what
    the next one reads. Without room it is not kept. Raises DataError where the folder is not ours.
    """
    place = folder or node_folder("files")
    _private(place.parent)
    file = place / f"{hashlib.sha256(f'{size} {name}'.encode()).hexdigest()[:32]}.kept"
    with contextlib.suppress(OSError):
        data = file.read_bytes()
        os.utime(file)
        if len(data) == size:
            return data
    data = read()
    try:
        if len(data) == size and _has_room(place, size) and not _write(file, lambda partial: partial.write_bytes(data)):
            _give_up(place)
    except OSError as error:  # not even for the folder
        if not is_full(error):
            raise
        _give_up(place)
    return data


def _has_room(folder: Path, size: int) -> bool:
    """Whether this process may keep ``size`` bytes more in ``folder``."""
    global _room_bytes, _looked_s
    with _room_lock:
        if size > _room_bytes and time.monotonic() - _looked_s >= LOOK_S:
            folder.mkdir(exist_ok=True)
            most_bytes = limit(folder)
            _room_bytes = (most_bytes - _make_room(folder, most_bytes - size * _STEP, _begun_s)) // _STEP
            if size > _room_bytes:
                _looked_s = time.monotonic()
        if size > _room_bytes:
            return False
        _room_bytes -= size
        return True


def _give_up(folder: Path) -> None:
    """The disk is full: nothing is kept for a while."""
    global _room_bytes, _looked_s
    _tell_full(folder)
    with _room_lock:
        _room_bytes, _looked_s = 0, time.monotonic()


def _write(file: Path, make: Callable[[Path], object]) -> bool:
    """Make the file as a whole; False where the disk is full."""
    partial = file.with_suffix(f".{uuid.uuid4().hex}")
    try:
        make(partial)
        partial.replace(file)
    except OSError as error:
        if not is_full(error):
            raise
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def _make(file: Path, make: Callable[[Path], None]) -> bool:
    return _write(file, make) and _taken(file)


def _taken(file: Path) -> bool:
    """Whether it is there; it is young again then, and in use until this process ends."""
    if file in _open and file.exists():
        return True
    with contextlib.suppress(FileNotFoundError):
        held = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_SH)  # who removes it holds it alone for a moment
            if os.fstat(held).st_ino == file.stat().st_ino:
                os.utime(file)
                _open[file], held = held, -1
                return True
        finally:
            if held >= 0:
                os.close(held)
    return False


def _make_room(folder: Path, most_bytes: int, before_s: float = math.inf) -> int:
    """Remove what is old, and what was not used for longest and not since ``before_s`` until the rest is at most
    ``most_bytes``. Returns the bytes that stay."""
    files, ours = [], node_folder(folder.name) == folder
    for path in folder.parent.glob("*/*") if ours else folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for used_at, size, path in sorted(files):
        unwanted = (total > most_bytes and used_at < before_s) or time.time() - used_at > KEPT_S
        if unwanted and _remove(path, used_at):
            total -= size
    return total


def _remove(path: Path, used_at: float) -> bool:
    """Remove ``path``, which was used last at ``used_at``, unless a process uses or writes it."""
    if path.suffix not in _REMOVABLE and time.time() - used_at <= KEPT_S:
        return False  # a lock, or what is being made
    with contextlib.suppress(OSError), path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False


def _tell_full(folder: Path) -> None:
    if folder not in _told:
        _told.add(folder)
        log.disabled = False  # MLflow's database migrations switch off every logger there is
        log.warning(
            "%s is full: work goes on without a copy of the data there, slower. Free some space, or set TMPDIR.", folder
        )


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """While no other process of this node is in here. The kernel frees the lock of a killed process.

    Removed while it is held: who waited for it finds the file made; who comes later makes a lock anew.
    After a failure two may work at once, which only costs time.
    """
    with lock.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            fcntl.flock(held, fcntl.LOCK_UN)  # closing is not enough where a fork holds the file, too


def _private(folder: Path) -> None:
    """Make a folder for this user alone. Raises DataError where it is another's, who could put anything into it, or
    another's link."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if {folder.stat().st_uid, folder.lstat().st_uid} != {os.getuid()}:
        raise DataError(f"{folder} belongs to another user; expected it to be yours. Set TMPDIR to another folder.")
