"""Page habits: all that is constant in a title but is not a drawing.

They are the shortcut that a network may take instead of looking at the drawings: panel grid,
gutter, border, tone, balloons, lettering, page numbers. Values are dealt like cards, so that the
titles of one sample are as far apart as the number of values allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

GRIDS = ("rows", "columns", "mosaic", "tiers", "hero")
BORDERS = ("single", "double", "wobbly", "rounded", "shadow")
SCREENS = (  # kind, waves across and down over a tile of 60 px
    ("dots", 5, 5),
    ("lines", 0, 7),
    ("grain", 0, 0),
    ("hatch", 5, 5),
    ("flat", 0, 0),
    ("dots", 8, 0),
    ("lines", 5, 5),
    ("checks", 4, 4),
    ("dots", 4, 4),
    ("lines", 8, 0),
    ("hatch", 7, 0),
)
BALLOONS = ("ellipse", "rounded", "cloud", "spiky", "box", "octagon")
TAILS = ("wedge", "curved", "line", "bubbles")
NUMBERS = ("none", "bottom", "outer", "circle", "dashes", "top")
BACKDROPS = ("plain", "tone", "gradient", "outdoors", "indoors", "focus", "speed", "black", "scatter")

SCENERY = np.array([0.08 if kind in ("outdoors", "indoors") else 0.02 for kind in BACKDROPS])
"""Least weights of the backdrops: every comic shows now and then where it plays."""


@dataclass(frozen=True)
class Habits:
    """How one title's pages are made; lengths in pixels of a 1654 x 1170 spread, greys 0 to 255.

    ``panels``: least and most on a page. ``slant_deg``: the most that a cut leans. ``gutter_px``:
    between panels side by side, between rows. ``margin_px``: outside, top, bottom, spine.
    ``bleed`` and ``splash``: share of pages drawn to the edge, or as one panel. ``captions``: share
    of panels that are narrated. ``backdrops``: weights in the order of BACKDROPS.
    """

    grid: str
    panels: tuple[int, int]
    slant_deg: float
    gutter_px: tuple[int, int]
    margin_px: tuple[int, int, int, int]
    bleed: float
    splash: float
    border: str
    border_px: int
    paper: int
    gutter_grey: int
    screen: tuple[str, int, int]
    backdrops: tuple[float, ...]
    balloon: str
    balloon_px: int
    balloon_grey: int
    tail: str
    font_px: int
    capitals: bool
    bold_px: int
    captions: float
    number: str


def habits_of(titles: int, rng: np.random.Generator) -> list[Habits]:
    """One set of habits per title."""

    def dealt(values: Sequence[T]) -> list[T]:
        """Each value as often as any other, in random order."""
        deck = [values[i] for _ in range(-(-titles // len(values))) for i in rng.permutation(len(values))]
        return deck[:titles]

    def pixels(low: int, high: int) -> list[int]:
        """Evenly spaced from low to high, in random order."""
        return dealt([round(x) for x in np.linspace(low, high, titles)])

    columns: dict[str, Sequence[Any]] = {
        "grid": dealt(GRIDS),
        "panels": dealt(((3, 5), (5, 7), (4, 6), (6, 8))),
        "slant_deg": dealt((0.0, 4.0, 0.0, 7.0, 10.0)),
        "gutter_px": list(zip(pixels(8, 34), pixels(10, 52), strict=True)),
        "margin_px": list(zip(pixels(34, 96), pixels(40, 100), pixels(48, 110), pixels(26, 60), strict=True)),
        "bleed": dealt((0.0, 0.35, 0.0, 0.7)),
        "splash": dealt((0.02, 0.08, 0.14)),
        "border": dealt(BORDERS),
        "border_px": pixels(2, 9),
        "paper": dealt((255, 244, 232)),
        "gutter_grey": dealt((255, 240, 12, 248, 150)),
        "screen": dealt(SCREENS),
        "backdrops": [tuple(rng.dirichlet([0.8] * len(BACKDROPS)) + SCENERY) for _ in range(titles)],
        "balloon": dealt(BALLOONS),
        "balloon_px": pixels(2, 6),
        "balloon_grey": dealt((255, 255, 236, 214)),
        "tail": dealt(TAILS),
        "font_px": pixels(20, 29),
        "capitals": dealt((True, False)),
        "bold_px": dealt((0, 1, 0)),
        "captions": dealt((0.05, 0.2, 0.4)),
        "number": dealt(NUMBERS),
    }
    return [Habits(**{name: values[i] for name, values in columns.items()}) for i in range(titles)]
