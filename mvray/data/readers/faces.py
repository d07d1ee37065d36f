"""Faces out of a work's annotations: where they are, and how their characters and keys are called."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from mvray.data.crops import Cut, CutPicture, square

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mvray.data.readers.boxes import Book
    from mvray.data.readers.spreads import Spread

OTHER = "other"
_LONGEST_PX = 1 << 20  # of a page; broken annotations say anything


class Face(NamedTuple):
    """A face on a spread, and the id of its character."""

    spread: Spread
    cut: Cut
    character: str


def faces_of(spreads: Sequence[Spread], book: Book, margin: float) -> tuple[list[Face], Counter[str]]:
    """The faces of a work that can be used, page by page, and how many cannot, by reason; ``book`` has faces alone."""
    files: dict[int, Spread] = {}
    for spread in spreads:
        files.setdefault(spread.page_number, spread)
    faces: list[Face] = []
    lost: Counter[str] = Counter()
    for number in sorted(book.pages):
        width, height = _size(book, number)
        for box in book.pages[number]:
            cut = square((box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height), width, height, margin)
            if number not in files:
                lost["on pages without a picture"] += 1
            elif not box.character:
                lost["without a character"] += 1
            elif box.character not in book.characters:
                lost["of a character that is not listed"] += 1
            elif cut is None:
                lost["empty or outside of the page"] += 1
            else:
                faces.append(Face(files[number], cut, box.character))
    return faces, lost


def _size(book: Book, number: int) -> tuple[int, int]:
    """Width and height of a page in pixels; 0 x 0 for a number that no page has, so that no face lies on it."""
    width, height = (round(side) if 1 <= side <= _LONGEST_PX else 0 for side in book.sizes[number])
    return width, height


def pictures_of(faces: Iterable[Face], book: Book) -> list[CutPicture]:
    """The pictures that have some of these faces of a work, with their cuts."""
    cuts: dict[Spread, dict[Cut, None]] = {}
    for face in faces:
        cuts.setdefault(face.spread, {})[face.cut] = None
    return [
        CutPicture(spread.file, *_size(book, spread.page_number), tuple(several)) for spread, several in cuts.items()
    ]


def named_in(title: str, faces: Iterable[Face], book: Book) -> list[tuple[Face, str]]:
    """Each face with its class: the character's name, with its id where another one has that name, too."""
    names = Counter(book.characters.values())
    shared = {name for name, count in names.items() if count > 1} | {OTHER, ""}
    classes = {
        id_: f"{title}/{name} ({id_})" if name in shared else f"{title}/{name}" for id_, name in book.characters.items()
    }
    return [(face, classes[face.character]) for face in faces]


def keys_of(faces: Sequence[Face]) -> list[str]:
    """TITLE/NNN/X0,Y0,X1,Y1; the second face of the same square has /2 behind it."""
    uses: Counter[str] = Counter()
    keys = []
    for face in faces:
        key = f"{face.spread.key}/{face.cut}"
        uses[key] += 1
        keys.append(f"{key}/{uses[key]}" if uses[key] > 1 else key)
    return keys
