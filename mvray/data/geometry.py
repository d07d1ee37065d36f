"""Which part of a picture or clip a sample is: one draw for pixels, maps and masks alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mvray.experiment import Clips, Pictures

_64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_GEOMETRY = -1  # the stream of the sample's key that is used here; nn/draws.py has those from 0 on


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


def uniform(key: int, count: int) -> list[float]:
    """Numbers in [0, 1) that belong to ``key``, as nn/draws.py makes them."""
    start = _mix((_mix((key + _GOLDEN) & _64) + _GEOMETRY * _GOLDEN) & _64)
    return [(_mix((start + i * _GOLDEN) & _64) >> 11) * 2.0**-53 for i in range(1, count + 1)]


@dataclass(frozen=True)
class View:
    """The part of a picture that a sample shows, in shares of its width and height, and whether it is mirrored.

    ``numbers`` are the frames of a video; a picture has one, 0.
    """

    x0: float = 0.0
    y0: float = 0.0
    x1: float = 1.0
    y1: float = 1.0
    mirrored: bool = False
    numbers: Sequence[int] = (0,)

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
) -> np.ndarray:
    """The part ``view`` of a picture (uint8, with 1 or 3 channels) or map (float32), height x width.

    Bilinear; where it gets smaller, over all the pixels that fall together. A map that gets larger
    equals torch's interpolate(align_corners=False) of it.
    """
    if array.shape[:2] != (height, width) or view.x1 - view.x0 < 1:
        image = Image.fromarray(array)
        box = (view.x0 * image.width, view.y0 * image.height, view.x1 * image.width, view.y1 * image.height)
        gap = None if array.dtype == np.float32 or resampling == Image.Resampling.NEAREST else 2.0
        array = np.asarray(image.resize((width, height), resampling, box, reducing_gap=gap))
    return array[:, ::-1] if view.mirrored else array
