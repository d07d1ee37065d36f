"""Decodes picture files to pixels in mode L or RGB, and refuses broken ones with a reason."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MAX_MEGAPIXELS = 100
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow knows others, some of which start programs
ORIENTATION = 0x0112  # the EXIF tag; above 4 width and height are swapped

# Pillow's own limit is lower and a warning first; open_picture holds ours before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


class Unreadable(Exception):
    """A sample that cannot be read; ``reason`` says why in words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def open_picture(data: bytes) -> ImageFile:
    """The picture in ``data``, its pixels not yet decoded. Raises Unreadable."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead them to
        raise Unreadable(not_a_picture(data) or f"broken header ({error})") from error
    width, height = image.size
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise Unreadable(f"{width} x {height} pixels, more than {MAX_MEGAPIXELS} megapixels")
    image.decodermaxblock = len(data)  # decode in one call, so that threads pass the interpreter lock on once
    return image


def load_pixels(image: Image.Image) -> Image.Image:
    """``image`` with its pixels. Raises Unreadable."""
    try:
        image.load()
    except Exception as error:  # as above
        raise Unreadable(f"truncated or broken ({error})") from error
    return image


def open_upright(data: bytes, height: int, width: int, grey: bool) -> Image.Image:
    """The picture, upright, in mode L (grey pictures, or if asked) or RGB; not smaller than height x width.

    A JPEG larger than that is decoded at 1/2, 1/4 or 1/8 of its size. Transparency becomes white.
    Raises Unreadable.
    """
    image = open_picture(data)
    try:
        exif = "exif" in image.info or image.format == "TIFF"
        if image.format == "JPEG":
            turned = exif and image.getexif().get(ORIENTATION, 1) > 4
            image.draft("L" if grey else None, (height, width) if turned else (width, height))
        load_pixels(image)
        if exif:
            ImageOps.exif_transpose(image, in_place=True)
        return _in_two_modes(image, grey)
    except Unreadable:
        raise
    except Exception as error:  # as in open_picture
        raise Unreadable(f"cannot be converted ({error})") from error


def _in_two_modes(image: Image.Image, grey: bool) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(layer)
    mode = "L" if grey or image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)


def pixels_of(image: Image.Image) -> np.ndarray:
    """H x W x C uint8."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


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


def not_a_picture(head: bytes) -> str | None:
    """Why a file that starts with ``head`` is no picture; None where it looks like one."""
    return None if is_picture(head) else f"not a picture: {looks_like(head)}"
