"""Who plays in a comic: the characters and the world of a title, out of one artist's drawings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np

from mvray.data.synthetic import drawings, subjects
from mvray.data.synthetic.drawings import SIDE
from mvray.errors import SettingError

T = TypeVar("T")
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

FACES_PER_CAST = 7
FIGURES_PER_CAST = 1


@dataclass(frozen=True)
class Character:
    """Somebody who returns: ``drawings`` are his expressions, the subject names of one artist."""

    name: str
    drawings: tuple[str, ...]


@dataclass(frozen=True)
class Troupe:
    """What a title is drawn with: one artist, the cast, and scenery by where it stands."""

    artist: str
    cast: tuple[Character, ...]
    far: tuple[str, ...]
    near: tuple[str, ...]
    sky: tuple[str, ...]
    indoors: tuple[str, ...]
    pictures: tuple[str, ...]
    small: tuple[str, ...]
    marks: tuple[str, ...]


@cache
def face_of(artist: str, name: str) -> Box | None:
    """The face in the drawing's pixels, None where there is none to be sure of.

    A head is a face. On a bust the face is the largest patch of skin, which every artist paints in
    one colour, with a fifth of its height added above for the brow.
    """
    if name in _heads(artist):
        return drawings.extent(artist, name)
    if name not in _busts(artist) or artist not in subjects.SKIN:
        return None
    skin = _skin(artist, name)
    left, right = _run(skin.sum(axis=0))
    top, bottom = _run(skin[:, left:right].sum(axis=1))
    if min(right - left, bottom - top) < SIDE // 5:
        return None
    return (left, max(drawings.extent(artist, name)[1], top - (bottom - top) // 5), right, bottom)


def _skin(artist: str, name: str) -> np.ndarray:
    """Where the drawing has the artist's colour of skin, with holes of 15 px (eyes, mouth) closed: 128 x 128, bool."""
    rgb = np.asarray(drawings.drawing(artist, name).image)[..., :3].astype(int)
    skin: Any = np.abs(rgb - subjects.SKIN[artist]).max(axis=-1) < 14
    for widen in (True, False):
        for axis in (0, 1):
            padded = np.pad(skin, [(7, 7) if axis == i else (0, 0) for i in (0, 1)], constant_values=not widen)
            windows = np.lib.stride_tricks.sliding_window_view(padded, 15, axis)
            skin = windows.any(axis=-1) if widen else windows.all(axis=-1)
    return np.asarray(skin)


def _run(counts: np.ndarray) -> tuple[int, int]:
    """Begin and end of the stretch around the highest count that stays above 45 % of it."""
    peak = int(np.argmax(counts))
    low = np.flatnonzero(counts <= 0.45 * counts[peak])
    return int(max(low[low < peak], default=-1)) + 1, int(min(low[low > peak], default=len(counts)))


@cache
def _heads(artist: str) -> frozenset[str]:
    families = [name for family in subjects.FAMILIES.values() for name in family]
    return frozenset([*subjects.HEADS, *subjects.HEADS_OF.get(artist, ()), *families]) & drawings.names(artist)


@cache
def _busts(artist: str) -> frozenset[str]:
    names = set(subjects.BUSTS_ALONE)
    for role in subjects.BUSTS:
        pair = {f"man-{role}", f"woman-{role}"} & drawings.names(artist)
        names |= pair or {role, f"person-{role}"}
    return frozenset(names) & drawings.names(artist)


@cache
def _characters(artist: str) -> tuple[tuple[Character, ...], tuple[Character, ...]]:
    """Everybody with a face, and everybody without, in a fixed order."""
    has = drawings.names(artist)
    families = {family: tuple(n for n in names if n in has) for family, names in subjects.FAMILIES.items()}
    in_family = {name for names in families.values() for name in names}
    alone = sorted((_heads(artist) | _busts(artist)) - in_family)
    faces = [Character(family, names) for family, names in families.items() if names]
    faces += [Character(name, (name,)) for name in alone if face_of(artist, name)]
    figures = [Character(name, (name,)) for name in subjects.FIGURES if name in has and name not in _heads(artist)]
    return tuple(faces), tuple(figures)


def casts(artist: str) -> int:
    """How many casts without a common character the artist's drawings are enough for."""
    faces, figures = _characters(artist)
    return min(len(faces) // FACES_PER_CAST, len(figures) // FIGURES_PER_CAST)


def troupes(titles: int, rng: np.random.Generator) -> list[Troupe]:
    """One troupe per title: the artists in turn, each time with a cast that did not play before.

    Raises SettingError where there are not enough drawings for so many titles.
    """
    order = _shuffled(rng, drawings.artists())
    most = sum(casts(artist) for artist in order)
    if titles > most:
        raise SettingError(
            f"{titles} titles; the art is enough for {most} titles with casts of their own. Ask for fewer."
        )
    rounds = [artist for turn in range(titles) for artist in order if turn < casts(artist)]
    shuffled = {artist: [_shuffled(rng, people) for people in _characters(artist)] for artist in order}
    crews = []
    for number, artist in enumerate(rounds[:titles]):
        turn = rounds[:number].count(artist)
        faces, figures = shuffled[artist]
        cast = faces[turn * FACES_PER_CAST :][:FACES_PER_CAST] + figures[turn * FIGURES_PER_CAST :][:FIGURES_PER_CAST]
        crews.append(_troupe(artist, cast, rng))
    return crews


def _troupe(artist: str, cast: list[Character], rng: np.random.Generator) -> Troupe:
    playing = {name for character in cast for name in character.drawings}

    def some(names: Sequence[str], most: int, cards: bool = False) -> tuple[str, ...]:
        fits = [n for n in names if n in drawings.names(artist) and n not in playing]
        return tuple(_shuffled(rng, [n for n in fits if cards or not drawings.is_card(artist, n)])[:most])

    return Troupe(
        artist,
        tuple(cast),
        far=some(subjects.FAR, 10),
        near=some(subjects.NEAR, 10),
        sky=some(subjects.SKY, 6),
        indoors=some(subjects.INDOORS, 12),
        pictures=some(subjects.PICTURES, 5, cards=True),
        small=some(subjects.SMALL, 5),
        marks=some(subjects.MARKS, 5),
    )


def _shuffled(rng: np.random.Generator, things: Sequence[T]) -> list[T]:
    return [things[i] for i in rng.permutation(len(things))]
