"""Who acts in a sample action, and what else is in view: subjects of the art pack, dealt out by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from mvray.data.synthetic import drawings


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _names("""
man-dancing woman-dancing man-walking woman-walking person-walking man-running woman-running person-running
man-bouncing-ball woman-bouncing-ball person-bouncing-ball person-playing-handball man-golfing woman-golfing
person-in-suit-levitating man-lifting-weights man-cook woman-cook man-mechanic woman-farmer man-artist
police-officer pregnant-woman prince princess man-shrugging woman-raising-hand man-guard detective baby-angel""")
ANIMALS = _names("""
camel two-hump-camel cat chipmunk cow crab dog duck elephant ewe goat horse monkey mouse octopus owl penguin pig
poodle rabbit ram rooster baby-chick front-facing-baby-chick bird turtle tiger leopard koala gorilla rhinoceros
water-buffalo ox snail ghost snowman-without-snow robot alien-monster frog deer lady-beetle""")
STANDING = _names("""
automobile taxi bus minibus delivery-truck fire-engine ambulance tractor police-car sport-utility-vehicle bicycle
motor-scooter kick-scooter motorcycle wrapped-gift package shopping-cart umbrella-on-ground postbox fuel-pump
vertical-traffic-light bus-stop construction oil-drum tent cactus tulip sunflower mushroom drum backpack briefcase
handbag seat couch-and-lamp television radio alarm-clock trophy birthday-cake watermelon pineapple jack-o-lantern
red-apple soccer-ball basketball volleyball barber-pole crystal-ball books honey-pot mantelpiece-clock guitar
locomotive wastebasket telescope hamburger soft-ice-cream strawberry""")
FLYING = _names("balloon airplane helicopter small-airplane rocket red-paper-lantern umbrella star satellite")


@dataclass(frozen=True)
class Prop:
    """A thing in view: a drawing, whether it flies, and whether it is before the actor."""

    artist: str
    name: str
    flies: bool
    in_front: bool


def actors(count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """(artist, name) of ``count`` actors, people and animals in turn; none twice as long as there are others."""
    pair = zip_longest(_dealt(PEOPLE, rng), _dealt(ANIMALS, rng))
    order = [actor for both in pair for actor in both if actor is not None]
    return [order[i % len(order)] for i in range(count)]


def _dealt(names: Sequence[str], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Every drawing of these subjects: each subject once by some artist, then each by another, and so on."""
    shuffled = [names[i] for i in rng.permutation(len(names))]
    by = {name: _artists_of(name, rng) for name in shuffled}
    most = max(len(artists) for artists in by.values())
    return [(by[name][turn], name) for turn in range(most) for name in shuffled if turn < len(by[name])]


def props(rng: np.random.Generator) -> tuple[Prop, ...]:
    """Two to four things, one or two of them before the actor in three clips of four."""
    count = int(rng.integers(2, 5))
    in_front = int(rng.integers(1, 3)) if rng.random() < 0.75 else 0
    return tuple(_prop(rng, in_front=i < in_front) for i in range(count))


def _prop(rng: np.random.Generator, in_front: bool) -> Prop:
    flies = bool(rng.random() < (0.2 if in_front else 0.4))
    names = FLYING if flies else STANDING
    name = names[int(rng.integers(len(names)))]
    return Prop(_artists_of(name, rng)[0], name, flies, in_front)


def _artists_of(name: str, rng: np.random.Generator) -> list[str]:
    """Those who drew the subject itself rather than a picture of it, shuffled."""
    artists = [a for a in drawings.artists() if name in drawings.names(a) and not drawings.is_card(a, name)]
    return [artists[i] for i in rng.permutation(len(artists))]
