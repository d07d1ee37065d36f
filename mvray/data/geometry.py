"""Which part of a picture or clip a sample is: one draw for pixels, maps and masks alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mvray.experiment import Clips, Pictures

_64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
GEOMETRY, COLOUR = -1, -2  # the streams of a sample's key that are used in data/; nn/draws.py has those from 0 on
PADDING = (124, 116, 104)
"""What is put around a picture that is padded: ImageNet's mean colour, which is 0 for a network."""


def _mix(word: int) -> int:
    """splitmix64's output function (Steele, Lea, Flood 2014)."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _64
    return word ^ (word >> 31)


def sample_key(seed: int, epoch: int, row: int) -> int:
    """The sample's own random key for this epoch: an int64, ``batch["draw"]``."""
    word = 0
    for part in (seed, epoch, row):
        word = _mix((word + _GOLDEN + part) & _64)
    return word - 2**64 if word >= 2**63 else word


def uniform(key: int, count: int, stream: int = GEOMETRY) -> list[float]:
    """Numbers in [0, 1) that belong to ``key`` and ``stream``, as nn/draws.py makes them."""
    start = _mix((_mix((key + _GOLDEN) & _64) + stream * _GOLDEN) & _64)
    return [(_mix((start + i * _GOLDEN) & _64) >> 11) * 2.0**-53 for i in range(1, count + 1)]


@dataclass(frozen=True)
class View:
    """The part of a picture that a sample shows, in shares of its width and height, and whether it is mirrored.

    Below 0 and above 1 there is nothing, which is padded. ``numbers`` are the frames of a video; a picture has one, 0.
    ``native`` is the picture's own height and width, where it was needed to choose the part.
    """

    x0: float = 0.0
    y0: float = 0.0
    x1: float = 1.0
    y1: float = 1.0
    mirrored: bool = False
    numbers: Sequence[int] = (0,)
    native: tuple[int, int] | None = None

    @classmethod
    def padded(cls, pictures: Pictures, native: tuple[int, int], key: int | None) -> View:
        """Where ``pictures`` has fit="pad": a place drawn by ``key``, or where it is None the whole, in the middle."""
        if key is None:
            scale, y, x, mirror = min(1.0, pictures.height / native[0], pictures.width / native[1]), 0.5, 0.5, 1.0
        else:
            mirror, size, y, x = uniform(key, 4)
            scale = pictures.size_range[0] + size * (pictures.size_range[1] - pictures.size_range[0])
        spans = []
        for size_px, own_px, place in ((pictures.height, native[0], y), (pictures.width, native[1], x)):
            scaled_px = max(1, round(own_px * scale))
            spare = scaled_px - size_px  # below 0 where padding is needed
            first = min(0, spare) + int(place * (abs(spare) + 1))
            spans.append((first / scaled_px, (first + size_px) / scaled_px))
        (y0, y1), (x0, x1) = spans
        return cls(x0, y0, x1, y1, pictures.flip and mirror < 0.5, native=native)

    def inside(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns of a sample of height x width that show something of the picture, not padding."""

        def span(start: float, end: float, pixels: int) -> slice:
            per_pixel = (end - start) / pixels
            return slice(max(0, round(-start / per_pixel)), min(pixels, round((1 - start) / per_pixel)))

        return span(self.y0, self.y1, height), span(self.x0, self.x1, width)

    def within(self, other: View) -> View:
        """The same part in shares of what ``other`` shows of the picture."""
        wide, high = other.x1 - other.x0, other.y1 - other.y0
        box = ((self.x0 - other.x0) / wide, (self.y0 - other.y0) / high)
        return replace(
            self, x0=box[0], y0=box[1], x1=box[0] + (self.x1 - self.x0) / wide, y1=box[1] + (self.y1 - self.y0) / high
        )

    @classmethod
    def random(cls, pictures: Pictures, key: int) -> View:
        """A crop of the picture's own proportions, ``pictures.crop_scale`` of its area, perhaps mirrored."""
        mirror, scale, x, y = uniform(key, 4)
        least, most = pictures.crop_scale
        side = math.sqrt(least + scale * (most - least))
        x0, y0 = x * (1 - side), y * (1 - side)
        return cls(x0, y0, x0 + side, y0 + side, pictures.flip and mirror < 0.5)


@dataclass(frozen=True)
class ClipView:
    """Where a clip is cut: frames ``numbers``, scaled to ``scaled_size`` (height, width), cut at ``top``, ``left``."""

    numbers: list[int]
    scaled_size: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    mirrored: bool

    @classmethod
    def of(cls, clips: Clips, count: int, height: int, width: int, key: int | None) -> ClipView:
        """The clip of a video of ``count`` frames of height x width: drawn by ``key``, the middle where it is None.

        Training and validation transforms of Nitta et al. (papers.md, section 3) as `Clips` has them.
        """
        begin, size, y, x, mirror = (0.5, 0.0, 0.5, 0.5, 1.0) if key is None else uniform(key, 5)
        least, most = clips.short_side
        side = clips.test_side if key is None else least + int(size * (most - least + 1))
        scale = side / min(height, width)
        scaled = max(side, round(height * scale)), max(side, round(width * scale))
        spare = max(0, count - clips.frames * clips.every)
        first = int(begin * (spare + 1)) if key is not None else spare // 2
        return cls(
            numbers=[(first + i * clips.every) % count for i in range(clips.frames)],
            scaled_size=scaled,
            top=int(y * (scaled[0] - clips.height + 1)),
            left=int(x * (scaled[1] - clips.width + 1)),
            height=clips.height,
            width=clips.width,
            mirrored=clips.flip and mirror < 0.5,
        )

    def cut(self, clip_THWC: np.ndarray) -> np.ndarray:
        """The part of frames that are scaled already, T x H x W x C."""
        cut = clip_THWC[:, self.top : self.top + self.height, self.left : self.left + self.width]
        return cut[:, :, ::-1] if self.mirrored else cut

    @property
    def view(self) -> View:
        """The same part for masks and maps."""
        high, wide = self.scaled_size
        x0, y0 = self.left / wide, self.top / high
        return View(x0, y0, x0 + self.width / wide, y0 + self.height / high, self.mirrored, self.numbers)


def cut_view(
    array: np.ndarray,
    height: int,
    width: int,
    view: View,
    resampling: Image.Resampling = Image.Resampling.BILINEAR,
    padding: int | float | tuple[int, ...] = 0,
) -> np.ndarray:
    """The part ``view`` of a picture (uint8, with 1 or 3 channels) or map (float32), height x width.

    Bilinear; where it gets smaller, over all the pixels that fall together. A map that gets larger
    equals torch's interpolate(align_corners=False) of it. What lies outside is ``padding``.
    """
    if min(view.x0, view.y0) < 0 or max(view.x1, view.y1) > 1:
        array = _padded(array, height, width, view, resampling, padding)
    elif array.shape[:2] != (height, width) or min(view.x1 - view.x0, view.y1 - view.y0) < 1:
        image = Image.fromarray(array)
        box = (view.x0 * image.width, view.y0 * image.height, view.x1 * image.width, view.y1 * image.height)
        gap = None if array.dtype == np.float32 or resampling == Image.Resampling.NEAREST else 2.0
        array = np.asarray(image.resize((width, height), resampling, box, reducing_gap=gap))
    return array[:, ::-1] if view.mirrored else array


def _padded(
    array: np.ndarray,
    height: int,
    width: int,
    view: View,
    resampling: Image.Resampling,
    padding: int | float | tuple[int, ...],
) -> np.ndarray:
    """As `cut_view`, not mirrored: what there is of the part, in its place in an array of ``padding``."""
    canvas = np.empty((height, width, *array.shape[2:]), array.dtype)
    canvas[:] = padding
    top, bottom, y0, y1 = _inside(view.y0, view.y1, height, array.shape[0])
    left, right, x0, x1 = _inside(view.x0, view.x1, width, array.shape[1])
    if top < bottom and left < right:
        size = right - left, bottom - top
        part = Image.fromarray(array).resize(size, resampling, (x0, y0, x1, y1))
        canvas[top:bottom, left:right] = np.asarray(part)
    return canvas


def _inside(start: float, end: float, pixels: int, own: int) -> tuple[int, int, float, float]:
    """Which of ``pixels`` from ``start`` to ``end`` lie on an axis from 0 to 1, and from where to where in ``own``."""
    per_pixel = (end - start) / pixels
    first = max(0, round(-start / per_pixel))
    last = min(pixels, round((1 - start) / per_pixel))
    begins, ends = ((start + at * per_pixel) * own for at in (first, last))
    # Whole pixels stay whole: a picture that is not scaled is copied as it is.
    return first, last, max(0.0, round(begins, 6)), min(float(own), round(ends, 6))
