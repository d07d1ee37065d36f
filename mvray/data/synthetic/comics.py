"""`mvray sample comics`: comic books in the layout of Manga109.

A title is one artist's drawings on page habits of its own (panel grid, gutters, borders, tone,
balloons). OUT/shifted holds further pages in the same layout: there each title's drawings stand on
another title's habits, so that only who looks at the drawings can tell whose page it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mvray.data.synthetic import words
from mvray.data.synthetic.annotations import Region, book_xml
from mvray.data.synthetic.casting import troupes
from mvray.data.synthetic.drawings import NOTICE
from mvray.data.synthetic.habits import habits_of
from mvray.data.synthetic.page import draw_spread
from mvray.data.synthetic.script import Title, script_of
from mvray.data.synthetic.whole import check, is_whole, produce, replacing
from mvray.errors import SettingError

VERSION = 1
"""Grows when the same settings give other pages."""
SPREADS_PER_TASK = 4
QUALITY = 86
ABOUT = """Sample comics, composed by mvray out of real drawings (licences: NOTICE.md, which stays with them).

images/TITLE/NNN.jpg     double-page spreads, 1654 x 1170, grey
annotations/TITLE.xml    frames, bodies, faces and texts with character ids, as in Manga109
books.txt                the titles
shifted/                 the same titles drawn on one another's page habits, for tests
sample.json              the settings, and size and checksum of every file
"""


@dataclass(frozen=True)
class Work:
    """Some spreads of a title. ``stream`` separates the random numbers of the two sets."""

    title: Title
    number: int
    stream: int
    spreads: tuple[int, ...]
    seed: int
    folder: str


def compose(
    out: Path,
    titles: int = 14,
    pages: int = 40,
    seed: int = 0,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compose ``titles`` comics of ``pages`` pages (two to a spread) under ``out``, in Manga109's layout.

    The same settings give the same bytes, with any number of ``processes`` (None: one per core, up to 8).
    ``progress`` is told spreads done and spreads in all. Everything is written to a folder beside
    ``out``, which then takes its name: what is at ``out`` is always whole. A whole sample with the
    same settings is left as it is. Raises SettingError for numbers that do not fit and DataError
    where ``out`` holds something else.
    """
    _check(titles, pages, seed, processes)
    out = out.resolve()
    settings = {"sample": "comics", "version": VERSION, "titles": titles, "pages": pages, "seed": seed}
    if is_whole(out, settings):
        return
    works = _works(titles, pages, seed)
    with replacing(out, settings) as part:
        _compose(part, works, processes, progress)


def _check(titles: int, pages: int, seed: int, processes: int | None) -> None:
    if not 2 <= pages <= 2000 or pages % 2:
        raise SettingError(f"pages is {pages}; expected an even number from 2 to 2000, since a spread has two pages.")
    if titles < 2:
        raise SettingError(
            f"titles is {titles}; expected 2 or more, since shifted pages borrow another title's habits."
        )
    check(seed, processes)


def titles_of(titles: int, seed: int) -> list[Title]:
    """The titles of a sample: names, troupes and habits."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    every = [first + second for first in words.FIRST.split() for second in words.SECOND.split()]
    crews = troupes(titles, rng)
    names = [every[i] for i in rng.permutation(len(every))[:titles]]
    return [Title(*title) for title in zip(names, crews, habits_of(titles, rng), strict=True)]


def shifted_of(titles: list[Title]) -> list[Title]:
    """The same titles with one another's habits: never their own and, unless one artist drew more
    than half of all titles, never those of a title by the same artist."""
    artists = [title.troupe.artist for title in titles]
    order = sorted(range(len(titles)), key=lambda i: artists[i])
    by = max(artists.count(artist) for artist in artists)
    lender = {order[i]: order[(i + by) % len(order)] for i in range(len(order))}
    return [replace(title, habits=titles[lender[i]].habits) for i, title in enumerate(titles)]


def generator(work: Work, spread: int, use: int) -> np.random.Generator:
    """The random numbers of one spread: ``use`` 0 for its script, 1 for its drawing."""
    return np.random.default_rng(np.random.SeedSequence([work.seed, 1, work.stream, work.number, spread, use]))


def _works(titles: int, pages: int, seed: int) -> list[Work]:
    """All spreads, in pieces small enough to keep every process busy until the end."""
    plain = titles_of(titles, seed)
    spreads = pages // 2
    sets = ((plain, spreads, ""), (shifted_of(plain), max(2, round(spreads / 4)), "shifted"))
    return [
        Work(title, number, stream, tuple(range(first, min(first + SPREADS_PER_TASK, count))), seed, folder)
        for stream, (books, count, folder) in enumerate(sets)
        for number, title in enumerate(books)
        for first in range(0, count, SPREADS_PER_TASK)
    ]


def _draw(part: Path, work: Work) -> list[list[Region]]:
    """Write the JPEG files of some spreads; returns what is on each."""
    regions_of_spreads = []
    folder = part / work.folder / "images" / work.title.name
    folder.mkdir(parents=True, exist_ok=True)
    for spread in work.spreads:
        script = script_of(work.title, spread, generator(work, spread, 0))
        image, regions = draw_spread(work.title, script, generator(work, spread, 1))
        image.save(folder / f"{spread:03d}.jpg", quality=QUALITY)
        regions_of_spreads.append(regions)
    return regions_of_spreads


def _compose(part: Path, works: list[Work], processes: int | None, progress: Callable[[int, int], None] | None) -> None:
    total, finished = sum(len(work.spreads) for work in works), 0
    drawn: dict[Work, list[list[Region]]] = {}
    for work, regions in produce(_draw, part, works, processes):
        drawn[work] = regions
        finished += len(regions)
        if progress:
            progress(finished, total)
    for folder in ("", "shifted"):
        _write_books(part / folder, {work: drawn[work] for work in works if work.folder == folder})
    (part / "README.txt").write_text(ABOUT, encoding="utf-8")
    shutil.copyfile(NOTICE, part / "NOTICE.md")


def _write_books(root: Path, drawn: dict[Work, list[list[Region]]]) -> None:
    """annotations/ and books.txt of one set; its titles in order of number."""
    (root / "annotations").mkdir()
    names = []
    for number in sorted({work.number for work in drawn}):
        mine = sorted((work for work in drawn if work.number == number), key=lambda work: work.spreads)
        title, pages = mine[0].title, [regions for work in mine for regions in drawn[work]]
        first = (number + 1) << 20
        # A character has the same id in both sets, a box never.
        xml = book_xml(
            title.name, [c.name for c in title.troupe.cast], pages, first, first + 100 + (mine[0].stream << 19)
        )
        (root / "annotations" / f"{title.name}.xml").write_text(xml, encoding="utf-8")
        names.append(title.name)
    (root / "books.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
