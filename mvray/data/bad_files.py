"""Files that cannot be read: found cheaply while indexing, left out, counted, listed.

A picture costs two small reads and no decoding, except where its end looks suspicious: that one file is
decoded to decide. What a video costs is in data/video/video_file.py.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from PIL.ImageFile import ImageFile

from mvray.errors import DataError
from mvray.experiment import BadRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mvray.experiment import Index
    from mvray.storage import Entry, Storage

MAX_MEGAPIXELS = 100
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow knows others, some of which start programs
_HEAD_BYTES = 16 << 10
_TAIL_BYTES = 16
_THREADS = 16

# Pillow's own limit is lower and a warning first; open_picture holds ours before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


class Unreadable(Exception):
    """A sample that cannot be read; ``reason`` says why in words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Note(BadRecord):
    """Something beside the pictures that could not be used: listed, but no sample is left out for it."""


def open_picture(data: bytes) -> ImageFile:
    """The picture in ``data``, its pixels not yet decoded. Raises Unreadable."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead them to
        raise Unreadable(_not_a_picture(data) or f"broken header ({error})") from error
    width, height = image.size
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise Unreadable(f"{width} x {height} pixels, more than {MAX_MEGAPIXELS} megapixels")
    image.decodermaxblock = len(data)  # decode in one call, so that threads pass the interpreter lock on once
    return image


def decoded(image: Image.Image) -> Image.Image:
    """``image`` with its pixels. Raises Unreadable."""
    try:
        image.load()
    except Exception as error:  # as above
        raise Unreadable(f"truncated or broken ({error})") from error
    return image


def inspect(
    storage: Storage, entries: Iterable[Entry], look: Callable[[Storage, Entry], None] | None = None
) -> dict[str, str]:
    """Why which of these files cannot be read: path to reason, for the bad ones only.

    ``look`` raises Unreadable where a file is bad, and is called in several threads; without it, files
    must be pictures.
    """

    listed = list(entries)

    def reasons(every: int) -> dict[str, str]:
        found = {}
        for entry in listed[every::_THREADS]:
            try:
                if entry.size == 0:
                    there = storage.exists(entry.path)
                    raise Unreadable("empty (0 bytes)" if there else "a link to a file that is not there")
                (look or _look_at_picture)(storage, entry)
            except PermissionError as error:
                found[entry.path] = f"no permission to read it ({error.strerror or error})"
            except Unreadable as error:
                found[entry.path] = error.reason
        return found

    with ThreadPoolExecutor(_THREADS) as pool:
        found = {path: reason for some in pool.map(reasons, range(_THREADS)) for path, reason in some.items()}
    return {entry.path: found[entry.path] for entry in listed if entry.path in found}


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
    if why := _not_a_picture(head):
        raise Unreadable(why)
    tail = storage.read_range(path, size - _TAIL_BYTES, _TAIL_BYTES) if size > len(head) else head
    if _ends_well(head, tail, size) and _header_is_sound(head, size):
        return
    data = storage.read(path)
    if data.startswith(b"\xff\xd8") and data.find(b"\xff\xd9", data.rfind(b"\xff\xda")) < 0:
        raise Unreadable(f"truncated (a JPEG of {size} bytes without its end)")
    decoded(open_picture(data))


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


def is_picture(head: bytes) -> bool:
    """Whether a file that starts with ``head`` looks like a picture."""
    return head.startswith(_PICTURE_STARTS)


def looks_like(head: bytes) -> str:
    """What a file that starts with ``head`` is instead of what it should be, for a message."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (fetch the real file with git lfs pull)"
    if not head:
        return "it is empty"
    try:
        text = head[:200].decode("utf-8", errors="strict" if len(head) <= 200 else "ignore")
    except UnicodeDecodeError:
        text = ""
    if text and all(letter.isprintable() or letter.isspace() for letter in text):
        return f"text that starts with {' '.join(text.split())[:40]!r}"
    return f"starts with the bytes {head[:8].hex(' ')}"


def _not_a_picture(head: bytes) -> str | None:
    return None if is_picture(head) else f"not a picture: {looks_like(head)}"
