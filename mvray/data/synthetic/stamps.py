"""The drawings of a sample of segments: which subjects make up a class, and how they are dealt to its splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from mvray.data.synthetic import drawings

T = TypeVar("T")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SUBJECTS = {
    "bird": _names("""
bird dove eagle owl duck penguin rooster chicken turkey baby-chick hatching-chick front-facing-baby-chick"""),
    "car": _names("""
automobile taxi police-car sport-utility-vehicle racing-car minibus oncoming-automobile oncoming-taxi
oncoming-police-car"""),
    "fish": _names("fish tropical-fish blowfish shark"),
    "flower": _names("rose tulip sunflower hibiscus cherry-blossom blossom rosette bouquet wilted-flower"),
    "fruit": _names("""
red-apple green-apple pear tangerine lemon banana watermelon melon strawberry cherries grapes pineapple peach
kiwi-fruit"""),
    "mammal": _names("""
cat dog poodle horse cow ox water-buffalo pig ram goat camel elephant rhinoceros monkey gorilla tiger mouse rat
rabbit chipmunk deer boar"""),
    "person": _names("""
man-dancing woman-dancing man-walking woman-running man-bouncing-ball woman-golfing man-lifting-weights woman-cook
man-mechanic woman-farmer man-artist police-officer pregnant-woman man-shrugging woman-raising-hand man-guard
detective woman-playing-handball person-in-suit-levitating man-cartwheeling woman-juggling"""),
}
"""Each class and what is drawn of it. Two subjects that an artist draws nearly alike are never both here."""
MISDRAWN = {("streamline-emojis", "turkey"), ("fxemoji", "bird")}
"""Drawings of something else than their name says: a flag, an egg."""
ANY_HUE = {"bird", "car", "fish", "flower"}
"""Classes that may have any colour: half of them are painted anew."""
THINGS = _names("""
guitar umbrella books radio alarm-clock backpack handbag briefcase package wrapped-gift trophy bell drum television
telephone candle crown balloon mushroom cactus light-bulb hammer key umbrella-on-ground postbox fuel-pump soccer-ball
teacup-without-handle top-hat scissors""")
"""What belongs to no class, and is background wherever it lies."""


@dataclass(frozen=True)
class Stamp:
    """A drawing and the class that it shows, "" for a thing of no class."""

    kind: str
    artist: str
    name: str

    @property
    def key(self) -> str:
        return f"{self.artist}/{self.name}"


def split_stamps(rng: np.random.Generator) -> tuple[list[Stamp], list[Stamp]]:
    """The stamps of training and those of testing, two to one in each class."""
    parts: tuple[list[Stamp], list[Stamp]] = ([], [])
    for kind, names in {**SUBJECTS, "": THINGS}.items():
        every = [
            Stamp(kind, artist, name)
            for name in names
            for artist in drawings.artists()
            if name in drawings.names(artist) and (artist, name) not in MISDRAWN and not drawings.is_card(artist, name)
        ]
        for part, share in zip(parts, two_to_one(every, rng), strict=True):
            part += share
    return parts


def two_to_one(every: Sequence[T], rng: np.random.Generator) -> tuple[list[T], list[T]]:
    """Two thirds of them and one third, in any order."""
    shuffled = [every[i] for i in rng.permutation(len(every))]
    cut = round(len(shuffled) * 2 / 3)
    return shuffled[:cut], shuffled[cut:]


def painted(stamp: Stamp, rng: np.random.Generator) -> Image.Image:
    """The drawing, RGBA, a little other than it was drawn: its hue, how strong its colours are, and how light."""
    image = drawings.drawing(stamp.artist, stamp.name).image
    far = stamp.kind in ANY_HUE and rng.random() < 0.5
    # Artists give everybody yellow skin: nearer to red it is still skin, nearer to green it is not.
    low, high = (-180, 180) if far else (-16, 2) if stamp.kind == "person" else (-14, 14)
    turn = round(float(rng.uniform(low, high)) * 256 / 360)
    strong, light, gamma = rng.uniform(0.7, 1.15), rng.uniform(0.8, 1.05), rng.uniform(0.8, 1.25)
    hue, saturation, value = image.convert("RGB").convert("HSV").split()
    hue = hue.point([(h + turn) % 256 for h in range(256)])
    saturation = saturation.point([min(255, round(s * strong)) for s in range(256)])
    value = value.point([min(255, round(255 * light * (v / 255) ** gamma)) for v in range(256)])
    new = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    new.putalpha(image.getchannel("A"))
    return new
