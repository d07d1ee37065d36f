"""Whose faces a sample of faces shows: drawings of heads, by character, with where their faces are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from mvray.data.synthetic import drawings
from mvray.data.synthetic.drawings import SIDE

Colour = tuple[int, int, int]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FOUR = _names("noto twemoji noto-v1 fluent-emoji-flat")
MOODS = _names("frowning pouting raising-hand tipping-hand gesturing-ok gesturing-no")
"""What the same man, woman or person is drawn doing: other expressions and arms."""
HIDDEN = {  # drawings where arms hide the face or hair
    "twemoji": _names("man-raising-hand woman-raising-hand person-raising-hand man-gesturing-ok person-gesturing-ok"),
    "fluent-emoji-flat": _names("man-gesturing-ok woman-gesturing-ok woman-gesturing-no mrs-claus"),
}
PEOPLE = {  # (name, artists who drew it) of people with their hair in view
    "boy": (*FOUR, "emojione", "fxemoji"),
    "girl": (*FOUR, "emojione", "fxemoji"),
    "baby": (*FOUR, "fxemoji"),
    "old-man": FOUR,
    "old-woman": FOUR,
    "man": ("twemoji", "emojione", "fxemoji"),
    "woman": ("emojione", "fxemoji"),
}
ROLES = _names("construction-worker cook farmer guard police-officer student artist office-worker pilot")
HATTED = _names("prince princess mrs-claus person-with-skullcap man-wearing-turban")
CREATURES = _names("""
dog-face fox bear wolf tiger-face rabbit-face mouse-face lion panda pig-face cow-face horse-face hamster frog
monkey-face alien robot skull goblin ogre clown-face dragon-face unicorn""")
CAT_MOODS = _names("cat-face grinning-cat crying-cat pouting-cat weary-cat cat-with-wry-smile kissing-cat")
ALONE = frozenset((*PEOPLE, "prince", "princess", "person-with-skullcap", *CREATURES, *CAT_MOODS))
"""Drawings of a head and nothing else."""

SKIN: dict[str, tuple[Colour, ...]] = {  # the artist's skin, and its shades
    "noto": ((252, 202, 40), (227, 150, 0), (239, 167, 6)),
    "twemoji": ((255, 220, 93), (240, 150, 70)),
    "noto-v1": ((251, 193, 27), (228, 148, 4), (244, 174, 14)),
    "fluent-emoji-flat": ((255, 201, 61), (255, 186, 20), (238, 150, 6)),
    "emojione": ((255, 221, 103), (238, 166, 86)),
    "fxemoji": ((255, 212, 182), (238, 194, 165), (228, 172, 132)),
}
HAIR: dict[str, tuple[Colour, ...]] = {
    "noto": ((84, 60, 52), (108, 76, 65), (124, 88, 76)),
    "twemoji": ((255, 172, 51),),
    "noto-v1": ((109, 76, 65),),
    "fluent-emoji-flat": ((246, 162, 30),),
    "emojione": ((255, 180, 4),),
    "fxemoji": ((108, 68, 44), (52, 44, 36), (252, 108, 28), (140, 100, 76)),
}
CLOTHES: dict[str, tuple[Colour, ...]] = {  # of man, woman and person
    "noto": ((4, 160, 142), (4, 184, 160), (88, 16, 240), (102, 30, 254), (236, 110, 6), (244, 128, 18)),
    "twemoji": ((66, 137, 193), (146, 106, 202), (255, 116, 60)),
    "noto-v1": ((4, 190, 164), (100, 28, 252)),
    "fluent-emoji-flat": ((0, 166, 237), (140, 100, 188), (255, 103, 35)),
    "emojione": ((180, 132, 228),),
}
OLD = ("old-man", "old-woman")
"""Their hair is grey and stays so."""
BEARDED = ("man", "man-wearing-turban")
HAIRLESS = ("baby", *OLD)


@dataclass(frozen=True)
class Base:
    """A character before he is dressed: ``names`` are one artist's drawings of him.

    ``person`` is false for creatures; ``bare`` says that there is room for a hat.
    """

    artist: str
    subject: str
    names: tuple[str, ...]
    person: bool
    bare: bool


@dataclass(frozen=True)
class Face:
    """Where a face is in a drawing, in its pixels: the box of the skin, the row of the eyes, the top of the head."""

    left: int
    top: int
    right: int
    bottom: int
    eyes: float
    crown: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2


LEAST_FACE_PX = 34


@cache
def bases() -> tuple[Base, ...]:
    """Everybody who can be a character, in a fixed order."""
    known = [_family(artist, who) for artist in FOUR for who in ("man", "woman")]
    known += [_family(artist, "person") for artist in ("noto", "twemoji", "emojione")]
    known += [Base(artist, name, (name,), True, True) for name, by in PEOPLE.items() for artist in by]
    for artist in FOUR:
        roles = [f"{who}-{role}" for role in ROLES for who in ("man", "woman")]
        known += [Base(artist, name, (name,), True, False) for name in (*roles, *HATTED)]
    for artist in drawings.artists():
        known.append(Base(artist, "cat", tuple(n for n in CAT_MOODS if n in drawings.names(artist)), False, True))
        known += [Base(artist, name, (name,), False, True) for name in CREATURES]
    return tuple(base for base in map(_visible, known) if base.names)


def _family(artist: str, who: str) -> Base:
    # Twemoji's man has a moustache, but not where he frowns; a person's head is drawn nowhere alone.
    head = () if who == "person" or (artist, who) == ("twemoji", "man") else (who,)
    return Base(artist, f"{who}-of-moods", (*head, *(f"{who}-{mood}" for mood in MOODS)), True, True)


def _visible(base: Base) -> Base:
    """The base with those of its drawings that exist and show a face large enough."""
    shown = drawings.names(base.artist).difference(HIDDEN.get(base.artist, ()))
    drawn = [name for name in base.names if name in shown]
    if base.person:
        drawn = [name for name in drawn if face_of(base.artist, name, True).width >= LEAST_FACE_PX]
    return Base(base.artist, base.subject, tuple(drawn), base.person, base.bare)


@cache
def face_of(artist: str, name: str, person: bool) -> Face:
    """A person's face is the largest patch of skin; a creature's is all of its head."""
    left, top, right, bottom = drawings.extent(artist, name)
    if not person:
        inset = (right - left) // 8
        return Face(left + inset, top, right - inset, bottom, top + 0.5 * (bottom - top), top)
    skin_HW, dark_HW = _skin(artist, name)
    first, last = _run(skin_HW.sum(axis=0))
    high, low = _run(skin_HW[:, first:last].sum(axis=1))
    inner = slice(first + (last - first) // 6, last - (last - first) // 6)
    rows = dark_HW[high:low, inner].sum(axis=1)[int(0.2 * (low - high)) : int(0.62 * (low - high))]
    smooth = np.convolve(rows, np.ones(7), "same") if len(rows) else rows
    eyes = high + (int(0.2 * (low - high)) + int(np.argmax(smooth)) if smooth.any() else 0.4 * (low - high))
    column = np.asarray(drawings.drawing(artist, name).image.getchannel("A"))[:, (first + last) // 2]
    # Hands above the head are no part of it.
    crown = max(int(np.argmax(column >= SIDE)), round(eyes - 0.95 * (last - first)))
    return Face(first, high, last, low, eyes, crown)


def _skin(artist: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the drawing has skin, with holes of 15 px (eyes, mouth) closed, and where something dark is in it."""
    rgba = np.asarray(drawings.drawing(artist, name).image).astype(int)
    rgb, opaque = rgba[..., :3], rgba[..., 3] >= SIDE
    tones = [np.abs(rgb - tone).max(axis=-1) < 16 for tone in SKIN[artist][:2]]
    skin: Any = (tones[0] | tones[1]) & opaque
    for widen in (True, False):
        for axis in (0, 1):
            padded = np.pad(skin, [(7, 7) if axis == i else (0, 0) for i in (0, 1)], constant_values=not widen)
            windows = np.lib.stride_tricks.sliding_window_view(padded, 15, axis)
            skin = windows.any(axis=-1) if widen else windows.all(axis=-1)
    return np.asarray(skin), skin & opaque & (rgb.max(axis=-1) < 125)


def _run(counts: np.ndarray) -> tuple[int, int]:
    """Begin and end of the stretch around the highest count that stays above 45 % of it."""
    peak = int(np.argmax(counts))
    low = np.flatnonzero(counts <= 0.45 * counts[peak])
    return int(max(low[low < peak], default=-1)) + 1, int(min(low[low > peak], default=len(counts)))
