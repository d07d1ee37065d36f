"""`mvray sample faces`: faces of drawn characters in the layout of the AnimeFace Character Dataset.

A character is one artist's drawings of a subject in colours and an outfit of its own. Its pictures differ
in expression, pose, crop, light, style and quality. Backdrops, light and what is in front are drawn for
every picture alike, so that only who looks at the face can tell whose it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mvray.data.synthetic.drawings import NOTICE
from mvray.data.synthetic.looks import MOST_CHARACTERS, Look, looks
from mvray.data.synthetic.portraits import portrait
from mvray.data.synthetic.whole import check, is_whole, produce, replacing
from mvray.errors import SettingError

VERSION = 1
"""Grows when the same settings give other pictures."""
MOST_PICTURES = 1000
THUMB, COLOURS = "thumb", "color.csv"
ABOUT = """Sample faces, composed by mvray out of real drawings (licences: NOTICE.md, which stays with them).

thumb/NNN_NAME/face_*.png    pictures of one character, 96 to 160 pixels high and wide
thumb/NNN_NAME/color.csv     the mean colour of each of them: file, red, green, blue
sample.json                  the settings, and size and checksum of every file
"""
GIVEN = """Aiko Ben Cleo Dario Emi Finn Greta Hana Ivo Juno Kaito Lena Milo Nami Oskar Pia Quentin Rin Sora Tessa
Umi Vito Wanda Xenia Yuki Zoe Akira Bruno Chika Dora""".lower().split()
FAMILY = """Amber Birch Coral Dune Ember Fern Garnet Hazel Iris Jade Kelp Larch Maple Nettle Onyx Pearl Quartz Reed
Slate Thorn Umber Violet Willow Yarrow Zinnia Aspen Brook Cedar Dusk Elm Frost Glade Heath Ivy""".lower().split()


@dataclass(frozen=True)
class Work:
    """All pictures of a character."""

    folder: str
    number: int
    look: Look
    pictures: int
    seed: int


def compose(
    out: Path,
    characters: int = 60,
    pictures: int = 20,
    seed: int = 0,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compose up to ``pictures`` pictures of each of ``characters`` characters under ``out``: half of them have
    so many, the others down to half as many.

    The same settings give the same bytes, with any number of ``processes`` (None: one per core, up to 8).
    ``progress`` is told pictures done and pictures in all. Everything is written to a folder beside ``out``,
    which then takes its name: what is at ``out`` is always whole. A whole sample with the same settings is
    left as it is. Raises SettingError for numbers that do not fit and DataError where ``out`` holds
    something else.
    """
    _check(characters, pictures, seed, processes)
    out = out.resolve()
    settings = {"sample": "faces", "version": VERSION, "characters": characters, "pictures": pictures, "seed": seed}
    if is_whole(out, settings):
        return
    works = works_of(characters, pictures, seed)
    with replacing(out, settings) as part:
        finished = 0
        for work, _ in produce(_draw, part, works, processes):
            finished += work.pictures
            if progress:
                progress(finished, sum(work.pictures for work in works))
        (part / "README.txt").write_text(ABOUT, encoding="utf-8")
        shutil.copyfile(NOTICE, part / "NOTICE.md")


def _check(characters: int, pictures: int, seed: int, processes: int | None) -> None:
    if not 2 <= characters <= MOST_CHARACTERS:
        raise SettingError(f"characters is {characters}; expected 2 to {MOST_CHARACTERS}.")
    if not 2 <= pictures <= MOST_PICTURES:
        raise SettingError(f"pictures is {pictures}; expected 2 to {MOST_PICTURES} of each character.")
    check(seed, processes)


def works_of(characters: int, pictures: int, seed: int) -> list[Work]:
    """The characters of a sample with their names, looks and numbers of pictures."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    every = [f"{first}_{family}" for first in GIVEN for family in FAMILY]
    names = [every[i] for i in rng.permutation(len(every))[:characters]]
    counts = rng.integers(-(-pictures // 2), pictures + 1, characters)
    counts[rng.random(characters) < 0.5] = pictures
    cast = looks(characters, rng)
    return [
        Work(f"{number:03d}_{name}", number, look, int(count), seed)
        for number, (name, look, count) in enumerate(zip(names, cast, counts, strict=True))
    ]


def _draw(part: Path, work: Work) -> None:
    """Write the pictures of a character. A file is named by a number and a place, as a detector's finds are."""
    folder = part / THUMB / work.folder
    folder.mkdir(parents=True)
    lines = []
    for picture in range(work.pictures):
        rng = np.random.default_rng(np.random.SeedSequence([work.seed, 1, work.number, picture]))
        x, y = (int(v) for v in rng.integers(0, 600, 2))
        image = portrait(work.look, work.seed, rng)
        name = f"face_{picture + 1}_{x}_{y}.png"
        image.save(folder / name)
        red, green, blue = np.asarray(image).mean(axis=(0, 1)).round().astype(int)
        lines.append(f"{name},{red},{green},{blue}\n")
    (folder / COLOURS).write_text("".join(lines), encoding="utf-8")
