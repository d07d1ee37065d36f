"""What is behind the objects of a sample of segments: scenery, and textures of any colour. Legend: H W pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mvray.data.synthetic.scenery import KINDS, scenery

SIDE = 216
"""Height and width of a texture in pixels; scenery is as wide and less high."""
FINE = 2
"""Leaves and pebbles are painted at twice the size, then reduced: soft edges."""
S = FINE * SIDE


def ground(kind: str, rng: np.random.Generator) -> Image.Image:
    """A backdrop, RGB; ``kind`` is one of GROUNDS, all else is drawn from ``rng``."""
    if kind in KINDS:
        return scenery(kind, rng)
    image = _TEXTURES[kind](rng).filter(ImageFilter.GaussianBlur(FINE * rng.uniform(0.2, 1.2)))
    light_HW1 = (rng.uniform(0.75, 1.0) + 0.3 * _noise(rng, (2, 2), (3, 3)))[..., None]
    return Image.fromarray(np.clip(np.asarray(image) * light_HW1, 0, 255).astype(np.uint8)).reduce(FINE)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Any hue, mostly dull, of a middling light."""
    grey, strong = rng.uniform(70, 205), rng.uniform(0.05, 1) ** 1.5
    return np.asarray(np.clip(grey + strong * rng.uniform(-110, 110, 3), 12, 245))


def _noise(rng: np.random.Generator, *cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise, H x W, 0 to 1: random grids of (columns, rows), each with half the weight of the one before."""
    total_HW = np.zeros((S, S))
    for i, (columns, rows) in enumerate(cells):
        grid = Image.fromarray(rng.random((rows, columns)).astype(np.float32))
        total_HW += 0.5**i * np.asarray(grid.resize((S, S), Image.Resampling.BICUBIC))
    return np.asarray(np.clip(total_HW / (2 - 0.5 ** (len(cells) - 1)), 0, 1))


def _picture(colours_HW3: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(colours_HW3, 0, 255).astype(np.uint8))


def _bricks(rng: np.random.Generator) -> Image.Image:
    """Courses of bricks, each a little other than the next, or square tiles."""
    high = int(rng.integers(26, 60))
    wide, shift = (high, 0.0) if rng.random() < 0.4 else (round(2.2 * high), 0.5)
    y_HW, x_HW = np.mgrid[:S, :S]
    row_HW = y_HW // high
    x_HW = x_HW + (row_HW % 2 * shift * wide).astype(int)
    joint_HW = (y_HW % high < 4) | (x_HW % wide < 4)
    tones = rng.normal(0, 14, (S // high + 2, 2 * S // wide + 3))
    light_HW = tones[row_HW, x_HW // wide] + 30 * (_noise(rng, (30, 30), (90, 90)) - 0.5)
    mortar_3, colours_HW3 = _colour(rng), _colour(rng) + light_HW[..., None]
    return _picture(np.where(joint_HW[..., None], mortar_3, colours_HW3))


def _planks(rng: np.random.Generator) -> Image.Image:
    """Boards with their grain, lying or standing."""
    wide = int(rng.integers(36, 96))
    tones = rng.normal(0, 12, S // wide + 1)
    light_HW = tones[np.arange(S) // wide][:, None] + 60 * (_noise(rng, (4, 60), (9, 200)) - 0.5)
    light_HW[np.arange(S) % wide < 4] -= 50
    if rng.random() < 0.5:
        light_HW = light_HW.T
    wood_3 = np.array((150, 108, 70)) * rng.uniform(0.6, 1.3) if rng.random() < 0.6 else _colour(rng)
    return _picture(wood_3 + light_HW[..., None])


def _foliage(rng: np.random.Generator) -> Image.Image:
    """Leaves over leaves: a hedge, or what lies under trees in autumn."""
    one, two = _colour(rng), _colour(rng)
    if rng.random() < 0.5:
        one, two = np.array((52, 92, 44)) * rng.uniform(0.5, 1.2), np.array((120, 160, 72)) * rng.uniform(0.6, 1.2)
    image = Image.new("RGB", (S, S), tuple(int(c) for c in one * 0.5))
    draw = ImageDraw.Draw(image)
    long = rng.uniform(14, 40)
    for _ in range(int(9 * S * S / long**2)):
        x, y, turn = *rng.uniform(0, S, 2), rng.uniform(0, 2 * np.pi)
        along = np.array((np.cos(turn), np.sin(turn))) * long * rng.uniform(0.6, 1.2) / 2
        across = np.array((-along[1], along[0])) * rng.uniform(0.3, 0.5)
        colour = one + (two - one) * rng.random() + rng.normal(0, 9)
        tips = (along, across, -along, -across)
        draw.polygon([(x + float(a), y + float(b)) for a, b in tips], tuple(int(c) for c in np.clip(colour, 0, 255)))
    return image


def _pebbles(rng: np.random.Generator) -> Image.Image:
    """Round stones side by side, lit from above."""
    one, two = _colour(rng), _colour(rng)
    image = Image.new("RGB", (S, S), tuple(int(c) for c in one * 0.4))
    draw = ImageDraw.Draw(image)
    most = rng.uniform(12, 34)
    for _ in range(int(4 * S * S / most**2)):
        x, y, r = *rng.uniform(0, S, 2), most * rng.uniform(0.3, 0.7)
        flat, colour = r * rng.uniform(0.6, 1), one + (two - one) * rng.random() ** 2 + rng.normal(0, 12)
        for part, tone in ((1.0, 0.6), (0.85, 1.0), (0.4, 1.12)):
            box = (x - r * part, y - flat * part - 0.1 * r, x + r * part, y + flat * part - 0.1 * r)
            draw.ellipse(box, tuple(int(c) for c in np.clip(colour * tone, 0, 255)))
    return image


def _cloth(rng: np.random.Generator) -> Image.Image:
    """Checks or stripes of three colours, woven, in folds."""
    base_3, stripe_3, line_3 = (_colour(rng) for _ in range(3))
    step = rng.uniform(30, 110)
    y_HW, x_HW = np.mgrid[:S, :S] + 6 * _noise(rng, (4, 4))
    turn = rng.uniform(0, np.pi)
    u_HW, v_HW = x_HW * np.cos(turn) + y_HW * np.sin(turn), y_HW * np.cos(turn) - x_HW * np.sin(turn)
    colours_HW3 = np.tile(base_3, (S, S, 1))
    for axis_HW in (u_HW, v_HW)[: int(rng.integers(1, 3))]:
        colours_HW3[axis_HW % step < 0.4 * step] += 0.5 * (stripe_3 - base_3)
        colours_HW3[np.abs(axis_HW % step - 0.7 * step) < 3] = line_3
    return _picture(colours_HW3 + 24 * (_noise(rng, (5, 5), (216, 216)) - 0.5)[..., None])


def _stone(rng: np.random.Generator) -> Image.Image:
    """Sand, plaster or rock: clouds of two colours, coarse or fine."""
    coarse = int(rng.integers(3, 24))
    part_HW1 = _noise(rng, (coarse, coarse), (3 * coarse, 3 * coarse), (216, 216))[..., None]
    part_HW1 = np.clip((part_HW1 - 0.5) * rng.uniform(1, 3) + 0.5, 0, 1)
    return _picture(_colour(rng) * part_HW1 + _colour(rng) * (1 - part_HW1))


def _water(rng: np.random.Generator) -> Image.Image:
    """Ripples that lie, with lights on them."""
    rows = int(rng.integers(20, 60))
    part_HW1 = _noise(rng, (rows // 4, rows), (rows // 2, 3 * rows))[..., None]
    deep_3 = np.array((38, 92, 132)) * rng.uniform(0.6, 1.4) if rng.random() < 0.7 else _colour(rng)
    return _picture(deep_3 + 150 * (part_HW1 - 0.45) * np.clip(part_HW1 * 2, 0, 1))


_TEXTURES: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "bricks": _bricks,
    "planks": _planks,
    "foliage": _foliage,
    "pebbles": _pebbles,
    "cloth": _cloth,
    "stone": _stone,
    "water": _water,
}
GROUNDS = (*KINDS, *_TEXTURES)
