"""Files that a node's processes make once and map into memory, in a folder of this user alone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from mvray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEPT_S = 7 * 24 * 3600.0
"""How long such a file stays after it was last opened."""


def node_folder(name: str) -> Path:
    """The folder ``name`` below the one that the user's processes of this node share."""
    return Path(tempfile.gettempdir()) / f"mvray-{os.getuid()}" / name


def made_once(file: Path, make: Callable[[Path], None]) -> Path:
    """``file``, which ``make`` writes to the path it is given where nobody has made it yet.

    Of several processes that ask, one makes it and the others wait. It appears whole or not at all;
    what a killed process leaves is never used, and removed with the files that nobody opened for
    KEPT_S. Raises DataError where the folder is not ours or the disk is full.
    """
    if _touched(file):
        return file
    _private(file.parent.parent)
    file.parent.mkdir(exist_ok=True)
    with _alone(file.with_suffix(".lock")):
        if _touched(file):
            return file
        partial = file.with_suffix(f".{uuid.uuid4().hex}")
        try:
            make(partial)
            partial.replace(file)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DataError(
                f"{file.parent} is full; expected room for a copy of the data that this node reads. Free some space, "
                "or set TMPDIR to another folder."
            ) from error
        finally:
            partial.unlink(missing_ok=True)
    _forget_old(file.parent)
    return file


def _touched(file: Path) -> bool:
    """Whether it is there; it is young again then."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(file)
        return True
    return False


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
    """Make a folder for this user alone. Raises DataError where it is another's, who could put anything into it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise DataError(f"{folder} belongs to another user; expected it to be yours. Set TMPDIR to another folder.")


def _forget_old(cache: Path) -> None:
    """Remove what nobody opened for long; who still has it mapped keeps it."""
    for old in cache.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > KEPT_S:
                old.unlink()
