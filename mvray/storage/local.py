"""Files below a folder of this machine."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mvray.errors import DataError, StorageFailed
from mvray.storage.retry import RetryPolicy, is_full, retried

PARTIAL = ".partial"
"""Ends the names of files that are being written; they are never listed."""


@dataclass(frozen=True, order=True)
class Entry:
    """A file or folder: ``path`` relative to the root with "/", ``size`` in bytes (0 for folders)."""

    path: str
    size: int
    is_dir: bool


class LocalFiles:
    """The files below ``root``; paths are relative to it, and whoever calls has checked them."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def read_range(self, path: str, start: int, length: int) -> bytes:
        with (self._root / path).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def once(self, purpose: str = "") -> LocalFiles:
        """The same files; a full disk is not waited for anyway unless `write` is told to."""
        return self

    def write(self, path: str, data: bytes, room: RetryPolicy | None = None) -> None:
        """A full disk is waited for as ``room`` says; without that StorageFailed has the system's errno."""
        if room:
            retried(lambda: self._write(path, data), self._root.as_posix(), is_full, room)
        else:
            self._write(path, data)

    def _write(self, path: str, data: bytes) -> None:
        target = self._root / path
        try:
            with appearing_whole(target) as partial:
                partial.write_bytes(data)
        except OSError as error:
            if not is_full(error):
                raise
            full = StorageFailed(
                f"{target} cannot be written: the disk is full ({error.strerror}; {len(data):,} bytes were "
                "wanted). Free some space there."
            )
            full.errno = error.errno
            raise full from error

    def download(self, path: str, local_file: Path) -> None:
        with appearing_whole(local_file) as partial:
            shutil.copyfile(self._root / path, partial)

    def exists(self, path: str) -> bool:
        return (self._root / path).exists()

    def size(self, path: str) -> int:
        target = self._root / path
        if not target.is_file():
            raise FileNotFoundError(f"{target} is not a file.")
        return target.stat().st_size

    def list(self, path: str, recursive: bool) -> list[Entry]:
        start = len(self._root.as_posix().rstrip("/")) + 1
        return list(_entries(self._root / path, start, recursive))

    def delete(self, path: str) -> None:
        """Of a link the link is removed, not what it points to."""
        target = self._root / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


@contextmanager
def appearing_whole(target: Path) -> Iterator[Path]:
    """A path beside ``target`` to write to, renamed to it when that went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _entries(
    folder: Path, start: int, recursive: bool, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[Entry]:
    """Entries whose paths are those of the system from character ``start`` on.

    ``above`` has device and inode of the folders on the way here: a link to one of them is not followed.
    """
    try:
        if not folder.is_dir():
            return
        status = folder.stat()
        within = above | {(status.st_dev, status.st_ino)}
        if within == above:
            return
        with os.scandir(folder) as items:
            for item in items:
                if _is_folder(item):
                    if recursive:
                        yield from _entries(Path(item.path), start, recursive, within)
                    else:
                        yield Entry(item.path[start:], 0, True)
                elif not item.name.endswith(PARTIAL):
                    is_broken = item.is_symlink() and not Path(item.path).exists()
                    yield Entry(item.path[start:], 0 if is_broken else item.stat().st_size, False)
    except PermissionError as error:
        raise DataError(
            f"Found the folder {folder}, which cannot be read ({error.strerror}); expected one whose files you may "
            "list. Change its permissions (chmod u+rx), or move it elsewhere."
        ) from error


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise
