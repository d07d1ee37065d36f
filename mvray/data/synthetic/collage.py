"""One picture of a sample of segments: stamps over a ground, and whose every pixel is. Legend: H W pixels; h w of
the part that a stamp covers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from mvray.data.synthetic.sprites import OPAQUE, Pose, Sprite, cut_out, half_extent, over, warp
from mvray.data.synthetic.stamps import Stamp, painted

SMALLEST, LARGEST = 0.22, 0.7
"""The longer side of an object in parts of the picture's shorter side."""
MOST_TILT_DEG = 20.0
LEAST_SEEN, LEAST_LEFT = 0.5, 0.6
"""How much of an object is in the picture at least, and how much of that later ones leave uncovered."""
LEAST_INSIDE = 0.004
"""The least share of the picture's pixels that an object has within its boundary."""
TRIES = 36
Paint = Callable[[Stamp, np.random.Generator], Image.Image]
"""Gives a stamp's picture, RGBA, with whatever is drawn of its colours."""


@dataclass(frozen=True)
class Object:
    """An object as VOC annotates it: ``box`` (left, top, right, bottom; from 1, inclusive) bounds what is visible."""

    kind: str
    box: tuple[int, int, int, int]
    truncated: bool
    occluded: bool


@dataclass(frozen=True)
class Collage:
    """``owners`` (H x W) is 0 for background and n for the n-th object; all objects are visible."""

    image: Image.Image
    owners: np.ndarray
    objects: tuple[Object, ...]
    used: tuple[Stamp, ...]


@dataclass
class _Canvas:
    """A picture in work, H x W x 3, and its owners: ``areas`` are the pixels of each object as it was put there,
    ``seen`` the share of each that is within the picture's borders, ``shadow`` how far shadows fall to the right and
    down, in parts of the longer side, and how dark they are."""

    picture: np.ndarray
    owners: np.ndarray
    shadow: tuple[float, float, float]
    stamps: list[Stamp]
    areas: list[int]
    seen: list[float]


def collage(
    ground: Image.Image,
    size: tuple[int, int],
    stamps: Sequence[Stamp],
    things: Sequence[Stamp],
    rng: np.random.Generator,
    paint: Paint = painted,
) -> Collage:
    """A picture of ``size`` (width, height): ``things`` behind, ``stamps`` before them, the last in front.

    A stamp for which there is no place is left out; the first always has one.
    """
    dark = rng.uniform(0.2, 0.5) if rng.random() < 0.7 else 0.0
    shadow = (rng.uniform(-0.02, 0.02), rng.uniform(0.01, 0.035), dark)
    backdrop_HW3 = np.asarray(_part_of(ground, size, rng)).copy()
    canvas = _Canvas(backdrop_HW3, np.zeros(size[::-1], np.uint8), shadow, [], [], [])
    for thing in things:
        side = float(rng.uniform(0.15, 0.4))
        drawn = cut_out(paint(thing, rng))
        rgba_HW4 = _stamped(drawn, _pose(drawn, side, size, cut=False, rng=rng), size)
        _paint(canvas, rgba_HW4)
    for stamp in stamps:
        _put(canvas, stamp, len(stamps) == 1, rng, paint)
    image = Image.fromarray(_developed(canvas.picture, rng))
    objects = tuple(_object(canvas, number) for number in range(len(canvas.stamps)))
    return Collage(image, canvas.owners, objects, tuple(canvas.stamps))


def edges(owners_HW: np.ndarray) -> np.ndarray:
    """H x W bool: pixels beside one of another owner, a line of two pixels, one on either side."""
    edge_HW = np.zeros(owners_HW.shape, bool)
    for one, other in ((np.s_[1:, :], np.s_[:-1, :]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = owners_HW[one] != owners_HW[other]
        edge_HW[one] |= differ
        edge_HW[other] |= differ
    return edge_HW


def _part_of(ground: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A part of the ground with the picture's proportions, mirrored or not."""
    scale = min(ground.width / size[0], ground.height / size[1]) * rng.uniform(0.6, 1)
    width, height = (scale * side for side in size)
    x, y = rng.uniform(0, ground.width - width), rng.uniform(0, ground.height - height)
    part = ground.resize(size, Image.Resampling.BICUBIC, (x, y, x + width, y + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def _pose(of: Sprite, side: float, size: tuple[int, int], cut: bool, rng: np.random.Generator) -> Pose:
    """Somewhere in the picture, or with ``cut`` across its border."""
    scale = side * min(size) / max(of.width, of.height)
    tilt_deg = float(np.clip(rng.normal(0, 9), -MOST_TILT_DEG, MOST_TILT_DEG))
    half = half_extent(of.width * scale, of.height * scale, tilt_deg)
    place = []
    for length, reach in zip(size, half, strict=True):
        margin = -0.4 * reach if cut else min(reach + 1.5, length / 2)
        place.append(float(rng.uniform(margin, length - margin)))
    return Pose(place[0], place[1], tilt_deg, scale, 1.0 if rng.random() < 0.5 else -1.0)


def _stamped(of: Sprite, pose: Pose, size: tuple[int, int]) -> np.ndarray:
    """The sprite alone in a picture of this size, premultiplied, H x W x 4."""
    rgba_HW4 = np.zeros((size[1], size[0], 4), np.uint8)
    if warped := warp(of, pose, size):
        where, rgba_hw4 = warped
        rgba_HW4[where] = rgba_hw4
    return rgba_HW4


def _put(canvas: _Canvas, stamp: Stamp, alone: bool, rng: np.random.Generator, paint: Paint) -> None:
    """Find a place for a stamp, each try a little smaller than the one before, and paint it there."""
    size = canvas.owners.shape[::-1]
    drawn = cut_out(paint(stamp, rng))
    least = 0.4 if alone else SMALLEST
    side = least * (LARGEST / least) ** rng.random()
    cut, covers = rng.random() < 0.2, 0.4 if rng.random() < 0.35 else 0.02
    solid = np.asarray(drawn.levels[0].getchannel("a")) >= OPAQUE
    for turn in range(TRIES):
        pose = _pose(drawn, max(SMALLEST, side * 0.97**turn), size, cut and turn < TRIES // 2, rng)
        rgba_HW4 = _stamped(drawn, pose, size)
        own_HW = rgba_HW4[..., 3] >= OPAQUE
        seen = float(own_HW.sum() / (solid.sum() * pose.scale**2))
        if seen >= LEAST_SEEN and _fits(canvas, own_HW, covers):
            _paint(canvas, rgba_HW4)
            canvas.stamps.append(stamp)
            canvas.areas.append(int(own_HW.sum()))
            canvas.seen.append(seen)
            canvas.owners[own_HW] = len(canvas.stamps)
            return
    assert canvas.stamps, f"no place for {stamp.key}"


def _fits(canvas: _Canvas, own_HW: np.ndarray, covers: float) -> bool:
    """Whether a new object leaves all others, and has itself, enough to be known by."""
    owners_HW = canvas.owners.copy()
    owners_HW[own_HW] = len(canvas.stamps) + 1
    if (canvas.owners[own_HW] > 0).sum() > covers * own_HW.sum():
        return False
    inside = np.bincount(owners_HW[~edges(owners_HW)], minlength=len(canvas.stamps) + 2)[1:]
    left = np.bincount(owners_HW.ravel(), minlength=len(canvas.stamps) + 2)[1:-1]
    enough = left >= LEAST_LEFT * np.array(canvas.areas)
    return bool((inside >= LEAST_INSIDE * owners_HW.size).all() and enough.all())


def _paint(canvas: _Canvas, rgba_HW4: np.ndarray) -> None:
    """The stamp over the picture, its soft shadow below it."""
    right, down, dark = canvas.shadow
    side = max(canvas.owners.shape)
    if dark:
        cover = Image.fromarray(np.ascontiguousarray(rgba_HW4[..., 3])).filter(ImageFilter.GaussianBlur(0.02 * side))
        moved = cover.transform(
            cover.size, Image.Transform.AFFINE, (1, 0, -right * side, 0, 1, -down * side), Image.Resampling.BILINEAR
        )
        shade_HW1 = 1 - dark * np.asarray(moved)[..., None] / 255
        canvas.picture = (canvas.picture * shade_HW1).astype(np.uint8)
    canvas.picture = over(rgba_HW4, canvas.picture)


def _developed(picture_HW3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One light, one lens and one grain for all of the picture."""
    soft = Image.fromarray(picture_HW3).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.6))))
    tint_3 = rng.uniform(0.93, 1.05, 3) * rng.uniform(0.85, 1.08)
    grain_HW1 = rng.normal(0, rng.uniform(1, 5), (*picture_HW3.shape[:2], 1))
    return np.asarray(np.clip(np.asarray(soft) * tint_3 + grain_HW1, 0, 255).astype(np.uint8))


def _object(canvas: _Canvas, number: int) -> Object:
    own_HW = canvas.owners == number + 1
    rows, columns = np.flatnonzero(own_HW.any(1)), np.flatnonzero(own_HW.any(0))
    box = (int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1)
    covered = own_HW.sum() < 0.97 * canvas.areas[number]
    return Object(canvas.stamps[number].kind, box, canvas.seen[number] < 0.96, bool(covered))
