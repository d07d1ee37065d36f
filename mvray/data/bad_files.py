"""Files that cannot be read: found cheaply while indexing, left out, counted, listed.

A picture costs two small reads and no decoding, except where its end looks suspicious: that one file is
decoded to decide. What a video costs is in data/video/video_file.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mvray.data.decoding import Unreadable, load_pixels, not_a_picture, open_picture
from mvray.errors import DataError
from mvray.experiment import BadRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mvray.experiment import Index
    from mvray.storage import Entry, Storage

_HEAD_BYTES = 16 << 10
_TAIL_BYTES = 16
_THREADS = 16


@dataclass(frozen=True)
class Note(BadRecord):
    """Something beside the pictures that could not be used: listed, but no sample is left out for it."""


def inspect(
    storage: Storage, entries: Iterable[Entry], look: Callable[[Storage, Entry], None] | None = None
) -> dict[str, str]:
    """Why which of these files cannot be read: path to reason, for the bad ones only.

    ``look`` raises Unreadable where a file is bad, and is called in several threads; without it, files
    must be pictures.
    """

    listed = list(entries)

    def reasons(every: int) -> dict[str, str]:
        by_path = {}
        for entry in listed[every::_THREADS]:
            try:
                if entry.size == 0:
                    exists = storage.exists(entry.path)
                    raise Unreadable("empty (0 bytes)" if exists else "a link to a file that is not there")
                (look or _look_at_picture)(storage, entry)
            except PermissionError as error:
                by_path[entry.path] = f"no permission to read it ({error.strerror or error})"
            except Unreadable as error:
                by_path[entry.path] = error.reason
        return by_path

    with ThreadPoolExecutor(_THREADS) as pool:
        by_path = {path: reason for some in pool.map(reasons, range(_THREADS)) for path, reason in some.items()}
    return {entry.path: by_path[entry.path] for entry in listed if entry.path in by_path}


def check(index: Index, max_bad_fraction: float) -> None:
    """Raises DataError where more than ``max_bad_fraction`` of the files cannot be read."""
    bad = [record for record in index.bad if not isinstance(record, Note)]
    files = pc.count_distinct(index.rows["location"]).as_py() + len(bad)
    if len(bad) <= max_bad_fraction * files:
        return
    listed = "".join(f"\n  {record.location}: {record.reason}" for record in bad[:5])
    more = f"\n  and {len(bad) - 5} more" if len(bad) > 5 else ""
    raise DataError(
        f"Found {len(bad)} of {files} files unreadable ({len(bad) / files:.1%}); expected at most "
        f"{max_bad_fraction:.1%}:{listed}{more}\n"
        "Mend or remove these files, or allow more with --set data.max_bad_fraction=0.1."
    )


def as_table(bad: Sequence[BadRecord]) -> pa.Table:
    """Bad records as a table for quarantine.parquet: location, reason, left_out."""
    return pa.table(
        {
            "location": pa.array([record.location for record in bad], pa.string()),
            "reason": pa.array([record.reason for record in bad], pa.string()),
            "left_out": pa.array([not isinstance(record, Note) for record in bad], pa.bool_()),
        }
    )


def _look_at_picture(storage: Storage, entry: Entry) -> None:
    """Raises Unreadable where the picture is bad."""
    path, size = entry.path, entry.size
    head = storage.read_range(path, 0, _HEAD_BYTES)
    if why := not_a_picture(head):
        raise Unreadable(why)
    tail = storage.read_range(path, size - _TAIL_BYTES, _TAIL_BYTES) if size > len(head) else head
    if _ends_well(head, tail, size) and _header_is_sound(head, size):
        return
    data = storage.read(path)
    if data.startswith(b"\xff\xd8") and data.find(b"\xff\xd9", data.rfind(b"\xff\xda")) < 0:
        raise Unreadable(f"truncated (a JPEG of {size} bytes without its end)")
    load_pixels(open_picture(data))


def _header_is_sound(head: bytes, size: int) -> bool:
    """False where ``head`` is not enough to tell. Raises Unreadable for a size out of bounds."""
    if head.startswith(b"RIFF") and len(head) < size:
        return False
    try:
        open_picture(head)
    except Unreadable as error:
        if len(head) == size or "megapixels" in error.reason:
            raise
        return False
    return True


def _ends_well(head: bytes, tail: bytes, size: int) -> bool:
    """Whether the end is the one that this kind of picture must have. False: decode it to know."""
    if head.startswith(b"\xff\xd8"):
        return tail.endswith(b"\xff\xd9")
    if head.startswith(b"\x89PNG"):
        return tail[-8:-4] == b"IEND"
    if head.startswith(b"GIF8"):
        return tail.endswith(b";")
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 == size
    return False
