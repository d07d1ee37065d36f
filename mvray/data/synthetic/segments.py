"""`mvray sample segments`: drawn things before scenery and textures in PASCAL VOC 2012's layout, with class maps.

Drawings and grounds are split two to one before anything is composed: a picture of val shows other drawings of the
same classes over other grounds than any picture of train.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from xml.sax.saxutils import escape

import numpy as np

from mvray.data.palette import palette_png
from mvray.data.synthetic.collage import Collage, Object, collage, edges
from mvray.data.synthetic.drawings import NOTICE
from mvray.data.synthetic.grounds import GROUNDS, ground
from mvray.data.synthetic.stamps import SUBJECTS, Stamp, split_stamps, two_to_one
from mvray.data.synthetic.whole import check, is_whole, produce, replacing
from mvray.errors import SettingError
from mvray.experiment import IGNORE

T = TypeVar("T")
W = TypeVar("W", bound="Work")

VERSION = 2
"""Grows when the same settings give other pictures."""
FEWEST, MOST = 10, 100_000
SMALLEST, LARGEST = 64, 512
GROUNDS_OF_A_KIND = 6
FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject", "Annotations", "ImageSets/Segmentation")
TRAIN, VAL = "train", "val"
CLASSES = ("background", *SUBJECTS)
ABOUT = """Sample segments, composed by mvray out of real drawings (licences: NOTICE.md, which stays with them).

JPEGImages/NAME.jpg                      pictures
SegmentationClass/NAME.png               class maps: a palette's indices, 255 for boundaries
SegmentationObject/NAME.png              the same with the number of each object
Annotations/NAME.xml                     objects with their classes and boxes
ImageSets/Segmentation/                  train.txt, val.txt, trainval.txt: names
classes.txt                              the classes in the order of their indices, background first
composed.csv                             of each picture the list, the ground and the drawings that are in it
sample.json                              the settings, and size and checksum of every file

Laid out as PASCAL VOC 2012 is. No drawing and no ground is in both train and val.
"""


@dataclass(frozen=True)
class Picture:
    """What is composed: ``size`` is (width, height); things are of no class."""

    number: int
    split: str
    size: tuple[int, int]
    stamps: tuple[Stamp, ...]
    things: tuple[Stamp, ...]

    @property
    def name(self) -> str:
        return f"composed_{self.number:06d}"


@dataclass(frozen=True)
class Work:
    """All pictures over a ground."""

    kind: str
    ground: int
    pictures: tuple[Picture, ...]
    seed: int


Line = tuple[str, str, str, str]
"""Of composed.csv: picture, list, ground, drawings."""


def compose(
    out: Path,
    pictures: int = 300,
    size: int = 160,
    seed: int = 0,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compose ``pictures`` pictures, a fifth of them for val, under ``out``; their longer side has ``size`` pixels.

    The same settings give the same bytes, with any number of ``processes`` (None: one per core, up to 8).
    ``progress`` is told pictures done and pictures in all. Everything is written to a folder beside ``out``,
    which then takes its name: what is at ``out`` is always whole. A whole sample with the same settings is
    left as it is. Raises SettingError for numbers that do not fit and DataError where ``out`` holds
    something else.
    """
    check_settings(pictures, size, seed, processes)
    out = out.resolve()
    settings = {"sample": "segments", "version": VERSION, "pictures": pictures, "size": size, "seed": seed}
    if is_whole(out, settings):
        return
    with replacing(out, settings) as part:
        write_sample(part, works_of(pictures, size, seed), _compose, CLASSES, processes, progress)
        (part / "README.txt").write_text(ABOUT, encoding="utf-8")
        shutil.copyfile(NOTICE, part / "NOTICE.md")


def check_settings(pictures: int, size: int, seed: int, processes: int | None = None) -> None:
    """Raises SettingError for numbers that do not fit."""
    if not FEWEST <= pictures <= MOST:
        raise SettingError(f"pictures is {pictures}; expected {FEWEST} to {MOST}.")
    if not SMALLEST <= size <= LARGEST:
        raise SettingError(f"size is {size}; expected {SMALLEST} to {LARGEST} pixels.")
    check(seed, processes)


# -- what is composed ----------------------------------------------------------------------------


def works_of(pictures: int, size: int, seed: int) -> list[Work]:
    """The grounds of a sample with the pictures over each of them."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    splits = np.array([TRAIN] * (pictures - pictures // 5) + [VAL] * (pictures // 5))
    rng.shuffle(splits)
    grounds = _split_grounds(rng)
    works: list[Work] = []
    for split, stamps, places in zip((TRAIN, VAL), split_stamps(rng), grounds, strict=True):
        numbers = [int(number) for number in np.flatnonzero(splits == split)]
        planned = plan(numbers, split, size, stamps, rng)
        for i, place in enumerate(places[: len(planned)]):
            kind = GROUNDS[place // GROUNDS_OF_A_KIND]
            works.append(Work(kind, place, tuple(planned[i :: len(places)]), seed))
    return works


def _split_grounds(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """The numbers of the grounds of train and those of val, two to one of each kind, all kinds early on."""
    parts: tuple[list[int], list[int]] = ([], [])
    kinds = rng.permutation(len(GROUNDS))
    dealt = {kind: two_to_one(range(kind * GROUNDS_OF_A_KIND, (kind + 1) * GROUNDS_OF_A_KIND), rng) for kind in kinds}
    for which, part in enumerate(parts):
        for turn in range(GROUNDS_OF_A_KIND):
            part += [dealt[kind][which][turn] for kind in kinds if turn < len(dealt[kind][which])]
    return parts[0], parts[1]


def plan(
    numbers: Sequence[int], split: str, size: int, stamps: Sequence[Stamp], rng: np.random.Generator
) -> list[Picture]:
    """One to three classes for each picture, now and then two objects of one, and at times something of no class."""
    decks = {
        kind: _dealt([stamp for stamp in stamps if stamp.kind == kind], rng)
        for kind in dict.fromkeys(stamp.kind for stamp in stamps)
    }
    classes = _dealt([kind for kind in decks if kind], rng)
    short = round(size * 3 / 4)
    sizes = _dealt([(size, size), (size, size), (size, short), (short, size)], rng)
    pictures = []
    for number in numbers:
        kinds: list[str] = []
        many = 1 + int(rng.choice(3, p=[0.4, 0.38, 0.22]))
        while len(kinds) < many:
            if (kind := next(classes)) not in kinds:
                kinds.append(kind)
        twice = [kinds[0]] if rng.random() < 0.2 else []
        chosen = tuple(next(decks[kind]) for kind in kinds + twice)
        things = tuple(next(decks[""]) for _ in range(int(rng.choice(3, p=[0.65, 0.25, 0.1]))))
        pictures.append(Picture(number, split, next(sizes), chosen, things))
    return pictures


def _dealt(cards: Sequence[T], rng: np.random.Generator) -> Iterator[T]:
    """All cards in any order, then all of them in another, without end."""
    while True:
        yield from (cards[i] for i in rng.permutation(len(cards)))


# -- how it is written ---------------------------------------------------------------------------


def _compose(part: Path, work: Work) -> list[Line]:
    """Write the pictures over a ground, and say what is in them."""
    behind = ground(work.kind, np.random.default_rng(np.random.SeedSequence([work.seed, 1, work.ground])))
    lines = []
    for picture in work.pictures:
        rng = np.random.default_rng(np.random.SeedSequence([work.seed, 2, picture.number]))
        made = collage(behind, picture.size, picture.stamps, picture.things, rng)
        write(part, picture.name, made, CLASSES)
        drawn = " ".join(stamp.key for stamp in (*made.used, *picture.things))
        lines.append((picture.name, picture.split, f"{work.kind}-{work.ground}", drawn))
    return lines


def write_sample(
    part: Path,
    works: Sequence[W],
    make: Callable[[Path, W], list[Line]],
    classes: Sequence[str],
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write what ``make`` writes of each piece of work, the lists of pictures, and the classes' names."""
    total = sum(len(work.pictures) for work in works)
    for folder in FOLDERS:
        (part / folder).mkdir(parents=True)
    lines: list[Line] = []
    for _, written in produce(make, part, works, processes):
        lines += written
        if progress:
            progress(len(lines), total)
    _write_lists(part, sorted(lines), classes)


def write(part: Path, name: str, made: Collage, classes: Sequence[str]) -> None:
    """Write a picture, its class map, the map of its objects and its annotation."""
    made.image.save(part / "JPEGImages" / f"{name}.jpg", quality=95)
    labels = np.array([0, *(classes.index(thing.kind) for thing in made.objects)], np.uint8)
    edge_HW = edges(made.owners)
    for folder, map_HW in (("SegmentationClass", labels[made.owners]), ("SegmentationObject", made.owners)):
        (part / folder / f"{name}.png").write_bytes(palette_png(np.where(edge_HW, IGNORE, map_HW).astype(np.uint8)))
    (part / "Annotations" / f"{name}.xml").write_text(_xml(name, made.image.size, made.objects), encoding="utf-8")


def _xml(name: str, size: tuple[int, int], objects: Sequence[Object]) -> str:
    """The annotation of a picture as VOC 2012 writes it."""
    lines = ["<annotation>", "\t<folder>VOC2012</folder>", f"\t<filename>{name}.jpg</filename>", "\t<source>"]
    lines += ["\t\t<database>mvray sample segments</database>", "\t\t<annotation>PASCAL VOC2012</annotation>"]
    lines += ["\t\t<image>composed</image>", "\t</source>", "\t<size>", f"\t\t<width>{size[0]}</width>"]
    lines += [f"\t\t<height>{size[1]}</height>", "\t\t<depth>3</depth>", "\t</size>", "\t<segmented>1</segmented>"]
    for thing in objects:
        lines += ["\t<object>", f"\t\t<name>{escape(thing.kind)}</name>", "\t\t<pose>Unspecified</pose>"]
        lines += [f"\t\t<truncated>{thing.truncated:d}</truncated>", f"\t\t<occluded>{thing.occluded:d}</occluded>"]
        sides = zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=True)
        lines += ["\t\t<bndbox>", *(f"\t\t\t<{side}>{at}</{side}>" for side, at in sides), "\t\t</bndbox>"]
        lines += ["\t\t<difficult>0</difficult>", "\t</object>"]
    return "\n".join([*lines, "</annotation>", ""])


def _write_lists(part: Path, lines: Sequence[Line], classes: Sequence[str]) -> None:
    for list_, wanted in ((TRAIN, {TRAIN}), (VAL, {VAL}), ("trainval", {TRAIN, VAL})):
        names = [name for name, split, *_ in lines if split in wanted]
        path = part / "ImageSets" / "Segmentation" / f"{list_}.txt"
        path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    (part / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    with (part / "composed.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("picture", "list", "ground", "drawings"), *lines])
