"""Pictures and class maps in two folders, by equal names.

    ROOT/images/NAME.jpg            pictures, in folders below if wanted
    ROOT/masks/NAME.png             class maps: the classes' numbers (a palette or grey), 255 for none
    ROOT/classes.txt                one name a line, in the order of the numbers, the background's first
    ROOT/colours.txt                where the class maps are colours: "RED GREEN BLUE NAME" a line

With colours.txt, classes.txt is not needed; a colour named "ignore" counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar

from mvray.data.bad_files import inspect
from mvray.data.decoding import PICTURE_SUFFIXES, Unreadable, open_upright, pixels_of
from mvray.data.readers import class_maps
from mvray.data.readers.base import PictureSource
from mvray.data.readers.class_maps import MASK
from mvray.data.rows import rows
from mvray.errors import DataError
from mvray.experiment import CLASSES, IGNORE, BadRecord, Index

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from mvray.storage import Entry, Storage

_LOOKED_AT = 8


@dataclass(frozen=True, kw_only=True)
class Pairs(PictureSource):
    """Pictures with class maps of equal size as the target "mask", shared out among splits."""

    kind: ClassVar[str] = "pairs"

    @property
    def targets(self) -> Mapping[str, str]:
        return {MASK: CLASSES}

    @cached_property
    def colours(self) -> Mapping[tuple[int, int, int], int] | None:
        """The class of each colour; None where class maps are numbers. Raises DataError for another line."""
        text = self._text("colours.txt")
        if text is None:
            return None
        table: dict[tuple[int, int, int], int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            parts = line.split(maxsplit=3)
            if not parts:
                continue
            try:
                red, green, blue = (int(part) for part in parts[:3])
                class_ = IGNORE if parts[3] == "ignore" else self.classes.index(parts[3])
                if not all(0 <= part <= 255 for part in (red, green, blue)):
                    raise ValueError("a part above 255")
            except (ValueError, IndexError):
                raise DataError(
                    f"{self.storage.uri}/colours.txt, line {number}: {line!r}; expected RED GREEN BLUE NAME, three "
                    "numbers from 0 to 255 and a class."
                ) from None
            table[red, green, blue] = class_
        return table

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of their numbers. Raises DataError where they are not said."""
        if (text := self._text("classes.txt")) is not None:
            names = [line.strip() for line in text.splitlines() if line.strip()]
        elif (text := self._text("colours.txt")) is not None:
            lines = (line.split(maxsplit=3) for line in text.splitlines())
            names = list(dict.fromkeys(parts[3] for parts in lines if len(parts) == 4 and parts[3] != "ignore"))
        else:
            raise DataError(
                f"{self.storage.uri} has no classes.txt, and no colours.txt; found {self.listed()}. Expected one: "
                "a class a line, the background first, or RED GREEN BLUE NAME."
            )
        if not 2 <= len(names) < IGNORE:
            raise DataError(f"{self.storage.uri} names {len(names)} classes; expected 2 to {IGNORE - 1}.")
        return tuple(names)

    def index(self) -> Index:
        self.storage.check(write=False)
        pictures, masks = self._below("images"), self._below("masks")
        if not pictures:
            raise DataError(
                f"{self.storage.uri} holds {self.listed()}; expected pictures in images/ and class maps of the same "
                "names in masks/. Check the path (--data)."
            )
        classes, colours = self.classes, self.colours
        bad = [
            BadRecord(entry.path, f"has no class map masks/{name}.png")
            for name, entry in pictures.items()
            if name not in masks
        ]
        paired = sorted(name for name in pictures if name in masks)
        wrong = inspect(self.storage, [pictures[name] for name in paired])

        def look(storage: Storage, entry: Entry) -> None:
            class_maps.look(storage, entry, colours)

        wrong |= inspect(self.storage, [masks[name] for name in paired], look)
        self._look_closely([masks[name] for name in paired])
        bad += [BadRecord(location, reason) for location, reason in wrong.items()]
        good = [name for name in paired if pictures[name].path not in wrong and masks[name].path not in wrong]
        splits = self.splits_of(good, [""] * len(good))
        kept = [name for name, split in zip(good, splits, strict=True) if split]
        table = rows(
            {
                "key": kept,
                "location": [pictures[name].path for name in kept],
                "part": [""] * len(kept),
                "label": [-1] * len(kept),
                "split": [split for split in splits if split],
                "group": [name.rpartition("/")[0] for name in kept],
                "regions": [[]] * len(kept),
                "bytes": [pictures[name].size for name in kept],
            },
            targets={MASK: ([masks[name].path for name in kept], [masks[name].size for name in kept])},
        )
        return Index(table, classes, tuple(bad))

    def read(self, location: str, part: str) -> np.ndarray:
        return pixels_of(open_upright(self.again(location), 1 << 30, 1 << 30, grey=False))

    def read_sized(self, location: str, part: str, height: int, width: int, grey: bool) -> np.ndarray:
        return pixels_of(open_upright(self.again(location), height, width, grey))

    def read_target(self, location: str, name: str) -> np.ndarray:
        return class_maps.classes_of(self.again(location), len(self.classes), self.colours)

    def _below(self, folder: str) -> dict[str, Entry]:
        """The pictures of a folder and those below it, by their path there without suffix."""
        if not self.storage.exists(folder):
            return {}
        entries = self.storage.list(folder, recursive=True)
        paths = {entry.path: PurePosixPath(entry.path).relative_to(folder) for entry in entries}
        return {
            str(paths[entry.path].with_suffix("")): entry
            for entry in entries
            if paths[entry.path].suffix.lower() in PICTURE_SUFFIXES and not paths[entry.path].name.startswith(".")
        }

    def _look_closely(self, masks: Sequence[Entry]) -> None:
        """Raises DataError where the first class maps all hold other values: before hours of training, not after."""
        reasons = []
        for entry in masks[:_LOOKED_AT]:
            try:
                self.read_target(entry.path, MASK)
                return
            except Unreadable as error:
                reasons.append(f"{entry.path}: {error.reason}")
        if reasons:
            raise DataError(
                f"{self.storage.uri}: none of the first {len(reasons)} class maps can be used, first {reasons[0]}. "
                f"Expected values of the {len(self.classes)} classes, or colours that colours.txt names."
            )

    def _text(self, name: str) -> str | None:
        try:
            return self.storage.read(name).decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise DataError(f"{self.storage.uri}/{name} is not text in UTF-8 ({error}).") from None
