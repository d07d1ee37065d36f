"""`mvray sample segments`: pictures with the class of every pixel, in PASCAL VOC 2012's layout.

Drawings of seven kinds of things stand before scenes and patterns. Drawings and scenes are split before anything is
composed, so the tested pictures show none that was trained on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageEnhance

from mvray.data.palette import palette_png
from mvray.data.synthetic.drawings import NOTICE, artists, drawing, extent, names
from mvray.data.synthetic.surroundings import behind
from mvray.data.synthetic.whole import check, is_whole, produce, replacing
from mvray.errors import SettingError
from mvray.experiment import IGNORE

VERSION = 1
"""Grows when the same settings give other pictures."""
THINGS = {
    "bird": """bird dove duck eagle chicken rooster owl parrot penguin baby-chick hatching-chick turkey swan flamingo
        peacock front-facing-baby-chick""",
    "animal": """cat dog cow pig horse goat ewe ram elephant rabbit mouse rat tiger leopard camel monkey gorilla deer
        bear lion fox boar hamster chipmunk water-buffalo ox kangaroo zebra sloth otter""",
    "flower": "tulip sunflower rose hibiscus cherry-blossom blossom rosette bouquet lotus wilted-flower",
    "fruit": """red-apple green-apple banana pear peach lemon tangerine cherries grapes strawberry watermelon pineapple
        melon kiwi-fruit tomato mango""",
    "vehicle": """automobile taxi bus minibus delivery-truck fire-engine ambulance police-car tractor oncoming-taxi
        oncoming-automobile sport-utility-vehicle articulated-lorry trolleybus locomotive tram racing-car""",
    "building": """house house-with-garden church castle japanese-castle hotel hospital school office-building
        department-store convenience-store bank classical-building post-office factory mosque love-hotel""",
    "person": """man-running woman-running man-walking woman-walking man-dancing woman-dancing person-fencing skier
        snowboarder man-bouncing-ball woman-bouncing-ball man-cartwheeling woman-cartwheeling man-surfing
        woman-surfing man-lifting-weights woman-lifting-weights man-playing-handball woman-playing-handball""",
}
CLASSES = ("background", *THINGS)
SPLITS = ("train", "val")
_BOUNDARY_PX = 1
_LEAST_PX = 60
_AT_ONCE = 10
ABOUT = """Sample pictures with class maps, composed by mvray out of real drawings (licences: NOTICE.md, which stays
with them), in PASCAL VOC 2012's layout.

JPEGImages/NAME.jpg, SegmentationClass/NAME.png (a palette's indices; 255: boundaries), Annotations/NAME.xml,
ImageSets/Segmentation/train.txt, val.txt, trainval.txt
classes.txt    the classes in the order of the indices
sample.json    the settings, and size and checksum of every file
"""


@dataclass(frozen=True)
class Work:
    """Some pictures of a split, by their numbers."""

    split: str
    numbers: tuple[int, ...]
    size: int
    seed: int


def compose(
    out: Path,
    pictures: int = 300,
    size: int = 160,
    seed: int = 0,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compose ``pictures`` pictures under ``out``, a fifth of them for testing; their longer side has ``size`` pixels.

    The same settings give the same bytes, with any number of ``processes`` (None: one per core, up to 8). ``progress``
    is told pictures done and pictures in all. What is at ``out`` is always whole, and is left as it is where it has the
    same settings. Raises SettingError for numbers that do not fit and DataError where ``out`` holds something else.
    """
    if not 10 <= pictures <= 100_000:
        raise SettingError(f"pictures is {pictures}; expected 10 to 100000.")
    if not 64 <= size <= 1024:
        raise SettingError(f"size is {size}; expected 64 to 1024 pixels.")
    check(seed, processes)
    out = out.resolve()
    settings = {"sample": "segments", "version": VERSION, "pictures": pictures, "size": size, "seed": seed}
    if is_whole(out, settings):
        return
    counts = {"train": pictures - pictures // 5, "val": pictures // 5}
    works = [
        Work(split, tuple(range(first, min(count, first + _AT_ONCE))), size, seed)
        for split, count in counts.items()
        for first in range(0, count, _AT_ONCE)
    ]
    with replacing(out, settings) as part:
        for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
            (part / folder).mkdir(parents=True)
        finished = 0
        for work, _ in produce(_draw, part, works, processes):
            finished += len(work.numbers)
            if progress:
                progress(finished, pictures)
        listed = {split: [name_of(split, number) for number in range(count)] for split, count in counts.items()}
        listed["trainval"] = sorted(listed["train"] + listed["val"])
        for name, list_ in listed.items():
            (part / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{line}\n" for line in list_))
        (part / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
        (part / "README.txt").write_text(ABOUT, encoding="utf-8")
        shutil.copyfile(NOTICE, part / "NOTICE.md")


def name_of(split: str, number: int) -> str:
    """As VOC's pictures are named: a year and a number."""
    return f"{2007 + SPLITS.index(split)}_{number:06d}"


def stamps(split: str, seed: int) -> dict[str, list[tuple[str, str]]]:
    """The drawings (artist, subject) of each class in a split: two thirds in train, the others in val."""
    chosen: dict[str, list[tuple[str, str]]] = {}
    for number, (class_, subjects) in enumerate(THINGS.items()):
        every = sorted((artist, name) for artist in artists() for name in subjects.split() if name in names(artist))
        order = np.random.default_rng(np.random.SeedSequence([seed, 7, number])).permutation(len(every))
        cut = 2 * len(every) // 3
        chosen[class_] = [every[i] for i in (order[:cut] if split == "train" else order[cut:])]
    return chosen


def _draw(part: Path, work: Work) -> None:
    """Write some pictures with their class maps and annotations."""
    things = stamps(work.split, work.seed)
    for number in work.numbers:
        rng = np.random.default_rng(np.random.SeedSequence([work.seed, 1 + SPLITS.index(work.split), number]))
        image, classes_HW, objects = _scene(things, work, rng)
        name = name_of(work.split, number)
        image.save(part / f"JPEGImages/{name}.jpg", quality=95)
        (part / f"SegmentationClass/{name}.png").write_bytes(palette_png(classes_HW))
        (part / f"Annotations/{name}.xml").write_text(annotation(name, image.size, objects), encoding="utf-8")


Object = tuple[str, tuple[int, int, int, int], bool]
"""A class, the box of what is seen (left, top, right, bottom), and whether the picture's border cuts it."""


def _scene(
    things: dict[str, list[tuple[str, str]]], work: Work, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray, list[Object]]:
    shape = rng.choice(3, p=(0.5, 0.25, 0.25))
    width, height = [(work.size, work.size), (work.size, 3 * work.size // 4), (3 * work.size // 4, work.size)][shape]
    # A seed of its own for each split: scenes are drawn by it.
    image = behind(work.size, 2 * work.seed + SPLITS.index(work.split), rng).convert("RGB").crop((0, 0, width, height))
    classes = rng.choice(list(things), size=int(rng.choice((1, 2, 3), p=(0.45, 0.35, 0.2))), replace=False)
    count = len(classes) + int(rng.random() < 0.4)
    shown = [str(classes[i % len(classes)]) for i in range(count)]
    owners_HW, places = np.zeros((height, width), np.int64), []
    for number, class_ in enumerate(shown, start=1):
        artist, name = things[class_][int(rng.integers(len(things[class_])))]
        stamp = _stamp(artist, name, rng, share=float(rng.uniform(0.35, 0.8)) / count**0.5, side=min(width, height))
        x = int(rng.uniform(-0.2 * stamp.width, width - 0.8 * stamp.width))
        y = int(rng.uniform(-0.2 * stamp.height, height - 0.8 * stamp.height))
        image.paste(stamp, (x, y), stamp)
        mask = Image.new("L", (width, height))
        mask.paste(stamp.getchannel("A"), (x, y))
        owners_HW[np.asarray(mask) >= 128] = number
        places.append((x, y, x + stamp.width, y + stamp.height))
    return image, *_class_map(owners_HW, shown, places)


def _stamp(artist: str, name: str, rng: np.random.Generator, share: float, side: int) -> Image.Image:
    """A drawing cut out, turned, perhaps mirrored, a little lighter or darker, ``share`` of ``side`` long."""
    image = drawing(artist, name).image.crop(extent(artist, name))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    factor = share * side / max(image.size)
    size = max(8, round(image.width * factor)), max(8, round(image.height * factor))
    image = image.resize(size, Image.Resampling.LANCZOS).rotate(
        float(rng.uniform(-20, 20)), Image.Resampling.BICUBIC, expand=True
    )
    alpha = image.getchannel("A")
    image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.75, 1.15)))
    image = ImageEnhance.Color(image).enhance(float(rng.uniform(0.6, 1.3)))
    image.putalpha(alpha)
    return image


def _class_map(
    owners_HW: np.ndarray, shown: list[str], places: list[tuple[int, int, int, int]]
) -> tuple[np.ndarray, list[Object]]:
    """The class of each pixel, 255 around each object, and the objects of which enough is seen."""
    height, width = owners_HW.shape
    numbers = np.array([0, *(CLASSES.index(class_) for class_ in shown)], np.uint8)
    classes_HW, objects = numbers[owners_HW], []
    padded = np.pad(owners_HW, _BOUNDARY_PX, mode="edge")
    steps = range(2 * _BOUNDARY_PX + 1)
    for dy in steps:
        for dx in steps:
            classes_HW[padded[dy : dy + height, dx : dx + width] != owners_HW] = IGNORE
    for number, (class_, (left, top, right, bottom)) in enumerate(zip(shown, places, strict=True), start=1):
        own_HW = owners_HW == number
        if own_HW.sum() < _LEAST_PX:  # nearly all of it is behind another one
            classes_HW[own_HW] = IGNORE
            continue
        rows, columns = np.flatnonzero(own_HW.any(1)), np.flatnonzero(own_HW.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        objects.append((class_, box, left < 0 or top < 0 or right > width or bottom > height))
    return classes_HW, objects


def annotation(name: str, size: tuple[int, int], objects: list[Object]) -> str:
    """The XML that VOC has for a picture; boxes count pixels from 1."""
    lines = [
        "<annotation>",
        f"\t<folder>VOC2012</folder>\n\t<filename>{escape(name)}.jpg</filename>",
        f"\t<size>\n\t\t<width>{size[0]}</width>\n\t\t<height>{size[1]}</height>\n\t\t<depth>3</depth>\n\t</size>",
        "\t<segmented>1</segmented>",
    ]
    for class_, (left, top, right, bottom), is_cut in objects:
        lines += [
            f"\t<object>\n\t\t<name>{escape(class_)}</name>\n\t\t<truncated>{int(is_cut)}</truncated>",
            "\t\t<difficult>0</difficult>",
            f"\t\t<bndbox>\n\t\t\t<xmin>{left + 1}</xmin>\n\t\t\t<ymin>{top + 1}</ymin>\n\t\t\t<xmax>{right}</xmax>",
            f"\t\t\t<ymax>{bottom}</ymax>\n\t\t</bndbox>\n\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])
