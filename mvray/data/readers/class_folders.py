"""What the readers of a folder per class share, of pictures or videos.

ROOT/CLASS/.../NAME.jpg                   split by the settings, or
ROOT/train/CLASS/.../NAME.jpg             split by these folders: train, validation (or val), test
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar

from mvray.data.bad_files import Note
from mvray.data.readers.base import Shares
from mvray.data.rows import rows
from mvray.data.splits import assign_splits
from mvray.errors import DataError
from mvray.experiment import UNSEEN, BadRecord, Index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mvray.storage import Entry

SPLIT_FOLDERS: Mapping[str, str] = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class ClassFolders(Shares):
    """Files in a folder per class; folders below a class belong to it.

    Where the root has a folder train, its folders train, validation (or val) and test decide the
    split and ``train``, ``validation``, ``test`` and ``split_seed`` do not; without a validation
    folder, that share of the training samples is taken instead. Files of another kind by their name
    are ignored, and listed as a note; hidden ones and those named in ``beside`` are only ignored.
    """

    file_noun: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    beside: ClassVar[tuple[str, ...]] = ()
    split_folders: ClassVar[Mapping[str, str]] = SPLIT_FOLDERS

    @abstractmethod
    def counted(self, entries: Sequence[Entry]) -> tuple[Mapping[str, int], Mapping[str, str]]:
        """The number of frames of each file, and the reason of each file that cannot be read, both by path."""

    def index(self) -> Index:
        self.storage.check(write=False)
        files = [entry for entry in self.storage.list(recursive=True) if not self._hidden(entry.path)]
        ours = [entry for entry in files if PurePosixPath(entry.path).suffix.lower() in self.suffixes]
        has_splits = self._given_splits(ours)
        depth = 3 if has_splits else 2
        ours = [entry for entry in ours if len(PurePosixPath(entry.path).parts) >= depth]
        if not ours:
            raise self.no_classes()
        frames, wrong = self.counted(ours)
        good = [entry for entry in ours if entry.path not in wrong]
        names = [PurePosixPath(entry.path).parts[depth - 2] for entry in good]
        classes = tuple(sorted(set(names)))
        splits = self.splits_among(good, names, has_splits)
        kept = [i for i, split in enumerate(splits) if split]
        label = {name: i for i, name in enumerate(classes)}
        table = rows(
            {
                "key": [good[i].path for i in kept],
                "location": [good[i].path for i in kept],
                "part": [""] * len(kept),
                "label": [label[names[i]] for i in kept],
                "split": [splits[i] for i in kept],
                "group": [good[i].path.rpartition("/")[0] for i in kept],
                "regions": [[]] * len(kept),
                "bytes": [good[i].size for i in kept],
                "frames": [frames[good[i].path] for i in kept],
            }
        )
        bad = [BadRecord(location, reason) for location, reason in wrong.items()]
        return Index(table, classes, (*bad, *self._ignored(files, ours)))

    def splits_among(self, good: Sequence[Entry], names: Sequence[str], has_splits: bool) -> list[str]:
        """The split of each file, "" to leave it out; ``names`` are their classes.

        ``has_splits``: by the root's folders.
        """
        if not has_splits:
            return self.splits_of([entry.path for entry in good], names)
        splits = [self.split_folders[entry.path.partition("/")[0]] for entry in good]
        if "validation" in splits:
            return splits
        train = [i for i, split in enumerate(splits) if split == "train"]
        share = self.validation if self.validation <= 1 else self.validation / max(1, len(train))
        keys, classes = [good[i].path for i in train], [names[i] for i in train]
        for i, split in zip(train, self._draw(keys, classes, share), strict=True):
            splits[i] = split
        return splits

    def _draw(self, keys: Sequence[str], classes: Sequence[str], share: float) -> list[str]:
        return assign_splits(keys, classes, (1 - share, share, 0), self.split_seed, self.all_train)

    def no_classes(self) -> DataError:
        if not self.storage.exists(""):
            return DataError(
                f"Found no folder {self.storage.uri}; expected {self.file_noun}s there. Check the path (--data)."
            )
        return DataError(
            f"{self.storage.uri} has no folder per class: found {self.listed()}; expected "
            f"CLASS/{self.file_noun.upper()} with the suffix {', '.join(self.suffixes)}. "
            "Point the root (--data) at the folder that holds the classes."
        )

    def _ignored(self, files: Sequence[Entry], ours: Sequence[Entry]) -> list[Note]:
        """One note for all files of another kind by their name, or that lie in no class."""
        taken = {entry.path for entry in ours}
        others = [entry.path for entry in files if entry.path not in taken]
        if not others:
            return []
        kinds = Counter(PurePosixPath(path).suffix.lower() or "no suffix" for path in others)
        listing = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        return [Note(others[0], f"{len(others)} files are no {self.file_noun}s in a class and are ignored: {listing}")]

    def _given_splits(self, ours: Sequence[Entry]) -> bool:
        """Whether the folders of the root are splits. A class may well be called train, beside other classes."""
        folders = {entry.path.partition("/")[0] for entry in ours if "/" in entry.path}
        return not folders.isdisjoint(("train", UNSEEN)) and folders <= set(self.split_folders)

    def _hidden(self, path: str) -> bool:
        parts = PurePosixPath(path).parts
        return parts[-1] in self.beside or any(part.startswith(".") or part == "__MACOSX" for part in parts)
