"""A stored file, read in pieces where it is looked at."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from mvray.storage import Entry, Storage

_BLOCK_BYTES = 256 << 10


class Ranges(io.BufferedReader):
    """The file ``entry`` of a storage, as an open binary file that fetches blocks when they are read."""

    def __init__(self, storage: Storage, entry: Entry, block_bytes: int = _BLOCK_BYTES) -> None:
        super().__init__(_Raw(storage, entry), block_bytes)


class _Raw(io.RawIOBase):
    def __init__(self, storage: Storage, entry: Entry) -> None:
        self._storage, self._entry, self._at = storage, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._entry.size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._storage.read_range(self._entry.path, self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
