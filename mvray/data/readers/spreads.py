"""Spreads of Manga109 (Matsui et al. 2017; Aizawa et al. 2020) in its public layout.

    ROOT/images/TITLE/NNN.jpg       double-page spreads, 1654 x 1170
    ROOT/annotations/TITLE.xml      frames, faces, bodies and texts; releases also have the folders
                                    annotations.v2018.05.31, annotations.v2020.12.18, ...

ROOT may also be the folder around one release (Manga109_released_2023_12_07). books.txt is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from mvray.data.readers.base import PictureSource
from mvray.errors import DataError

if TYPE_CHECKING:
    from mvray.storage import Entry


class Spread(NamedTuple):
    """A file, its title, its number as in the file's name, and "" or "shifted/"."""

    file: Entry
    title: str
    number: str
    place: str

    @property
    def key(self) -> str:
        return f"{self.place}{self.title}/{self.number}"

    @property
    def page_number(self) -> int:
        """As the annotations count; -1 for a file with another name."""
        return int(self.number) if self.number.isdecimal() else -1


@dataclass(frozen=True)
class SpreadSource(PictureSource):
    """A source that reads the spreads of Manga109, or of any comics in its layout."""

    def top(self) -> str:
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

    def spreads(self, top: str, place: str = "", title: str = "") -> list[Spread]:
        """The files images/TITLE/NNN.jpg, in order, of one title where it is given. Raises DataError for none."""
        start = f"{top}{place}"
        listing = []
        for entry in self.storage.list(f"{start}images{'/' * bool(title)}{title}", recursive=True):
            path = PurePosixPath(entry.path[len(start) :])
            if len(path.parts) == 3 and path.suffix.lower() in (".jpg", ".jpeg", ".png"):
                listing.append(Spread(entry, path.parts[1], path.stem, place))
        if not listing:
            raise self._not_manga109(f"{start}images" if self.storage.exists(f"{start}images") else top)
        return listing

    def _not_manga109(self, folder: str) -> DataError:
        if not self.storage.exists(""):
            return DataError(f"Found no folder {self.storage.uri}; expected Manga109 there. Check the path (--data).")
        return DataError(
            f"{self.storage.full(folder)} is not Manga109: found {self.listed(folder)}; expected "
            "images/TITLE/NNN.jpg and annotations/TITLE.xml. Point the root (--data) at the folder that holds "
            "images/, or read a folder per class with --set source=folder."
        )
