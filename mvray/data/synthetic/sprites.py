"""Drawings that move smoothly: cut out, shrunk and turned to fractions of a pixel, with their exact masks.

Legend: H W pixels of a frame; h w of the part of it that a sprite covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mvray.data.synthetic.drawings import SIDE, drawing

PAD_PX = 3
"""Empty pixels around a sprite, so that interpolation finds nothing at its edge."""
SHRUNK = (1.0, 0.71, 0.5, 0.35, 0.25, 0.18)
"""Sizes that are kept ready: cubic interpolation alone would alias where it shrinks far."""
OPAQUE = 128
"""The least alpha that counts as the object: one half."""


@dataclass(frozen=True)
class Sprite:
    """A drawing cut out: ``levels`` are premultiplied pictures of it, largest first; ``width`` and ``height``
    are those of what is drawn, in the drawing's pixels."""

    levels: tuple[Image.Image, ...]
    width: int
    height: int


def sprite(artist: str, name: str, lean_deg: float = 0.0) -> Sprite:
    """The drawing, leaned clockwise by so much and cut at what is drawn."""
    return cut_out(drawing(artist, name).image, lean_deg)


def cut_out(drawn: Image.Image, lean_deg: float = 0.0) -> Sprite:
    """A drawing in RGBA, in colours of its own perhaps, leaned clockwise by so much and cut at what is drawn."""
    image = drawn.convert("RGBa")
    if lean_deg:
        image = image.rotate(-lean_deg, Image.Resampling.BICUBIC, expand=True)
    box = image.getchannel("a").point(lambda a: 255 * (a >= OPAQUE)).getbbox() or (0, 0, SIDE, SIDE)
    image = image.crop(box)
    return Sprite(tuple(_level(image, factor) for factor in SHRUNK), *image.size)


def _level(image: Image.Image, factor: float) -> Image.Image:
    size = tuple(max(1, round(side * factor)) for side in image.size)
    small = image if factor == 1 else image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    padded = Image.new("RGBa", (small.width + 2 * PAD_PX, small.height + 2 * PAD_PX))
    padded.paste(small, (PAD_PX, PAD_PX))
    return padded


@dataclass(frozen=True)
class Pose:
    """Where a sprite is in a frame: its middle in pixels, clockwise angle, pixels of the frame per pixel of
    the drawing, and ``face``, the factor of its width (negative: mirrored)."""

    x: float
    y: float
    angle_deg: float
    scale: float
    face: float


def half_extent(width: Any, height: Any, angle_deg: Any) -> tuple[Any, Any]:
    """Half width and height of the upright box around a turned one. Numbers or arrays."""
    turn = np.deg2rad(angle_deg)
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    return (width * cos + height * sin) / 2, (width * sin + height * cos) / 2


def warp(of: Sprite, pose: Pose, frame: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """The sprite as it stands in a frame of (width, height): the rows and columns that it may cover and its
    premultiplied colours there, h x w x 4 uint8. None where it is out of view."""
    level = next((one for one in reversed(of.levels) if _factor(of, one)[1] >= pose.scale), of.levels[0])
    fx, fy = _factor(of, level)
    half_x, half_y = half_extent(of.width * pose.scale * abs(pose.face), of.height * pose.scale, pose.angle_deg)
    x0, x1 = max(0, int(pose.x - half_x) - 2), min(frame[0], int(pose.x + half_x) + 3)
    y0, y1 = max(0, int(pose.y - half_y) - 2), min(frame[1], int(pose.y + half_y) + 3)
    if x0 >= x1 or y0 >= y1:
        return None
    turn = np.deg2rad(pose.angle_deg)
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    # From the frame back to the level's pixels: undo the turn, then the size.
    a, b = cos * fx / (pose.scale * pose.face), sin * fx / (pose.scale * pose.face)
    d, e = -sin * fy / pose.scale, cos * fy / pose.scale
    dx, dy = x0 - pose.x, y0 - pose.y
    back = (a, b, level.width / 2 + a * dx + b * dy, d, e, level.height / 2 + d * dx + e * dy)
    image = level.transform((x1 - x0, y1 - y0), Image.Transform.AFFINE, back, Image.Resampling.BICUBIC)
    rgba_hw4 = np.asarray(image)
    return (slice(y0, y1), slice(x0, x1)), rgba_hw4


def over(rgba_hw4: np.ndarray, below_hw3: np.ndarray) -> np.ndarray:
    """Premultiplied colours over a picture."""
    alpha_hw1 = rgba_hw4[..., 3:].astype(np.uint16)
    # Cubic interpolation overshoots at edges; no colour may be brighter than its cover.
    colour_hw3 = np.minimum(rgba_hw4[..., :3], alpha_hw1)
    return np.asarray((colour_hw3 + (below_hw3 * (255 - alpha_hw1) + 127) // 255).astype(np.uint8))


def _factor(of: Sprite, level: Image.Image) -> tuple[float, float]:
    return (level.width - 2 * PAD_PX) / of.width, (level.height - 2 * PAD_PX) / of.height
