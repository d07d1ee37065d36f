"""Balloons with tails, captions and sounds: their shapes and letters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from mvray.data.synthetic.annotations import Rect
from mvray.data.synthetic.habits import Habits
from mvray.data.synthetic.ink import INK, grow

Point = tuple[float, float]

_ROOM = {"ellipse": 1.42, "rounded": 1.12, "cloud": 1.46, "spiky": 1.6, "box": 1.04, "octagon": 1.16}
"""How much wider and higher than its text a balloon is."""


@cache
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font."""
    loaded = ImageFont.load_default(size_px)
    assert isinstance(loaded, ImageFont.FreeTypeFont), "this Pillow was built without FreeType"
    return loaded


def wrap(text: str, habits: Habits, width_px: float) -> str:
    """The text in the title's lettering, broken into lines of at most ``width_px`` where words allow."""
    lines: list[str] = []
    for word in (text.upper() if habits.capitals else text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(habits.font_px).getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def text_size(text: str, habits: Habits) -> tuple[float, float]:
    """Width and height of the lettering."""
    x0, y0, x1, y1 = _pen().multiline_textbbox(
        (0, 0), text, font(habits.font_px), anchor="mm", align="center", stroke_width=habits.bold_px
    )
    return x1 - x0, y1 - y0


@cache
def _pen() -> ImageDraw.ImageDraw:
    return ImageDraw.Draw(Image.new("L", (1, 1)))


def balloon_size(text: str, habits: Habits) -> tuple[float, float]:
    """Width and height of the balloon around a text."""
    w, h = text_size(text, habits)
    room = _ROOM[habits.balloon]
    wide = w * room + 26
    return wide, max(h * room + 24, (0.3 if room < 1.2 else 0.5) * wide)


def draw_balloons(
    canvas: Image.Image, speeches: Sequence[tuple[str, Rect, Point]], habits: Habits, rng: np.random.Generator
) -> list[Rect]:
    """Balloons for (text, box of the balloon, where its tail points). Returns the boxes of the texts.

    All outlines are drawn first, then all insides, so that a tail never crosses another's words.
    """
    if not speeches:
        return []
    bodies = [_outline(habits.balloon, box, rng) for _, box, _ in speeches]
    tails = [tail for _, box, target in speeches for tail in _tail(habits.tail, box, target)]
    points = np.array([point for shape in bodies + tails for point in shape])
    pad = habits.balloon_px + 3
    x0, y0 = (int(v) - pad for v in points.min(axis=0))
    size = tuple(2 * (int(v) + pad) for v in points.max(axis=0) - (x0, y0))
    inside, strokes = Image.new("L", (size[0], size[1])), Image.new("L", (size[0], size[1]))
    for shape in tails + bodies:
        double = [(2 * (x - x0), 2 * (y - y0)) for x, y in shape]
        if len(shape) > 2:
            ImageDraw.Draw(inside).polygon(double, 255)
        else:
            ImageDraw.Draw(strokes).line(double, 255, 4 * habits.balloon_px)
    inside = inside.reduce(2)
    canvas.paste(INK, (x0, y0), ImageChops.lighter(grow(inside, habits.balloon_px)[0], strokes.reduce(2)))
    canvas.paste(habits.balloon_grey, (x0, y0), inside)
    return [draw_text(canvas, middle_of(box), text, habits, INK) for text, box, _ in speeches]


def middle_of(box: Rect) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def draw_text(canvas: Image.Image, middle: Point, text: str, habits: Habits, grey: int) -> Rect:
    """Lettering around ``middle``; returns its box."""
    at, draw, letters = (round(middle[0]), round(middle[1])), ImageDraw.Draw(canvas), font(habits.font_px)
    draw.multiline_text(at, text, grey, letters, "mm", align="center", stroke_width=habits.bold_px)
    return draw.multiline_textbbox(at, text, letters, "mm", align="center", stroke_width=habits.bold_px)


def _outline(kind: str, box: Rect, rng: np.random.Generator) -> list[Point]:
    x0, y0, x1, y1 = box
    if kind == "box":
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if kind == "octagon":
        c = min(x1 - x0, y1 - y0) * 0.25
        return [
            (x0 + c, y0),
            (x1 - c, y0),
            (x1, y0 + c),
            (x1, y1 - c),
            (x1 - c, y1),
            (x0 + c, y1),
            (x0, y1 - c),
            (x0, y0 + c),
        ]
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    cos, sin = np.cos(turn), np.sin(turn)
    power = 4.0 if kind == "rounded" else 2.0
    radius = (np.abs(cos) ** power + np.abs(sin) ** power) ** (-1 / power)
    if kind == "cloud":
        radius *= 0.9 + 0.12 * np.abs(np.sin(4.5 * turn + rng.uniform(0, 1)))
    if kind == "spiky":
        radius *= np.where(np.arange(96) % 6 == 0, 1.0, np.where(np.arange(96) % 6 == 3, 0.76, np.nan))
        keep = ~np.isnan(radius)
        radius, cos, sin = radius[keep] * rng.uniform(0.95, 1.06, int(keep.sum())), cos[keep], sin[keep]
    cx, cy, a, b = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
    return [(float(cx + a * r * c), float(cy + b * r * s)) for r, c, s in zip(radius, cos, sin, strict=True)]


def _tail(kind: str, box: Rect, target: Point) -> list[list[Point]]:
    """Shapes that lead from a balloon's middle to the speaker; a shape of two points is a stroke."""
    middle = middle_of(box)
    way = np.array(target) - middle
    length = float(np.hypot(*way))
    if length < 1:
        return []
    across = np.array([-way[1], way[0]]) / length
    base = 0.13 * min(box[2] - box[0], box[3] - box[1]) + 4
    if kind == "line":
        return [[middle, target]]
    if kind == "bubbles":
        reach = _edge(box, way)
        return [
            _circle(np.array(middle) + way * (reach + (1 - reach) * t), r) for t, r in ((0.2, 9), (0.55, 6), (0.9, 4))
        ]
    if kind == "wedge":
        return [[tuple(middle + across * base), target, tuple(middle - across * base)]]
    # Two quadratic Bezier curves that meet at the target.
    t = np.linspace(0, 1, 9)[:, None]
    sides = [
        (1 - t) ** 2 * (middle + side * across * base)
        + 2 * t * (1 - t) * (middle + way / 2 + 0.22 * length * across)
        + t**2 * target
        for side in (1, -1)
    ]
    return [[(float(x), float(y)) for x, y in np.concatenate([sides[0], sides[1][::-1]])]]


def _edge(box: Rect, way: np.ndarray) -> float:
    """How far along ``way`` from its middle the balloon's box ends, 0 to 1."""
    halves = ((box[2] - box[0]) / 2, (box[3] - box[1]) / 2)
    return min([0.9, *(float(half / abs(step)) for half, step in zip(halves, way, strict=True) if step)])


def _circle(middle: np.ndarray, radius: float) -> list[Point]:
    return [(middle[0] + radius * np.cos(t), middle[1] + radius * np.sin(t)) for t in np.linspace(0, 2 * np.pi, 16)]


def caption_size(text: str, habits: Habits) -> tuple[int, int]:
    """Width and height of a narrator's box."""
    w, h = text_size(text, habits)
    return round(w) + 24, round(h) + 20


def draw_caption(canvas: Image.Image, corner: Point, text: str, habits: Habits) -> Rect:
    """A narrator's box with its upper left corner at ``corner``. Returns the box of the text."""
    w, h = caption_size(text, habits)
    x, y = (round(v) for v in corner)
    ImageDraw.Draw(canvas).rectangle((x, y, x + w, y + h), habits.balloon_grey, INK, max(2, habits.balloon_px - 1))
    return draw_text(canvas, (x + w / 2, y + h / 2), text, habits, INK)


def sound(text: str, size_px: int, angle_deg: float, dark: bool) -> Image.Image:
    """A sound as big turned letters with a contrasting rim: grey and alpha ("LA")."""
    rim = max(4, size_px // 10)
    w, h = font(size_px).getlength(text) + 4 * rim, size_px * 1.3 + 4 * rim
    layers = []
    for stroke in (rim + 3, 3):
        layer = Image.new("L", (round(w), round(h)))
        ImageDraw.Draw(layer).text((w / 2, h / 2), text, 255, font(size_px), anchor="mm", stroke_width=stroke)
        layers.append(layer.rotate(angle_deg, Image.Resampling.BICUBIC, expand=True))
    grey = Image.new("L", layers[0].size, 250 if dark else INK)
    grey.paste(INK if dark else 250, (0, 0), layers[1])
    return Image.merge("LA", (grey, layers[0]))
