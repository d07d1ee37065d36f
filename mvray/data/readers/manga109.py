"""Pages of Manga109, in the layout that spreads.py describes.

A page is half a spread, halved in size: 414 x 585. A spread at half size is 827 wide, so its two
pages share the middle column. Manga is read from right to left: the right page comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
from PIL import Image

from mvray.data.bad_files import inspect
from mvray.data.decoding import open_upright, pixels_of
from mvray.data.readers.boxes import SIDES, Book, annotations_of, books_of, regions_of
from mvray.data.readers.spreads import Spread, SpreadSource
from mvray.data.readers.works import VOLUMES, authors_of, by_volumes, check_known, series_of
from mvray.data.rows import rows
from mvray.errors import DataError, SettingError
from mvray.experiment import NOT_IDENTITY, BadRecord, Index

if TYPE_CHECKING:
    import numpy as np

_SHIFTED = "shifted/"


@dataclass(frozen=True, kw_only=True)
class Manga109(SpreadSource):
    """Pages of Manga109, or of any comics in its layout. ``read`` gives H x W x 1.

    ``labels``: "title", "series" (the volumes of one series, TITLE_volNN, are one class) or "author"
    by the table ``authors``, a CSV file with the columns title and author. ``volumes``: "all",
    "first" (of a series, only the first volume that is there) or "none" (leave series out).
    ``works`` chooses titles (empty: all); works with fewer pages than ``min_pages`` are left out.
    ``shifted`` adds the pages of ROOT/shifted, in the same layout, as the split "shifted". Pages,
    not spreads, are drawn into splits, as in the paper.
    """

    kind: ClassVar[str] = "manga109"
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
        for name, allowed in (("labels", ("title", "series", "author")), ("volumes", VOLUMES)):
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
        top = self.top()
        spreads = self._select(self.spreads(top, ""), top)
        if self.shifted:
            titles = {spread.title for spread in spreads}
            spreads += [spread for spread in self.spreads(top, _SHIFTED) if spread.title in titles]
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
        image = open_upright(self.again(location), height, 2 * width - 1, grey=True)
        if image.size == (2 * width - 1, height) and width == self.page_width:
            return pixels_of(image)[:, :width] if part == "left" else pixels_of(image)[:, width - 1 :]
        page = image.width * self.page_width / (2 * self.page_width - 1)
        x0 = 0.0 if part == "left" else image.width - page
        box = (x0, 0.0, x0 + page, float(image.height))
        return pixels_of(image.resize((width, height), Image.Resampling.BILINEAR, box, reducing_gap=2.0))

    def _select(self, spreads: list[Spread], top: str) -> list[Spread]:
        """The spreads of the works that the settings choose."""
        pages = Counter(spread.title for spread in spreads for _ in SIDES)
        check_known("works", self.works, pages, self.storage.full(top))
        titles = {title for title in by_volumes(self.works or pages, self.volumes) if pages[title] >= self.min_pages}
        if not titles:
            raise DataError(
                f"None of the {len(pages)} works of {self.storage.uri} is chosen by source.works, source.volumes "
                f"{self.volumes!r} and source.min_pages {self.min_pages}. Change one of them."
            )
        return [spread for spread in spreads if spread.title in titles]

    def _names(self, titles: Sequence[str]) -> dict[str, str]:
        """The class of each title."""
        if self.labels != "author":
            return {title: series_of(title) if self.labels == "series" else title for title in titles}
        return authors_of(titles, self.authors)

    def _regions(self, spreads: Sequence[Spread], top: str) -> tuple[pa.Array, list[BadRecord]]:
        """Regions of all pages, and the annotation files that cannot be used."""
        boxes: dict[tuple[str, str], Book] = {}
        unread: list[BadRecord] = []
        for place in sorted({spread.place for spread in spreads}):
            titles = sorted({spread.title for spread in spreads if spread.place == place})
            books, bad = books_of(self.storage, annotations_of(self.storage, f"{top}{place}"), titles)
            boxes |= {(place, title): book for title, book in books.items()}
            unread += bad
        book_of_spread = [boxes.get((s.place, s.title)) for s in spreads]
        boxes_of_pages = [
            book.pages.get(s.page_number, []) if book else [] for s, book in zip(spreads, book_of_spread, strict=True)
        ]
        return regions_of(boxes_of_pages, self.page_width, self.page_height), unread
