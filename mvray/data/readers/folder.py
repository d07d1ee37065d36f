"""A folder per class, with any pictures in it: the layout of class_folders.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mvray.data.bad_files import inspect
from mvray.data.decoding import PICTURE_SUFFIXES, open_upright, pixels_of
from mvray.data.readers.base import PictureSource
from mvray.data.readers.class_folders import ClassFolders

if TYPE_CHECKING:
    import numpy as np

    from mvray.storage import Entry


@dataclass(frozen=True, kw_only=True)
class Folder(ClassFolders, PictureSource):
    """Pictures in a folder per class.

    ``read`` gives H x W x 1 for grey pictures and H x W x 3 for all others: upright by their EXIF
    orientation, transparency white, the first picture of an animation.
    """

    kind: ClassVar[str] = "folder"
    file_noun: ClassVar[str] = "picture"
    suffixes: ClassVar[tuple[str, ...]] = PICTURE_SUFFIXES

    def counted(self, entries: Sequence[Entry]) -> tuple[Mapping[str, int], Mapping[str, str]]:
        return {entry.path: 1 for entry in entries}, inspect(self.storage, entries)

    def read(self, location: str, part: str) -> np.ndarray:
        return pixels_of(open_upright(self.again(location), 1 << 30, 1 << 30, grey=False))

    def read_sized(self, location: str, part: str, height: int, width: int, grey: bool) -> np.ndarray:
        return pixels_of(open_upright(self.again(location), height, width, grey))
