"""Crops of pictures: each picture decoded once per node, its crops in one file that all processes map.

Shapes: H x W pixels.
"""

from __future__ import annotations

import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from mvray.data.decoding import Unreadable, open_upright
from mvray.data.node_cache import build_once, node_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mvray.storage import Entry

_LAYOUT = 1  # grows when the same crops are stored in another way or cut otherwise
_THREADS = 16
_SCHEMA = pa.schema({"key": pa.string(), "height": pa.int32(), "width": pa.int32(), "pixels": pa.binary()})
_MIN_SIDE_PX = 2.0  # a box that is less than this after it was cut at the picture's edge shows nothing


class Cut(NamedTuple):
    """Pixels of a picture, x1 and y1 excluded. ``str`` of it is the ``part`` of an index row, see `Cut.of`."""

    x0: int
    y0: int
    x1: int
    y1: int

    def __str__(self) -> str:
        return f"{self.x0},{self.y0},{self.x1},{self.y1}"

    @classmethod
    def of(cls, part: str) -> Cut:
        return cls(*(int(side) for side in part.split(",")))


class CutPicture(NamedTuple):
    """A picture's file, the size in pixels that its cuts refer to, and the cuts."""

    file: Entry
    width: int
    height: int
    cuts: tuple[Cut, ...]


def square(box: tuple[float, float, float, float], width: int, height: int, margin: float) -> Cut | None:
    """The square around ``box`` (x0, y0, x1, y1 in pixels of a picture of width x height); None for an empty box.

    The box is cut at the picture's edges. The square's side is the box's longer one and ``margin`` of it on
    both sides. It moves inwards where it would leave the picture, and is cut where the picture is too small.
    """
    x0, x1 = max(0.0, box[0]), min(float(width), box[2])
    y0, y1 = max(0.0, box[1]), min(float(height), box[3])
    if math.isnan(sum(box)) or x1 - x0 < _MIN_SIDE_PX or y1 - y0 < _MIN_SIDE_PX:
        return None
    side = round(max(x1 - x0, y1 - y0) * (1 + 2 * margin))
    left, wide = _placed((x0 + x1 - side) / 2, side, width)
    top, high = _placed((y0 + y1 - side) / 2, side, height)
    return Cut(left, top, left + wide, top + high)


def _placed(start: float, side: int, whole: int) -> tuple[int, int]:
    """Where the side begins inside of 0..whole, and how long it is there."""
    return max(0, min(round(start), whole - side)), min(side, whole)


def crop(image: Image.Image, cut: Cut, size: tuple[int, int], most_px: int) -> np.ndarray:
    """The part ``cut`` of a grey picture, H x W uint8 in its own pixels, the longer side at most ``most_px``.

    ``cut`` refers to a picture of ``size`` (width, height); one of another size is cut in proportion.
    """
    across, down = image.width / size[0], image.height / size[1]
    box = cut.x0 * across, cut.y0 * down, cut.x1 * across, cut.y1 * down
    scale = min(1.0, most_px / max(box[2] - box[0], box[3] - box[1]))
    wide, high = (max(1, round((box[i + 2] - box[i]) * scale)) for i in (0, 1))
    if scale == 1 and size == image.size:
        return np.asarray(image.crop(cut))
    return np.asarray(image.resize((wide, high), Image.Resampling.BILINEAR, box, reducing_gap=2.0))


class Crops:
    """The crops of some pictures, mapped into memory; threads may share it."""

    def __init__(self, file: Path) -> None:
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
        self._at = {key: row for row, key in enumerate(table["key"].to_pylist())}
        self._sizes = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], 1)
        self._pieces = table["pixels"].chunks
        self._starts = np.cumsum([0, *(len(piece) for piece in self._pieces)])

    def get(self, location: str, part: str) -> np.ndarray | None:
        """The crop, H x W uint8, not writeable; None where it is not here."""
        row = self._at.get(_key(location, part))
        if row is None:
            return None
        piece = int(np.searchsorted(self._starts, row, side="right")) - 1
        pixels = self._pieces[piece][row - int(self._starts[piece])].as_buffer()
        return np.frombuffer(pixels, np.uint8).reshape(self._sizes[row])


def open_crops(
    name: str,
    pictures: Sequence[CutPicture],
    most_px: int,
    read: Callable[[str], bytes],
    cache: Path | None = None,
) -> Crops | None:
    """The crops of ``pictures``, made if no process of this node has made them from the same files.

    ``name`` tells pictures of equal paths and sizes apart: the root's address and what is in it. ``read``
    gives a file's content. A picture that cannot be decoded has no crops here. None where the disk is full.
    """
    digest = hashlib.sha256(repr((_LAYOUT, name, most_px, [tuple(cut_picture) for cut_picture in pictures])).encode())
    file = (cache or node_folder("crops")) / f"{digest.hexdigest()[:32]}.arrow"
    path = build_once(file, lambda partial: _write(pictures, most_px, read, partial))
    return Crops(path) if path else None


def _key(location: str, part: str) -> str:
    return f"{location}:{part}"


def _write(pictures: Sequence[CutPicture], most_px: int, read: Callable[[str], bytes], file: Path) -> None:
    """A batch of rows per picture, so that only crops are ever held, not pictures."""
    threads = min(os.cpu_count() or 1, _THREADS)
    with (
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
        ThreadPoolExecutor(threads, thread_name_prefix="crop") as pool,
    ):
        for batch in pool.map(lambda picture: _batch(picture, most_px, read), pictures):
            writer.write_batch(batch)


def _batch(picture: CutPicture, most_px: int, read: Callable[[str], bytes]) -> pa.RecordBatch:
    try:
        image = decode_whole(read(picture.file.path))
    except Unreadable:  # asked for again, and said why, when a crop of it is read: it may be mended until then
        return pa.RecordBatch.from_pylist([], schema=_SCHEMA)
    crops = {
        _key(picture.file.path, str(cut)): crop(image, cut, (picture.width, picture.height), most_px)
        for cut in picture.cuts
    }
    heights, widths = ([array.shape[i] for array in crops.values()] for i in (0, 1))
    columns = list(crops), heights, widths, [array.tobytes() for array in crops.values()]
    return pa.record_batch([pa.array(column, f.type) for column, f in zip(columns, _SCHEMA, strict=True)], _SCHEMA)


def decode_whole(data: bytes) -> Image.Image:
    """The picture in ``data``, grey, at its own size. Raises Unreadable."""
    return open_upright(data, 1 << 30, 1 << 30, grey=True)
