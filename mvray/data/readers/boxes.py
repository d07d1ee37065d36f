"""Manga109's annotations: boxes of spreads in XML, and the regions that they become on pages."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple
from xml.parsers import expat

import numpy as np
import pyarrow as pa

from mvray.data.bad_files import Note
from mvray.data.decoding import Unreadable
from mvray.data.rows import REGION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mvray.experiment import BadRecord
    from mvray.storage import Storage

KINDS = ("frame", "face", "body", "text")
SIDES = ("right", "left")  # manga is read from right to left
_MIN_PIECE_PX = 2.0  # less is left of many boxes beyond the fold of a spread: a line, no region


class Box(NamedTuple):
    """A box of a spread, in shares of its width and height; ``character`` is "" for frames and texts."""

    kind: str
    character: str
    x0: float
    y0: float
    x1: float
    y1: float


class Book(NamedTuple):
    """A work's annotations, by page number as in the name of the picture.

    ``pages`` has the boxes, ``sizes`` width and height in pixels, ``characters`` the names by id.
    """

    pages: dict[int, list[Box]]
    sizes: dict[int, tuple[float, float]]
    characters: dict[str, str]


def parse(xml: bytes, kinds: Sequence[str] = KINDS) -> Book:
    """The annotations of one work, with the boxes of these kinds.

    Raises Unreadable; a document type, and so any entity, is refused.
    Read with expat itself: defusedxml, which sets the same guard, takes more than twice as long, seconds
    for the half million boxes of Manga109.
    """
    book = Book({}, {}, {})
    width = height = 0.0
    boxes: list[Box] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal width, height, boxes
        if tag in kinds:
            x0, x1 = float(attributes["xmin"]) / width, float(attributes["xmax"]) / width
            y0, y1 = float(attributes["ymin"]) / height, float(attributes["ymax"]) / height
            boxes.append(Box(tag, attributes.get("character", ""), x0, y0, x1, y1))
        elif tag == "page":
            width, height = float(attributes["width"]), float(attributes["height"])
            number = int(attributes["index"])
            boxes = book.pages[number] = []
            book.sizes[number] = width, height
        elif tag == "character" and "id" in attributes:
            book.characters[attributes["id"]] = attributes.get("name", "")

    def refuse(*_: object) -> None:
        raise Unreadable("it has a document type, which Manga109's annotations do not have")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise Unreadable(f"not valid XML ({error})") from error
    except (LookupError, ValueError, ZeroDivisionError) as error:  # a wrong encoding is a LookupError, too
        raise Unreadable(f"not Manga109's annotations ({type(error).__name__}: {error})") from error
    if not book.pages:
        raise Unreadable("not Manga109's annotations (it has no pages)")
    return book


def annotations_of(storage: Storage, top: str) -> str:
    """The folder of annotations below ``top``: annotations or, where a release has only dated ones, the latest.

    "" for a release without any.
    """
    folders = sorted(entry.path for entry in storage.list(top) if entry.is_dir)
    dated = [path for path in folders if path.startswith(f"{top}annotations.v")]
    return f"{top}annotations" if f"{top}annotations" in folders else (dated or [""])[-1]


def books_of(
    storage: Storage,
    folder: str,
    titles: Sequence[str],
    kinds: Sequence[str] = KINDS,
    without: str = "its pages are kept, without regions",
) -> tuple[dict[str, Book], list[BadRecord]]:
    """Annotations of the works in ``folder``, and notes on the files that are missing or broken.

    ``without`` says in words what becomes of such a work. Where there is no folder (""), nothing is bad.
    """
    if not folder:
        return {}, []

    def read(title: str) -> bytes | None:
        try:
            return storage.read(f"{folder}/{title}.xml")
        except FileNotFoundError:
            return None

    books: dict[str, Book] = {}
    bad: list[BadRecord] = []
    with ThreadPoolExecutor(8) as pool:
        for title, xml in zip(titles, pool.map(read, titles), strict=True):
            try:
                if xml is None:
                    raise Unreadable("missing")
                books[title] = parse(xml, kinds)
            except Unreadable as error:
                bad.append(Note(f"{folder}/{title}.xml", f"{error.reason}; {without}"))
    return books, bad


def regions_of(spreads: Sequence[Sequence[Box]], page_width: int, page_height: int) -> pa.Array:
    """Two lists of regions per spread, right page first, in pixels of the page; type list<REGION>.

    A spread is 2 x page_width - 1 pixels wide: both pages have the middle column. Boxes are cut at
    the page's edge, so one that spans the fold is on both pages.
    """
    boxes = [box for several in spreads for box in several]
    spread_N = np.repeat(np.arange(len(spreads)), [len(several) for several in spreads])
    shares_N4 = np.array([box[2:] for box in boxes], np.float64).reshape(-1, 4)
    page_P, box_P, corners_P4 = [], [], []
    for place, left_edge in enumerate((page_width - 1, 0)):
        corners_N4 = shares_N4 * np.tile((2 * page_width - 1, page_height), 2) - np.tile((left_edge, 0), 2)
        corners_N4 = corners_N4.clip(0, np.tile((page_width, page_height), 2))
        kept = ((corners_N4[:, 2:] - corners_N4[:, :2]) >= _MIN_PIECE_PX).all(1).nonzero()[0]
        page_P.append(2 * spread_N[kept] + place)
        box_P.append(kept)
        corners_P4.append(corners_N4[kept])
    order = np.lexsort((np.concatenate(box_P), np.concatenate(page_P)))
    kinds, ids = pa.array([box.kind for box in boxes], pa.string()), pa.array([box.character for box in boxes])
    taken = pa.array(np.concatenate(box_P)[order])
    sides_4P = np.concatenate(corners_P4)[order].astype(np.float32).T
    fields = [kinds.take(taken), ids.cast(pa.string()).take(taken), *(pa.array(side) for side in sides_4P)]
    ends = np.searchsorted(np.concatenate(page_P)[order], np.arange(2 * len(spreads) + 1))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.StructArray.from_arrays(fields, fields=list(REGION)))
