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
from typing import TYPE_CHECKING, ClassVar

from mvray.data.bad_files import inspect
from mvray.data.decoding import open_upright, pixels_of
from mvray.data.readers import class_maps
from mvray.data.readers.base import PictureSource
from mvray.data.readers.class_folders import SPLIT_FOLDERS
from mvray.data.readers.class_maps import MASK
from mvray.data.rows import rows
from mvray.data.splits import assign_splits
from mvray.errors import DataError
from mvray.experiment import CLASSES, IGNORE, BadRecord, Index

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from mvray.storage import Entry


@dataclass(frozen=True, kw_only=True)
class Pairs(PictureSource):
    """Pictures with class maps of equal size as the target "mask", shared out among splits.

    Folders train, validation (or val) and test in both images/ and masks/ are the splits; without a validation
    folder that share of the training pictures is taken.
    """

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
        (pictures, doubled), (masks, doubled_masks) = self._below("images"), self._below("masks")
        if not pictures:
            raise DataError(
                f"{self.storage.uri} holds {self.listed()}; expected pictures in images/ and class maps of the same "
                "names in masks/. Check the path (--data)."
            )
        classes, colours = self.classes, self.colours
        bad = doubled + doubled_masks
        bad += [
            BadRecord(entry.path, f"has no class map masks/{name}.png")
            for name, entry in pictures.items()
            if name not in masks
        ]
        paired = sorted(name for name in pictures if name in masks)
        wrong = inspect(self.storage, [pictures[name] for name in paired])
        pixels = class_maps.INDICES if colours is None else class_maps.COLOURS
        wrong |= class_maps.wrong_masks(self.storage, [(pictures[name], masks[name]) for name in paired], pixels)
        bad += [BadRecord(location, reason) for location, reason in wrong.items()]
        good = [name for name in paired if pictures[name].path not in wrong and masks[name].path not in wrong]
        class_maps.look_closely(
            self.storage.uri,
            [masks[name] for name in good],
            lambda path: self.read_target(path, MASK),
            classes,
            f"Expected values of the {len(classes)} classes, or colours that colours.txt names (255 255 255 NAME).",
        )
        splits = self._splits(good)
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

    def _below(self, folder: str) -> tuple[dict[str, Entry], list[BadRecord]]:
        entries = self.storage.list(folder, recursive=True) if self.storage.exists(folder) else []
        return class_maps.by_name(entries, folder)

    def _splits(self, names: Sequence[str]) -> list[str]:
        """The split of each pair, "" to leave it out."""
        folders = [name.partition("/")[0] if "/" in name else "" for name in names]
        if "train" not in folders or not set(folders) <= set(SPLIT_FOLDERS):
            return self.splits_of(names, [""] * len(names))
        splits = [SPLIT_FOLDERS[folder] for folder in folders]
        if "validation" not in splits:
            train = [i for i, split in enumerate(splits) if split == "train"]
            share = self.validation if self.validation <= 1 else self.validation / len(train)
            sizes = (1 - share, share, 0.0)
            drawn = assign_splits([names[i] for i in train], [""] * len(train), sizes, self.split_seed)
            for i, split in zip(train, drawn, strict=True):
                splits[i] = split
        return splits

    def _text(self, name: str) -> str | None:
        try:
            return self.storage.read(name).decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise DataError(f"{self.storage.uri}/{name} is not text in UTF-8 ({error}).") from None
