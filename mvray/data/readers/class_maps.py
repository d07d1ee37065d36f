"""Class maps as data sets have them: pictures whose pixels are classes, by index, colour or number."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from mvray.data.bad_files import inspect
from mvray.data.decoding import ORIENTATION, PICTURE_SUFFIXES, Unreadable, load_pixels, looks_like, open_picture
from mvray.errors import DataError
from mvray.experiment import IGNORE, BadRecord

if TYPE_CHECKING:
    from mvray.storage import Entry, Storage

MASK = "mask"
"""The target's name, in every reader."""
_HEAD_BYTES, _PICTURE_HEAD_BYTES = 64, 16 << 10
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3  # a PNG's colour types
_LOOKED_AT = 8
Colours = Mapping[tuple[int, int, int], int]
"""The class of each colour, 255 for none."""


@dataclass(frozen=True)
class Pixels:
    """What a class map's pixels may be: bits and colour types of a PNG, and that in words."""

    allowed: frozenset[tuple[int, int]]
    words: str


# Grey of 2 and 4 bits is stretched to 0..255 by those who take it for light: whether 1 is class 1 is not known.
_PALETTES = frozenset((bits, _PALETTE) for bits in (1, 2, 4, 8))
INDICES = Pixels(_PALETTES | {(1, _GREY), (8, _GREY)}, "a palette or 8 bits of grey, whose values are classes")
COLOURS = Pixels(_PALETTES | {(8, _GREY), (8, _RGB)}, "8 bits of RGB or grey or a palette, whose colours are classes")
NUMBERS = Pixels(frozenset([(8, _RGB)]), "8 bits of RGB")


def by_name(entries: Iterable[Entry], folder: str) -> tuple[dict[str, Entry], list[BadRecord]]:
    """The pictures in ``folder`` and below by their paths there without suffix, and those of which there are two."""
    files: dict[str, list[Entry]] = {}
    for entry in entries:
        path = PurePosixPath(entry.path).relative_to(folder)
        if not entry.is_dir and path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
            files.setdefault(str(path.with_suffix("")), []).append(entry)
    bad = [
        BadRecord(entry.path, f"there is {other.path}, too: which one is meant?")
        for same in files.values()
        if len(same) > 1
        for entry, other in zip(same, same[1:] + same[:1], strict=True)
    ]
    return {name: same[0] for name, same in files.items() if len(same) == 1}, bad


def wrong_masks(storage: Storage, masks: Iterable[tuple[Entry, Entry]], pixels: Pixels) -> dict[str, str]:
    """Why which class maps cannot be used, by path. ``masks`` are pairs of a picture and its class map.

    By their headers alone: PNG files that are whole, of such ``pixels``, as large as their picture is upright.
    """
    pictures = {mask.path: (picture, mask) for picture, mask in masks}

    def look(storage: Storage, entry: Entry) -> None:
        head = storage.read_range(entry.path, 0, _HEAD_BYTES)
        if not head.startswith(_PNG) or len(head) < 26:
            raise Unreadable(f"not a PNG file: {looks_like(head)}")
        width, height, bits, kind = struct.unpack(">IIBB", head[16:26])
        if (bits, kind) not in pixels.allowed:
            raise Unreadable(f"pixels of {_said(kind, bits)}; expected {pixels.words}")
        if entry.size < len(head) or not storage.read_range(entry.path, entry.size - 8, 4) == b"IEND":
            raise Unreadable("truncated")
        check_size(storage, pictures[entry.path][0], (width, height))

    return inspect(storage, [mask for _, mask in pictures.values()], look)


def check_size(storage: Storage, picture: Entry, size: tuple[int, int]) -> None:
    """Raises Unreadable where a class map of ``size`` (width, height) is not that of ``picture``, by its header.

    A picture is read upright. Where it is turned so that its size does not show whether the class map is, too, it is
    refused. What its first bytes do not say shows when both are decoded.
    """
    head = storage.read_range(picture.path, 0, _PICTURE_HEAD_BYTES)
    try:
        image = open_picture(head)
        orientation = image.getexif().get(ORIENTATION, 1) if "exif" in image.info or image.format == "TIFF" else 1
    except Exception:  # Pillow's readers raise whatever broken bytes lead them to; the picture is looked at by itself
        return
    upright = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
    if upright != size:
        raise Unreadable(
            f"its class map is {size[0]} x {size[1]} pixels, the picture {picture.path} {upright[0]} x {upright[1]}"
        )
    if orientation in (2, 3, 4) or (orientation in (5, 6, 7, 8) and size[0] == size[1]):
        raise Unreadable(
            f"the picture {picture.path} is turned by its EXIF orientation {orientation}, its class map perhaps not; "
            "expected one without. Save it upright."
        )


def look_closely(
    place: str, masks: Sequence[Entry], read: Callable[[str], np.ndarray], classes: Sequence[str], how: str
) -> None:
    """Raises DataError where none of some class maps can be used: before hours of training, not after.

    Or where they hold nothing but 0 and 255: who marks things by white would have them all ignored. ``read`` gives
    the class map at a path or raises Unreadable, ``how`` says what values are expected.
    """
    some = masks[:: max(1, len(masks) // _LOOKED_AT)][:_LOOKED_AT]
    reasons, ignored = [], 0
    for entry in some:
        try:
            values = np.unique(read(entry.path))
        except Unreadable as error:
            reasons.append(f"{entry.path}: {error.reason}")
            continue
        if ((values > 0) & (values < len(classes))).any():
            return
        ignored += int(IGNORE in values)
    if some and len(reasons) == len(some):
        raise DataError(
            f"{place}: none of {len(reasons)} class maps that were looked at can be used, first {reasons[0]}. {how}"
        )
    if ignored:
        raise DataError(
            f"{place}: {len(some)} class maps that were looked at hold nothing but 0 and {IGNORE}, which counts for "
            f"nothing, first {some[0].path}. {how}"
        )


def classes_of(data: bytes, classes: int, colours: Colours | None = None) -> np.ndarray:
    """The class of each pixel, H x W uint8, 255 for none: a palette's indices, never its colours, but by ``colours``.

    Raises Unreadable where a value is neither below ``classes`` nor 255, or a colour is not in the table.
    """
    image = load_pixels(open_picture(data))
    if colours is not None:
        return _by_colour(np.asarray(image.convert("RGB")), colours)
    if image.mode not in ("P", "L", "1"):
        raise Unreadable(f"pixels of mode {image.mode}; expected {INDICES.words}")
    classes_HW = np.asarray(image, np.uint8)
    # One more makes 0 of 255; a histogram takes ten times as long.
    if (classes_HW + np.uint8(1)).max() > classes:
        values = np.unique(classes_HW)
        shown = ", ".join(str(value) for value in values[(values >= classes) & (values < IGNORE)][:5])
        raise Unreadable(f"holds the values {shown}; expected 0 to {classes - 1}, or {IGNORE} for none")
    return classes_HW


def _by_colour(rgb_HWC: np.ndarray, colours: Colours) -> np.ndarray:
    by_colour = {r | g << 8 | b << 16: class_ for (r, g, b), class_ in colours.items()}
    classes_HW, unknown = by_number(numbers_of(rgb_HWC), by_colour)
    if unknown:
        shown = ", ".join(f"({n & 255}, {n >> 8 & 255}, {n >> 16})" for n in unknown[:5])
        raise Unreadable(f"holds the colours {shown}, which are not in the table; add them to colours.txt")
    return classes_HW


def numbers_of(rgb_HWC: np.ndarray) -> np.ndarray:
    """The number R + 256 G + 256^2 B of each pixel, H x W uint32."""
    rgb0_HW4 = np.zeros((*rgb_HWC.shape[:2], 4), np.uint8)
    rgb0_HW4[..., :3] = rgb_HWC
    numbers_HW: np.ndarray = rgb0_HW4.view("<u4")[..., 0]
    return numbers_HW


def by_number(numbers_HW: np.ndarray, classes: Mapping[int, int]) -> tuple[np.ndarray, list[int]]:
    """The class of each pixel's number, H x W uint8, and the numbers that ``classes`` does not have."""
    flat = numbers_HW.ravel()
    # Neighbours mostly have one number: each run of them is looked up once.
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    present, places = np.unique(flat[starts], return_inverse=True)
    labels = np.array([classes.get(number, IGNORE) for number in present.tolist()], np.uint8)
    unknown = [number for number in present.tolist() if number not in classes]
    return np.repeat(labels[places], np.diff(starts, append=len(flat))).reshape(numbers_HW.shape), unknown


def _said(kind: int, bits: int) -> str:
    names = {_GREY: "grey", _RGB: "RGB", _PALETTE: "a palette", 4: "grey with transparency", 6: "RGB with transparency"}
    return f"{bits} bits of {names.get(kind, f'colour type {kind}')}"
