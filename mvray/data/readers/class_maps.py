"""Class maps as data sets have them: pictures whose pixels are classes, by index or by colour."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mvray.data.decoding import Unreadable, load_pixels, looks_like, open_picture
from mvray.experiment import IGNORE

if TYPE_CHECKING:
    from mvray.storage import Entry, Storage

MASK = "mask"
"""The target's name, in every reader."""
_HEAD_BYTES = 64
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3  # a PNG's colour types
_INDICES = "a palette or 8 bits of grey, whose values are classes"
Colours = Mapping[tuple[int, int, int], int]
"""The class of each colour, 255 for none."""


def look(storage: Storage, entry: Entry, colours: Colours | None = None) -> None:
    """For `inspect`: raises Unreadable where a file's header says that its pixels are no classes."""
    head = storage.read_range(entry.path, 0, _HEAD_BYTES)
    if not head.startswith(_PNG) or len(head) < 26:
        raise Unreadable(f"not a PNG file: {looks_like(head)}")
    bits, kind = struct.unpack(">BB", head[24:26])
    if colours is None and (kind not in (_GREY, _PALETTE) or bits > 8):
        raise Unreadable(f"pixels of {_said(kind, bits)}; expected {_INDICES}")
    if colours is not None and (kind not in (_RGB, _PALETTE) or bits > 8):
        raise Unreadable(f"pixels of {_said(kind, bits)}; expected RGB or a palette, whose colours are classes")
    if entry.size < len(head) or not storage.read_range(entry.path, entry.size - 8, 4) == b"IEND":
        raise Unreadable("truncated")


def classes_of(data: bytes, classes: int, colours: Colours | None = None) -> np.ndarray:
    """The class of each pixel, H x W uint8, 255 for none: a palette's indices, never its colours, but by ``colours``.

    Raises Unreadable where a value is neither below ``classes`` nor 255, or a colour is not in the table.
    """
    image = load_pixels(open_picture(data))
    if colours is not None:
        return _by_colour(np.asarray(image.convert("RGB")), colours)
    if image.mode not in ("P", "L", "1"):
        raise Unreadable(f"pixels of mode {image.mode}; expected {_INDICES}")
    classes_HW = np.asarray(image).astype(np.uint8)
    found = np.bincount(classes_HW.ravel(), minlength=256)
    found[:classes] = found[IGNORE] = 0
    if found.any():
        values = ", ".join(str(value) for value in np.flatnonzero(found)[:5])
        raise Unreadable(f"holds the values {values}; expected 0 to {classes - 1}, or {IGNORE} for none")
    return classes_HW


def _by_colour(rgb_HWC: np.ndarray, colours: Colours) -> np.ndarray:
    numbers_HW = (rgb_HWC.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(2, dtype=np.uint32)
    present, places = np.unique(numbers_HW, return_inverse=True)
    known = {(r << 16) | (g << 8) | b: class_ for (r, g, b), class_ in colours.items()}
    if unknown := [number for number in present.tolist() if number not in known]:
        shown = ", ".join(f"({n >> 16}, {n >> 8 & 255}, {n & 255})" for n in unknown[:5])
        raise Unreadable(f"holds the colours {shown}, which are not in the table")
    return np.array([known[number] for number in present.tolist()], np.uint8)[places].reshape(numbers_HW.shape)


def _said(kind: int, bits: int) -> str:
    names = {_GREY: "grey", _RGB: "RGB", _PALETTE: "a palette", 4: "grey with transparency", 6: "RGB with transparency"}
    return f"{bits} bits of {names.get(kind, f'colour type {kind}')}"
