"""Faces of Manga109's characters, in the layout that spreads.py describes.

What trains and what evaluates is that of Yanagisawa et al. (papers.md, section 2): characters of some
works for training, all faces of other works for grouping them work by work.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mvray.data.bad_files import Note, inspect
from mvray.data.crops import Crops, Cut, crop, decode_whole, open_crops
from mvray.data.decoding import Unreadable
from mvray.data.readers.boxes import Book, annotations_of, books_of
from mvray.data.readers.faces import OTHER, Face, faces_of, keys_of, named_in, pictures_of
from mvray.data.readers.spreads import Spread, SpreadSource
from mvray.data.readers.works import (
    VOLUMES,
    authors_of,
    by_volumes,
    check_known,
    check_unseen,
    one_per_author,
    series_of,
    set_apart,
    shuffled,
)
from mvray.data.rows import rows
from mvray.errors import DataError, SettingError
from mvray.experiment import NOT_IDENTITY, UNSEEN, BadRecord, Index

if TYPE_CHECKING:
    import numpy as np

_opening = threading.Lock()  # one work at a time, because cutting one takes all cores

Pair = tuple[Face, str]
"""A face and the name of its class."""


class Sample(NamedTuple):
    """A face with its key, the name of its class, and its split."""

    key: str
    face: Face
    name: str
    split: str


class Work(NamedTuple):
    """A work's crops, and the size (width, height) that its boxes refer to, by path of the picture."""

    crops: Crops | None
    sizes: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Manga109Faces(SpreadSource):
    """Face boxes of Manga109, or of any comics in its layout. A class is a character, TITLE/NAME.

    ``read`` gives H x W x 1: the box with ``margin`` (share of its longer side, on each side), a square
    where the page allows it, at most ``crop_px`` pixels. ``part`` is that square in pixels of the spread.

    ``unseen_works`` form the split "unseen", with ``group`` the work; where none is named, ``unseen`` of
    them are drawn (a share of the works up to 1, a number above). ``works`` train (empty: the rest).
    Volumes of one series are never on both sides; ``volumes`` is as in Manga109. With
    ``one_per_author``, of the works that are not named one of each author of the table ``authors`` (a
    CSV file with the columns title and author) takes part. ``most_works`` keeps the first training works
    in drawn order (0: all), with the samples and splits that these works have among all.

    Characters with fewer than ``min_faces`` faces are left out of training; in each unseen work they are
    one class, TITLE/other. Each class gives at least one face to training. Each page is decoded once per
    node (crops.py).
    """

    kind: ClassVar[str] = "manga109_faces"
    all_train: ClassVar[bool] = True
    works: tuple[str, ...] = ()
    unseen_works: tuple[str, ...] = ()
    unseen: float = 11
    volumes: str = "all"
    authors: str = field(default="", metadata=NOT_IDENTITY)  # what it says is in the titles, so in the fingerprint
    one_per_author: bool = False
    most_works: int = 0
    min_faces: int = 10
    margin: float = 0.15
    crop_px: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "unseen", check_unseen(self.unseen, "works"))
        if self.volumes not in VOLUMES:
            raise SettingError(f"source.volumes is {self.volumes!r}; expected one of {', '.join(VOLUMES)}.")
        for name, least in (("most_works", 0), ("min_faces", 0), ("margin", 0), ("crop_px", 1)):
            if not least <= getattr(self, name) < float("inf"):
                raise SettingError(f"source.{name} is {getattr(self, name)}; expected {least} or more.")
        if bool(self.authors) != self.one_per_author:
            raise SettingError(
                f"source.authors is {self.authors!r} but source.one_per_author is {self.one_per_author}; expected a "
                "CSV file and true, or neither."
            )

    def index(self) -> Index:
        self.storage.check(write=False)
        top = self.top()
        spreads: dict[str, list[Spread]] = {}
        for spread in self.spreads(top):
            spreads.setdefault(spread.title, []).append(spread)
        folder, books, bad = self._books(top, list(spreads))
        training, apart = self._sides(list(spreads), set(books), self.storage.full(top))
        faces, lost = {}, {}
        for title in (*training, *apart):
            faces[title], lost[title] = faces_of(spreads[title], books[title], self.margin)
        files = {face.spread.file.path: face.spread for several in faces.values() for face in several}
        wrong = inspect(self.storage, [spread.file for spread in files.values()])
        named = {
            title: named_in(title, [face for face in several if face.spread.file.path not in wrong], books[title])
            for title, several in faces.items()
        }
        kept, often = self._often(named, training)
        taken = {*kept, *apart} if self.most_works else set(named)
        for title in sorted(taken):
            if lost[title]:
                listing = ", ".join(f"{count} {why}" for why, count in sorted(lost[title].items()))
                bad.append(Note(f"{folder}/{title}.xml", f"faces that are left out: {listing}"))
        bad += [BadRecord(path, why) for path, why in wrong.items() if files[path].title in taken]
        ours = [pair for title in sorted(training) for pair in named[title] if pair[1] in often]
        theirs = [
            (face, name if name in often else f"{title}/{OTHER}") for title in apart for face, name in named[title]
        ]
        return self._index(ours, kept, theirs, bad)

    def _often(self, named: Mapping[str, Sequence[Pair]], training: Sequence[str]) -> tuple[set[str], set[str]]:
        """The works that are kept for training, and the characters of all works with enough faces."""
        counts = Counter(name for several in named.values() for _, name in several)
        often = {name for name, count in counts.items() if count >= self.min_faces}
        able = [title for title in training if any(name in often for _, name in named[title])]
        if training and not able:
            most = Counter(name for title in training for _, name in named[title]).most_common(1)
            listing = "{} has most, {}".format(*most[0]) if most else "there are no faces"
            raise DataError(
                f"{self.storage.uri} has no character with {self.min_faces} faces in {len(training)} training works "
                f"({listing}); expected some. Lower source.min_faces, or choose other works."
            )
        return set(able[: self.most_works or None]), often

    def _index(self, ours: Sequence[Pair], kept: set[str], theirs: Sequence[Pair], bad: Sequence[BadRecord]) -> Index:
        """The splits are drawn among all of ``ours``, so that those of the works ``kept`` are the same with others."""
        keys, names = keys_of([face for face, _ in ours]), [name for _, name in ours]
        samples = [
            Sample(key, face, name, split)
            for key, (face, name), split in zip(keys, ours, self.splits_of(keys, names), strict=True)
            if split and face.spread.title in kept
        ]
        classes = tuple(sorted({sample.name for sample in samples}))
        keys = keys_of([face for face, _ in theirs])
        samples += [Sample(key, face, name, UNSEEN) for key, (face, name) in zip(keys, theirs, strict=True)]
        unseen = tuple(sorted({name for _, name in theirs}))
        label = {name: i for i, name in enumerate((*classes, *unseen))}
        table = rows(
            {
                "key": [sample.key for sample in samples],
                "location": [sample.face.spread.file.path for sample in samples],
                "part": [str(sample.face.cut) for sample in samples],
                "label": [label[sample.name] for sample in samples],
                "split": [sample.split for sample in samples],
                "group": [sample.face.spread.title for sample in samples],
                "regions": [[]] * len(samples),
                "bytes": [sample.face.spread.file.size for sample in samples],
            }
        )
        return Index(table, classes, tuple(bad), unseen)

    def _books(self, top: str, titles: Sequence[str]) -> tuple[str, dict[str, Book], list[BadRecord]]:
        """The folder of annotations, its books, and notes on works without one. Raises DataError without any."""
        folder = annotations_of(self.storage, top)
        books, notes = books_of(self.storage, folder, titles, ("face",), "its work is left out")
        if not books:
            why = f"first {notes[0].location}: {notes[0].reason.partition(';')[0]}" if notes else self.listed(top)
            raise DataError(
                f"{self.storage.full(top)} has no annotations of its {len(titles)} works (found {why}); expected "
                "annotations/TITLE.xml with face boxes and characters. Add them, or sort the faces into a folder "
                "per character and use --set source=identities."
            )
        return folder, books, notes

    def _sides(self, titles: Sequence[str], with_faces: set[str], place: str) -> tuple[list[str], list[str]]:
        """The works that train, in drawn order, and those that training never sees; all of them ``with_faces``."""
        check_known("works", self.works, titles, place)
        check_known("unseen_works", self.unseen_works, titles, place)
        ours, theirs = ({series_of(title) for title in named} for named in (self.works, self.unseen_works))
        if both := sorted(ours & theirs):
            raise DataError(
                f"source.works and source.unseen_works both have volumes of {', '.join(both)}; expected each series on "
                "one side, because training must not see the characters. Take it out of one of them."
            )
        rest = by_volumes([title for title in titles if series_of(title) not in ours | theirs], self.volumes)
        named = [*self.works, *self.unseen_works]
        if self.one_per_author:
            authors = authors_of(sorted({*rest, *named}), self.authors)
            rest = one_per_author(rest, authors, named, self.split_seed)
        rest = [title for title in rest if title in with_faces]
        apart = by_volumes(self.unseen_works, self.volumes)
        if not self.unseen_works and self.unseen:
            apart = set_apart(rest, self.unseen, self.split_seed)
        training = by_volumes(self.works, self.volumes) or [title for title in rest if title not in apart]
        return shuffled(with_faces.intersection(training), self.split_seed), sorted(with_faces.intersection(apart))

    def read(self, location: str, part: str) -> np.ndarray:
        path = PurePosixPath(location)
        work = self._opened.get(path.parent.name) or self._open(path)
        pixels = work.crops.get(location, part) if work.crops else None
        if pixels is None:  # no room for it, or not decoded when its work was cut: say why, or it was mended
            image = decode_whole(self.bytes_of(location))
            pixels = crop(image, Cut.of(part), work.sizes.get(location, image.size), self.crop_px)
        return pixels[..., None]

    def read_sized(self, location: str, part: str, height: int, width: int, grey: bool) -> np.ndarray:
        return self.read(location, part)

    def _open(self, path: PurePosixPath) -> Work:
        """The work of a picture. Raises Unreadable where its annotations are not there any more."""
        title, top = path.parent.name, "".join(f"{folder}/" for folder in path.parts[:-3])
        with _opening:
            if title not in self._opened:
                books, notes = books_of(self.storage, annotations_of(self.storage, top), [title], ("face",))
                if title not in books:
                    raise Unreadable(f"the annotations of {title} cannot be read any more {[n.reason for n in notes]}")
                faces, _ = faces_of(self.spreads(top, title=title), books[title], self.margin)
                pictures = pictures_of(faces, books[title])
                crops = open_crops(f"{self.storage.uri} {title}", pictures, self.crop_px, self.bytes_of)
                sizes = {picture.file.path: (picture.width, picture.height) for picture in pictures}
                self._opened[title] = Work(crops, sizes)
        return self._opened[title]

    @cached_property
    def _opened(self) -> dict[str, Work]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_opened"}
