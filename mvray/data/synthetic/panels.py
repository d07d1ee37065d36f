"""Panel layout: convex polygons cut out of a page, in manga's reading order (right to left)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mvray.data.synthetic.habits import Habits

Point = tuple[float, float]
Polygon = tuple[Point, ...]


def bounds(polygon: Polygon) -> tuple[int, int, int, int]:
    """Left, top, right, bottom, in whole pixels around the polygon."""
    xs, ys = zip(*polygon, strict=True)
    return int(np.floor(min(xs))), int(np.floor(min(ys))), int(np.ceil(max(xs))), int(np.ceil(max(ys)))


def panels_of(
    habits: Habits, page: tuple[float, float, float, float], count: int, rng: np.random.Generator
) -> list[Polygon]:
    """``count`` panels that fill the rectangle ``page`` by the title's grid."""
    x0, y0, x1, y1 = page
    whole: Polygon = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    if count == 1:
        return [whole]
    if habits.grid == "mosaic":
        return _mosaic(habits, whole, count, rng)
    if habits.grid == "columns":
        return _grid(habits, whole, _parts(count, 2, rng), rng, rows_first=False)
    even = habits.grid == "tiers"
    rows = max(2, min(4, round(count / 2 - (0.0 if even else rng.uniform(-0.4, 0.6)))))
    if habits.grid == "hero":
        parts = [1, *_parts(count - 1, max(1, rows - 1), rng)]
        return _grid(habits, whole, [parts[i] for i in rng.permutation(len(parts))], rng, rows_first=True)
    return _grid(habits, whole, _parts(count, rows, rng), rng, rows_first=True, even=even)


def _parts(count: int, into: int, rng: np.random.Generator) -> list[int]:
    """``count`` split into ``into`` near equal parts, in random order."""
    into = min(into, count)
    return [count // into + (i < count % into) for i in rng.permutation(into)]


def _grid(
    habits: Habits, whole: Polygon, parts: Sequence[int], rng: np.random.Generator, rows_first: bool, even: bool = False
) -> list[Polygon]:
    """Bands across the page (or down it), the i-th cut into ``parts[i]`` panels."""

    def weights(of: Sequence[int], spread: float) -> list[float]:
        # A band of one panel is a wide shot and may be tall.
        return [1.0 if even else rng.uniform(1 - spread, 1 + spread) * (1.35 if n == 1 else 1.0) for n in of]

    bands = _strips(habits, whole, weights(parts, 0.25), rows_first, rng)
    polygons = []
    for band, n in zip(bands, parts, strict=True):
        polygons += _strips(habits, band, weights([2] * n, 0.35), not rows_first, rng)
    return polygons


def _strips(
    habits: Habits, polygon: Polygon, weights: list[float], rows: bool, rng: np.random.Generator
) -> list[Polygon]:
    """The polygon cut into strips of these weights: from the top, or from the right."""
    polygons = []
    while len(weights) > 1:
        share = weights[0] / sum(weights)
        head, polygon = _cut(habits, polygon, share, rows, rng)
        polygons.append(head)
        weights = weights[1:]
    return [*polygons, polygon]


def _mosaic(habits: Habits, polygon: Polygon, count: int, rng: np.random.Generator) -> list[Polygon]:
    """Halves of halves, each cut across its longer side."""
    if count == 1:
        return [polygon]
    x0, y0, x1, y1 = bounds(polygon)
    rows = (y1 - y0) * rng.uniform(0.75, 1.3) > x1 - x0
    first = count // 2 + int(count % 2 and rng.random() < 0.5)
    share = min(0.68, max(0.32, first / count + rng.uniform(-0.1, 0.1)))
    head, rest = _cut(habits, polygon, share, rows, rng)
    return _mosaic(habits, head, first, rng) + _mosaic(habits, rest, count - first, rng)


def _cut(
    habits: Habits, polygon: Polygon, share: float, rows: bool, rng: np.random.Generator
) -> tuple[Polygon, Polygon]:
    """``share`` of the polygon from the top (``rows``) or from the right, and the rest, a gutter apart."""
    x0, y0, x1, y1 = bounds(polygon)
    lean = np.deg2rad(rng.uniform(-1, 1) * habits.slant_deg)
    if rows:
        # A lean across a whole row moves its ends far, so rows lean half as much.
        normal, at = (np.sin(lean / 2), np.cos(lean / 2)), ((x0 + x1) / 2, y0 + share * (y1 - y0))
    else:
        normal, at = (-np.cos(lean), np.sin(lean)), (x1 - share * (x1 - x0), (y0 + y1) / 2)
    half_px = habits.gutter_px[1 if rows else 0] / 2
    level = normal[0] * at[0] + normal[1] * at[1]
    return _below(polygon, normal, level - half_px), _below(polygon, (-normal[0], -normal[1]), -level - half_px)


def _below(polygon: Polygon, normal: Point, level: float) -> Polygon:
    """The part of a convex polygon where normal . point <= level (Sutherland and Hodgman)."""
    kept: list[Point] = []
    for (ax, ay), (bx, by) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        a, b = normal[0] * ax + normal[1] * ay - level, normal[0] * bx + normal[1] * by - level
        if a <= 0:
            kept.append((float(ax), float(ay)))
        if (a < 0 < b) or (b < 0 < a):
            t = a / (a - b)
            kept.append((float(ax + t * (bx - ax)), float(ay + t * (by - ay))))
    return tuple(kept)
