"""What makes a character of a sample of faces: whose drawings, which colours, and what is worn.

A third of all characters are easily taken for another one: the same drawings in another outfit, or
the same subject in the same outfit by another artist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from mvray.data.synthetic import heads
from mvray.data.synthetic.heads import Base, Colour

T = TypeVar("T")
MOST_CHARACTERS = 1000
HAIRS: tuple[Colour, ...] = (
    (44, 38, 46), (116, 72, 46), (246, 206, 96), (222, 84, 38), (244, 142, 178), (138, 92, 190), (70, 120, 214),
    (64, 168, 128), (206, 208, 222), (150, 30, 56),
)  # fmt: skip
SKINS: tuple[Colour, ...] = ((255, 226, 204), (250, 206, 170), (226, 168, 124), (150, 98, 66))
CLOTH: tuple[Colour, ...] = (
    (52, 58, 78), (236, 236, 240), (206, 54, 62), (52, 112, 196), (70, 150, 96), (240, 180, 60), (148, 98, 178),
    (232, 132, 168), (126, 100, 84), (78, 188, 196),
)  # fmt: skip
FURS = (0, 45, 115, 180, 225, 290)
"""Degrees by which a creature's colours are turned."""


@dataclass(frozen=True)
class Worn:
    """A drawing that is worn: ``place`` is one of PLACES; its colours are turned by ``turn_deg``."""

    place: str
    artist: str
    name: str
    turn_deg: int


@dataclass(frozen=True)
class Look:
    """A character. ``hair``, ``skin`` and ``cloth`` are those of a person, ``fur_deg`` is that of a creature."""

    base: Base
    hair: Colour
    skin: Colour
    cloth: Colour
    fur_deg: int
    worn: tuple[Worn, ...]


PLACES: dict[str, dict[str, tuple[str, ...]]] = {  # place -> subject -> the artists whose drawing fits there
    "hat": {
        "top-hat": ("noto", "twemoji", "emojione"),
        "womans-hat": ("twemoji",),
        "crown": ("noto", "twemoji", "noto-v1", "emojione"),
        "graduation-cap": ("noto", "noto-v1", "emojione"),
    },
    "eyes": {"glasses": ("noto", "twemoji", "fluent-emoji-flat"), "sunglasses": ("noto", "twemoji", "noto-v1")},
    "ears": {"headphone": ("noto", "fluent-emoji-flat")},
    "side": {
        "ribbon": ("noto", "twemoji", "noto-v1", "fluent-emoji-flat"),
        "hibiscus": ("twemoji", "noto-v1", "fluent-emoji-flat"),
        "rosette": ("noto", "twemoji", "noto-v1"),
        "cherry-blossom": ("noto", "twemoji", "noto-v1"),
        "butterfly": ("noto", "twemoji", "emojione"),
        "star": ("noto", "twemoji", "noto-v1"),
        "four-leaf-clover": ("noto", "twemoji", "emojione"),
        "maple-leaf": ("noto", "twemoji", "emojione"),
        "red-heart": ("noto", "twemoji", "emojione"),
        "snowflake": ("noto-v1", "twemoji", "emojione"),
    },
    "chin": {"ribbon": ("noto", "twemoji", "noto-v1"), "bell": ("noto", "twemoji", "noto-v1")},
}
TURNS = (0, 0, 70, 140, 210, 280)


def looks(count: int, rng: np.random.Generator) -> list[Look]:
    """``count`` characters, no two alike."""
    drawn: list[Look] = []
    order = _order(count, rng)
    while len(drawn) < count:
        new = _look(order[len(drawn)], rng) if len(drawn) < 2 or rng.random() < 0.67 else _double(_one(drawn, rng), rng)
        if new is not None and all(distinguishable(new, old) for old in drawn):
            drawn.append(new)
    return drawn


def distinguishable(one: Look, other: Look) -> bool:
    """Whether somebody who looks can tell them apart: other drawings, other colours, or nothing worn in common.

    Not every picture shows all that is worn: what is under the chin is often cut off, and one of two things
    may be missing. Hair under a hat or a baby's is not enough to know him by.
    """
    if (one.base.artist, one.base.subject) != (other.base.artist, other.base.subject):
        return True
    if one.base.person and one.base.bare and one.base.subject not in heads.HAIRLESS and one.hair != other.hair:
        return True
    if not one.base.person and one.fur_deg != other.fur_deg:
        return True
    mine, others = ({w for w in look.worn if w.place != "chin"} for look in (one, other))
    return bool(mine or others) and not mine & others


def _order(count: int, rng: np.random.Generator) -> list[Base]:
    """Whose turn it is: of ten, four people drawn in several moods, four others, two creatures. Each takes
    a turn before anybody takes a second one."""

    def dealt(kind: int) -> list[Base]:
        deck = [base for base in heads.bases() if kind == (0 if len(base.names) > 1 else 1 if base.person else 2)]
        return [deck[i] for _ in range(-(-count // len(deck))) for i in rng.permutation(len(deck))]

    decks = [dealt(kind) for kind in range(3)]
    return [decks[(0, 1, 0, 1, 2)[i % 5]].pop() for i in range(count)]


def _look(base: Base, rng: np.random.Generator) -> Look:
    hair = (190, 190, 196) if base.subject in heads.OLD else _one(HAIRS, rng)
    return Look(base, hair, _one(SKINS, rng), _one(CLOTH, rng), _one(FURS, rng), _outfit(base, rng))


def _outfit(base: Base, rng: np.random.Generator) -> tuple[Worn, ...]:
    """None to two things, each at a place of its own."""
    places = [place for place in PLACES if base.bare or place not in ("hat", "ears")]
    if not base.person:  # a creature's eyes are anywhere
        places.remove("eyes")
    count = int(rng.choice([0, 1, 2], p=[0.25, 0.45, 0.3]))
    chosen = [places[i] for i in rng.permutation(len(places))[:count]]
    if {"hat", "ears"} <= set(chosen):
        chosen.remove("ears")
    return tuple(_worn(place, rng) for place in sorted(chosen, key=list(PLACES).index))


def _worn(place: str, rng: np.random.Generator) -> Worn:
    name = _one(list(PLACES[place]), rng)
    return Worn(place, _one(PLACES[place][name], rng), name, _one(TURNS, rng))


def _double(of: Look, rng: np.random.Generator) -> Look | None:
    """Somebody easily taken for ``of``; None where there is nobody."""
    kind = int(rng.integers(3))
    if kind == 0:  # the same drawings, dressed otherwise
        return replace(of, worn=_outfit(of.base, rng))
    if kind == 1:  # the same drawings and outfit in other colours
        hair = of.hair if of.base.subject in heads.OLD else _one(HAIRS, rng)
        return replace(of, hair=hair, cloth=_one(CLOTH, rng), fur_deg=_one(FURS, rng))
    others = [b for b in heads.bases() if b.subject == of.base.subject and b.artist != of.base.artist]
    return replace(of, base=_one(others, rng)) if others else None


def _one(things: Sequence[T], rng: np.random.Generator) -> T:
    return things[int(rng.integers(len(things)))]
