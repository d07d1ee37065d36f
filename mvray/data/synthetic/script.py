"""The script of a spread: which panels, who is in them at what size, who says what. Draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mvray.data.synthetic import words
from mvray.data.synthetic.annotations import HEIGHT, WIDTH
from mvray.data.synthetic.casting import Troupe, face_of
from mvray.data.synthetic.habits import BACKDROPS, Habits
from mvray.data.synthetic.panels import Polygon, bounds, panels_of

LEAST_PX, MOST_PX, COVER_PX = 120, 430, 520
"""Bounds of a character's size: the height at which the 128 px of a drawing are shown."""


@dataclass(frozen=True)
class Title:
    """A comic: its name, who draws and plays, and how its pages are made."""

    name: str
    troupe: Troupe
    habits: Habits


@dataclass(frozen=True)
class Shot:
    """A character in a panel: index into the cast, the drawing, and how it is placed on the spread.

    ``x`` and ``y`` are the middle of the 128 px square. ``out``: its head stands over the border.
    """

    who: int
    drawing: str
    size_px: float
    x: float
    y: float
    angle_deg: float
    mirror: bool
    tone: float
    fade: float
    out: bool


@dataclass(frozen=True)
class Panel:
    """``lines`` pairs an index into ``shots`` with what is said; ``mark`` with a drawing beside the head."""

    polygon: Polygon
    backdrop: str
    shots: tuple[Shot, ...]
    lines: tuple[tuple[int, str], ...]
    caption: str
    sound: str
    mark: str


@dataclass(frozen=True)
class Script:
    """One spread: panels in reading order, and the numbers of its right and left page."""

    panels: tuple[Panel, ...]
    numbers: tuple[int, int]


def script_of(title: Title, spread: int, rng: np.random.Generator) -> Script:
    """Spread number ``spread`` of a title. Every character is in it at least once, so 20 spreads
    show each at least 20 times."""
    cast = [int(i) for i in rng.permutation(len(title.troupe.cast))]
    half = -(-len(cast) // 2)
    panels: list[Panel] = []
    for side, players in enumerate((cast[:half], cast[half:])):  # the right page is read first
        cover = spread == 0 and side == 0
        panels += _page(title, players, side == 0, cover, rng)
    return Script(tuple(panels), (2 * spread + 1, 2 * spread + 2))


def _page(title: Title, players: Sequence[int], right: bool, cover: bool, rng: np.random.Generator) -> list[Panel]:
    habits = title.habits
    splash = cover or rng.random() < habits.splash
    count = 1 if splash else int(rng.integers(habits.panels[0], habits.panels[1] + 1))
    polygons = panels_of(habits, _area(habits, right, rng), count, rng)
    crowds = _crowds(polygons, len(players), rng)
    panels, unseen = [], list(players)
    for i, (polygon, crowd) in enumerate(zip(polygons, crowds, strict=True)):
        here = _enter(players, unseen, crowd, sum(crowds[i + 1 :]), rng)
        panels.append(_panel(title, polygon, here, COVER_PX if splash else MOST_PX, rng))
    return panels


def _area(habits: Habits, right: bool, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """The rectangle of a page that panels fill; on some pages it runs over the edge of the paper."""
    outside, top, bottom, spine = habits.margin_px
    if rng.random() < habits.bleed:
        outside, top, bottom = -12, -12, -12
    if right:
        return (WIDTH / 2 + spine, top, WIDTH - outside, HEIGHT - bottom)
    return (outside, top, WIDTH / 2 - spine, HEIGHT - bottom)


def _crowds(polygons: Sequence[Polygon], players: int, rng: np.random.Generator) -> list[int]:
    """How many characters each panel shows: more where there is room, all ``players`` at least once."""
    room = []
    for polygon in polygons:
        x0, y0, x1, y1 = bounds(polygon)
        room.append(max(1, min(4, int((x1 - x0) / (0.62 * max(LEAST_PX, min(MOST_PX, 0.8 * (y1 - y0))))))))
    crowds = [min(most, int(rng.choice([0, 1, 2, 3], p=[0.06, 0.5, 0.34, 0.1]))) for most in room]
    while sum(crowds) < players:
        i = int(np.argmax([(most - n) + 0.01 * most for most, n in zip(room, crowds, strict=True)]))
        crowds[i] += 1
    return crowds


def _enter(players: Sequence[int], unseen: list[int], crowd: int, later: int, rng: np.random.Generator) -> list[int]:
    """Choose ``crowd`` different players; ``unseen`` loses them, and is never more than ``later`` after."""
    here: list[int] = []
    while len(here) < min(crowd, len(players)):
        must = len(unseen) > later + crowd - len(here) - 1
        fresh = [p for p in unseen if p not in here]
        others = fresh if fresh and (must or rng.random() < 0.4) else [p for p in players if p not in here]
        here.append(others[int(rng.integers(len(others)))])
        if here[-1] in unseen:
            unseen.remove(here[-1])
    return here


def _panel(title: Title, polygon: Polygon, here: Sequence[int], most_px: float, rng: np.random.Generator) -> Panel:
    habits, troupe = title.habits, title.troupe
    weights = np.array(habits.backdrops) * [1 if here else kind in ("outdoors", "indoors") for kind in BACKDROPS]
    backdrop = str(rng.choice(BACKDROPS, p=weights / weights.sum()))
    shots = _shots(troupe, polygon, here, most_px, rng)
    speakers = [i for i in range(len(shots)) if rng.random() < 0.75]
    speech = [str(text) for text in rng.choice(words.spoken(words.SPEECH), len(speakers), replace=False)]
    if len(speakers) == 1 and rng.random() < 0.25:
        speakers, speech = speakers * 2, [*speech, str(rng.choice(words.spoken(words.SPEECH)))]
    return Panel(
        polygon,
        backdrop,
        shots,
        tuple(zip(speakers, speech, strict=True)),
        caption=str(rng.choice(words.spoken(words.CAPTIONS))) if rng.random() < habits.captions else "",
        sound=str(rng.choice(words.spoken(words.SOUNDS))) if rng.random() < 0.14 else "",
        mark=str(rng.choice(troupe.marks)) if troupe.marks and rng.random() < 0.12 else "",
    )


def _shots(
    troupe: Troupe, polygon: Polygon, here: Sequence[int], most_px: float, rng: np.random.Generator
) -> tuple[Shot, ...]:
    """Characters side by side, from back to front; in a tall panel every second one stands behind, higher up."""
    x0, y0, x1, y1 = bounds(polygon)
    width, height, many = x1 - x0, y1 - y0, len(here)
    tall = many > 2 and height > 1.3 * width
    shots = []
    for place, who in enumerate(here):
        out = bool(many == 1 and rng.random() < 0.2 and 1.08 * height < min(most_px, 0.95 * width))
        size = 1.08 * height if out else _size(width, height, many, tall, most_px, rng)
        # Feet, or the lower edge of a bust, at the panel's foot; what is higher than the panel is cropped.
        sink = rng.uniform(-0.02, 0.08) if out or size < 0.9 * height else rng.uniform(0.06, 0.2)
        if tall and place % 2 == 0:
            sink -= rng.uniform(0.6, 0.8)
        drawing = str(rng.choice(troupe.cast[who].drawings))
        angle = float(np.clip(rng.normal(0, 8), -24, 24))
        if face_of(troupe.artist, drawing) is None or rng.random() < 0.4:
            angle = 0.0 if abs(angle) < 4 else angle / 3
        shots.append(
            Shot(
                who,
                drawing,
                size,
                x=float(x0 + width * (place + 0.5 + rng.uniform(-0.12, 0.12)) / many),
                y=float(y1 + (sink - 0.5) * size),
                angle_deg=angle,
                mirror=bool(rng.random() < 0.5),
                tone=float(rng.uniform(0.5, 0.95)),
                fade=0.4 if rng.random() < 0.06 else 0.0,
                out=out,
            )
        )
    return tuple(sorted(shots, key=lambda shot: shot.y + shot.size_px / 2)) if tall else tuple(shots)


def _size(width: int, height: int, many: int, tall: bool, most_px: float, rng: np.random.Generator) -> float:
    """Alone, a character is seen close, at half length or from afar; together they share the width."""
    share = float(rng.choice([1.15, 0.8, 0.55], p=[0.35, 0.4, 0.25])) if many == 1 else 0.68
    widest = 1.25 * width if many == 1 else (1.9 if tall else 1.2) * width / many
    return max(LEAST_PX, min(most_px, widest, share * float(rng.uniform(0.85, 1.15)) * height))
