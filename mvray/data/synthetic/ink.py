"""Colour drawings as inked grey sprites, and grey areas as screentone. Legend: H W pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from mvray.data.synthetic import drawings

TILE = 60
INK = 18
"""Grey of ink on paper."""
GREYS = np.arange(256.0)


@dataclass(frozen=True)
class Sprite:
    """A drawing ready for a page: grey ``image``, its ``mask``, and ``body``, the mask without the halo.

    ``centre`` is where the middle of the 128 x 128 drawing lies in it; ``scale``, ``angle_deg``
    (counter-clockwise) and ``mirror`` say how it was moved, so that boxes in it can follow.
    """

    image: Image.Image
    mask: Image.Image
    body: Image.Image
    centre: tuple[float, float]
    scale: float
    angle_deg: float
    mirror: bool

    def follow(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """The bounding box, in the sprite, of the ellipse that fills ``box`` of the drawing."""
        x0, y0, x1, y1 = ((v - drawings.SIDE / 2) * self.scale for v in box)
        if self.mirror:
            x0, x1 = -x1, -x0
        turn = np.deg2rad(self.angle_deg)
        cos, sin = np.cos(turn), np.sin(turn)
        x, y, a, b = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
        cx, cy = self.centre[0] + x * cos + y * sin, self.centre[1] - x * sin + y * cos
        w, h = np.hypot(a * cos, b * sin), np.hypot(a * sin, b * cos)
        return (cx - w, cy - h, cx + w, cy + h)


@cache
def _plate(artist: str, name: str) -> tuple[Image.Image, Image.Image]:
    """The drawing in grey on ink, contrast stretched over the object, and its mask."""
    image = drawings.drawing(artist, name).image
    mask = image.getchannel("A")
    grey = ImageOps.grayscale(image.convert("RGB"))
    values = np.asarray(grey)[np.asarray(mask) >= drawings.SIDE]
    low, high = (float(v) for v in np.percentile(values, (2, 98))) if values.size else (0.0, 255.0)
    # Half of the way to full contrast: a pale drawing stays paler than a dark one.
    low, high = low / 2, (high + 255) / 2
    grey = grey.point(_curve(255 * (GREYS - low) / max(high - low, 1)))
    return Image.composite(grey, Image.new("L", image.size, INK), mask), mask


def sprite(
    artist: str,
    name: str,
    size_px: float,
    angle_deg: float = 0.0,
    mirror: bool = False,
    tone: float = 1.0,
    fade: float = 0.0,
    line_px: float = 3.0,
    halo_px: float = 0.0,
) -> Sprite:
    """The drawing at ``size_px`` (height of its 128 px), turned, inked with an outline.

    ``tone`` is the gamma of its grey (above 1 is darker), ``fade`` the way to white (0 to 1).
    ``halo_px`` of white around the outline parts it from a dark backdrop.
    """
    grey, mask = _plate(artist, name)
    if mirror:
        grey, mask = ImageOps.mirror(grey), ImageOps.mirror(mask)
    side = max(8, round(size_px))
    grey, mask = (part.resize((side, side), Image.Resampling.LANCZOS) for part in (grey, mask))
    pad = int(2 * (line_px + halo_px)) + 3
    grey, mask = ImageOps.expand(grey, pad, INK), ImageOps.expand(mask, pad, 0)
    if angle_deg:
        grey = grey.rotate(angle_deg, Image.Resampling.BILINEAR, expand=True, fillcolor=INK)
        mask = mask.rotate(angle_deg, Image.Resampling.BILINEAR, expand=True)
    mask = mask.point(_curve(128 + max(1.0, side / drawings.SIDE) * (GREYS - 128)))
    grey = grey.point(_curve(_faded(255 * (GREYS / 255) ** tone, fade)))
    body, edge = grow(mask, line_px, line_px + halo_px)
    image = Image.composite(grey, Image.new("L", grey.size, round(_faded(INK, fade))), mask)
    if halo_px:
        image = Image.composite(image, Image.new("L", grey.size, 255), body)
    centre = (image.width / 2, image.height / 2)
    return Sprite(image, edge, body, centre, side / drawings.SIDE, angle_deg, mirror)


def grow(mask: Image.Image, *by_px: float) -> list[Image.Image]:
    """The mask with so much more all around, or less where it is negative; once for each of ``by_px``."""
    # A box blur of radius r makes of an edge a ramp 2 r wide. The largest growth reads it at 15 %.
    radius = max(abs(by) for by in by_px) / 0.7
    ramp = mask.filter(ImageFilter.BoxBlur(radius))
    levels = []
    for by in by_px:
        level = ramp.point(_curve((GREYS / 255 - 0.5 + by / (2 * radius)) * 2 * radius * 255 + 128))
        levels.append(ImageChops.lighter(level, mask) if by > 0 else ImageChops.darker(level, mask))
    return levels


def round_corners(mask: Image.Image, radius_px: float) -> Image.Image:
    """The mask with its corners cut round."""
    blurred = mask.filter(ImageFilter.GaussianBlur(radius_px))
    return blurred.point(_curve((GREYS - 128) * 10 + 128))


def _faded(grey: Any, fade: float) -> Any:
    return grey + (255 - grey) * fade


def _curve(values: np.ndarray) -> list[int]:
    """What each of the 256 greys becomes."""
    curve: list[int] = np.clip(np.rint(values), 0, 255).astype(int).tolist()
    return curve


@cache
def _threshold(screen: tuple[str, int, int]) -> np.ndarray:
    """The screen's tile, 60 x 60: at darkness d (0 to 255) the pixels below d are ink."""
    kind, across, down = screen
    y, x = np.mgrid[:TILE, :TILE] * (2 * np.pi / TILE)
    u, v = across * x + down * y + 0.4, across * y - down * x + 0.7
    if kind == "dots":
        spot = np.cos(u) + np.cos(v)
    elif kind == "lines":
        spot = np.cos(u)
    elif kind == "hatch":
        spot = np.maximum(np.cos(u), np.cos(v) - 0.8)
    elif kind == "checks":
        spot = np.cos(u) * np.cos(v)
    else:
        noise = np.random.default_rng(7).normal(size=(TILE, TILE))
        spot = sum(np.roll(noise, shift, axis) for shift in (-1, 0, 1) for axis in (0, 1))
    rank: np.ndarray = np.empty(spot.size)
    rank[np.argsort(-spot, axis=None, kind="stable")] = np.arange(spot.size)
    tile: np.ndarray = (rank.reshape(spot.shape) * (255 / spot.size)).astype(np.int16)
    return tile


def apply_screen(image: Image.Image, screen: tuple[str, int, int], origin: tuple[int, int]) -> Image.Image:
    """The grey image as the title's screentone would print it; ``origin`` is its place on the spread.

    Almost white stays white and almost black stays black.
    """
    if screen[0] == "flat":
        return image
    grey_HW = np.asarray(image).astype(np.int16)
    tile = np.roll(_threshold(screen), (-origin[1], -origin[0]), (0, 1))
    repeats = (-(-grey_HW.shape[0] // TILE), -(-grey_HW.shape[1] // TILE))
    threshold_HW = np.tile(tile, repeats)[: grey_HW.shape[0], : grey_HW.shape[1]]
    ink_HW = np.clip((255 - grey_HW - threshold_HW) * 5 + 128, 0, 255)
    ink_HW[grey_HW > 246] = 0
    ink_HW[grey_HW < 40] = 255
    shaded = Image.fromarray((255 - ink_HW).astype(np.uint8))
    return Image.blend(image, shaded, 0.5) if screen[0] == "grain" else shaded
