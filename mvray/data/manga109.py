"""Manga109 (Matsui et al. 2017; Aizawa et al. 2020) in its public layout.

    ROOT/images/TITLE/NNN.jpg       double-page spreads, 1654 x 1170
    ROOT/annotations/TITLE.xml      frames, faces, bodies and texts; releases also have the folders
                                    annotations.v2018.05.31, annotations.v2020.12.18, ...

ROOT may also be the folder around one release (Manga109_released_2023_12_07). books.txt is not read.

A page is half a spread, halved in size: 414 x 585. A spread at half size is 827 wide, so its two
pages share the middle column. Manga is read from right to left: the right page comes first.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
from PIL import Image

from mvray.data.boxes import SIDES, Book, books_of, regions_of
from mvray.data.quarantine import inspect
from mvray.data.sources import PictureSource, picture, pixels, rows
from mvray.errors import DataError, SettingError
from mvray.source import NOT_IDENTITY, BadRecord, Index
from mvray.storage import Storage

if TYPE_CHECKING:
    import numpy as np

    from mvray.storage import Entry

_SHIFTED = "shifted/"


class Spread(NamedTuple):
    """A file, its title, its number as in the file's name, and "" or "shifted/"."""

    file: Entry
    title: str
    number: str
    place: str

    @property
    def key(self) -> str:
        return f"{self.place}{self.title}/{self.number}"


@dataclass(frozen=True, kw_only=True)
class Manga109(PictureSource):
    """Pages of Manga109, or of any comics in its layout. ``read`` gives H x W x 1.

    ``labels``: "title", "series" (the volumes of one series, TITLE_volNN, are one class) or "author"
    by the table ``authors``, a CSV file with the columns title and author. ``volumes``: "all",
    "first" (of a series, only the first volume that is there) or "none" (leave series out).
    ``works`` chooses titles (empty: all); works with fewer pages than ``min_pages`` are left out.
    ``shifted`` adds the pages of ROOT/shifted, in the same layout, as the split "shifted". Pages,
    not spreads, are drawn into splits, as in the paper.
    """

    labels: str = "title"
    authors: str = field(default="", metadata=NOT_IDENTITY)  # what it says is in the labels, so in the fingerprint
    volumes: str = "all"
    works: tuple[str, ...] = ()
    min_pages: int = 0
    page_height: int = 585
    page_width: int = 414
    shifted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("labels", ("title", "series", "author")), ("volumes", ("all", "first", "none"))):
            if getattr(self, name) not in allowed:
                raise SettingError(f"source.{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}.")
        if self.authors and self.labels != "author":
            raise SettingError(
                f"source.authors is {self.authors!r} but source.labels is {self.labels!r}; expected author."
            )

    @property
    def region_size(self) -> tuple[int, int]:
        return self.page_height, self.page_width

    def index(self) -> Index:
        self.storage.check(write=False)
        top = self._top()
        spreads = self._chosen(self._spreads(top, ""), top)
        if self.shifted:
            titles = {spread.title for spread in spreads}
            spreads += [spread for spread in self._spreads(top, _SHIFTED) if spread.title in titles]
        wrong = inspect(self.storage, [spread.file for spread in spreads])
        spreads = [spread for spread in spreads if spread.file.path not in wrong]
        bad = [BadRecord(location, reason) for location, reason in wrong.items()]
        regions, unread = self._regions(spreads, top)
        names = self._names(sorted({spread.title for spread in spreads}))
        classes = tuple(sorted(set(names.values())))
        return Index(self._rows(spreads, regions, names, classes), classes, (*bad, *unread))

    def _rows(
        self, spreads: Sequence[Spread], regions: pa.Array, names: dict[str, str], classes: Sequence[str]
    ) -> pa.Table:
        pages = [(spread, side) for spread in spreads for side in SIDES]
        label = {name: i for i, name in enumerate(classes)}
        labels = [label[names[spread.title]] for spread, _ in pages]
        keys = [f"{spread.key}/{side}" for spread, side in pages]
        splits = ["shifted" if spread.place else "" for spread, _ in pages]
        ours = [i for i, split in enumerate(splits) if not split]
        for i, split in zip(ours, self.splits_of([keys[i] for i in ours], [labels[i] for i in ours]), strict=True):
            splits[i] = split
        table = rows(
            {
                "key": keys,
                "location": [spread.file.path for spread, _ in pages],
                "part": [side for _, side in pages],
                "label": labels,
                "split": splits,
                "group": [spread.title for spread, _ in pages],
                "regions": regions,
                "bytes": [spread.file.size for spread, _ in pages],
            }
        )
        return table.filter(pa.array([bool(split) for split in splits]))

    def read(self, location: str, part: str) -> np.ndarray:
        return self.read_sized(location, part, self.page_height, self.page_width, grey=True)

    def read_sized(self, location: str, part: str, height: int, width: int, grey: bool) -> np.ndarray:
        if height > self.page_height or width > self.page_width:
            height, width = self.page_height, self.page_width
        image = picture(self.bytes_of(location), height, 2 * width - 1, grey=True)
        if image.size == (2 * width - 1, height) and width == self.page_width:
            return pixels(image)[:, :width] if part == "left" else pixels(image)[:, width - 1 :]
        page = image.width * self.page_width / (2 * self.page_width - 1)
        x0 = 0.0 if part == "left" else image.width - page
        box = (x0, 0.0, x0 + page, float(image.height))
        return pixels(image.resize((width, height), Image.Resampling.BILINEAR, box, reducing_gap=2.0))

    def _top(self) -> str:
        """Where images/ lies below the root: "" or "FOLDER/". Raises DataError."""
        folders = [entry.path for entry in self.storage.list() if entry.is_dir]
        if "images" in folders:
            return ""
        inner = [f"{folder}/" for folder in folders if self.storage.exists(f"{folder}/images")]
        if not inner:
            raise self._not_manga109("")
        if len(inner) > 1:
            raise DataError(
                f"Found {len(inner)} releases in {self.storage.uri}: {', '.join(inner)}; expected one. "
                "Point the root (--data) at one of them."
            )
        return inner[0]

    def _not_manga109(self, folder: str) -> DataError:
        if not self.storage.exists(""):
            return DataError(f"Found no folder {self.storage.uri}; expected Manga109 there. Check the path (--data).")
        return DataError(
            f"{self.storage.full(folder)} is not Manga109: found {self.listed(folder)}; expected "
            "images/TITLE/NNN.jpg and annotations/TITLE.xml. Point the root (--data) at the folder that holds "
            "images/, or read a folder per class with --set source=folder."
        )

    def _spreads(self, top: str, place: str) -> list[Spread]:
        """The files images/TITLE/NNN.jpg, in order. Raises DataError if there are none."""
        start = f"{top}{place}"
        found = []
        for entry in self.storage.list(f"{start}images", recursive=True):
            path = PurePosixPath(entry.path[len(start) :])
            if len(path.parts) == 3 and path.suffix.lower() in (".jpg", ".jpeg", ".png"):
                found.append(Spread(entry, path.parts[1], path.stem, place))
        if not found:
            raise self._not_manga109(f"{start}images" if self.storage.exists(f"{start}images") else top)
        return found

    def _chosen(self, spreads: list[Spread], top: str) -> list[Spread]:
        """The spreads of the works that the settings choose."""
        pages = Counter(spread.title for spread in spreads for _ in SIDES)
        if unknown := sorted(set(self.works) - set(pages)):
            raise DataError(
                f"source.works names {', '.join(unknown)}, which {self.storage.full(top)} does not have. "
                f"It has: {', '.join(sorted(pages))}."
            )
        volumes: dict[str, list[str]] = {}
        for title in sorted(self.works or pages):
            volumes.setdefault(_series(title), []).append(title)
        kept = {"all": slice(None), "first": slice(1), "none": slice(0)}[self.volumes]
        titles = {
            title
            for series, several in volumes.items()
            for title in (several if several == [series] else several[kept])
            if pages[title] >= self.min_pages
        }
        if not titles:
            raise DataError(
                f"None of the {len(pages)} works of {self.storage.uri} is chosen by source.works, source.volumes "
                f"{self.volumes!r} and source.min_pages {self.min_pages}. Change one of them."
            )
        return [spread for spread in spreads if spread.title in titles]

    def _names(self, titles: Sequence[str]) -> dict[str, str]:
        """The class of each title."""
        if self.labels != "author":
            return {title: _series(title) if self.labels == "series" else title for title in titles}
        table = _author_table(self.authors)
        if missing := [title for title in titles if title not in table]:
            raise DataError(
                f"{self.authors} has no row for {len(missing)} works ({', '.join(missing[:5])} ...); expected one per "
                "work. Add them, or choose works with source.works."
            )
        return {title: table[title] for title in titles}

    def _regions(self, spreads: Sequence[Spread], top: str) -> tuple[pa.Array, list[BadRecord]]:
        """Regions of all pages, and the annotation files that cannot be used."""
        boxes: dict[tuple[str, str], Book] = {}
        unread: list[BadRecord] = []
        for place in sorted({spread.place for spread in spreads}):
            titles = sorted({spread.title for spread in spreads if spread.place == place})
            books, bad = books_of(self.storage, f"{top}{place}", titles)
            boxes |= {(place, title): book for title, book in books.items()}
            unread += bad
        found = [boxes.get((s.place, s.title), {}).get(_page_number(s.number), []) for s in spreads]
        return regions_of(found, self.page_width, self.page_height), unread


def _series(title: str) -> str:
    """LoveHina_vol14 -> LoveHina."""
    return re.sub(r"_vol\d+$", "", title)


def _page_number(name: str) -> int:
    return int(name) if name.isdecimal() else -1


def _author_table(path: str) -> dict[str, str]:
    folder, slash, name = path.rpartition("/")
    try:
        text = Storage(f"{folder}{slash}" or ".").read(name).decode("utf-8-sig")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DataError(
            f"source.authors is {path!r}, which cannot be read ({error}); expected a CSV file in UTF-8 with the "
            "columns title and author."
        ) from error
    table = csv.DictReader(io.StringIO(text))
    if not {"title", "author"} <= set(table.fieldnames or ()):
        raise DataError(f"{path} has the columns {', '.join(table.fieldnames or ())}; expected title and author.")
    return {row["title"].strip(): row["author"].strip() for row in table}
