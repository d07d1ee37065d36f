"""A folder of pictures per identity: the layout of class_folders.py for metric learning.

ROOT/NAME/.../PICTURE.jpg               split by the settings, or
ROOT/train/NAME/.../PICTURE.jpg         split by these folders: train, validation (or val), test, unseen
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from mvray.data.readers.class_folders import SPLIT_FOLDERS
from mvray.data.readers.folder import Folder
from mvray.data.readers.works import check_unseen, shuffled, unseen_count
from mvray.errors import DataError, SettingError
from mvray.experiment import UNSEEN, Index

if TYPE_CHECKING:
    from mvray.storage import Entry


@dataclass(frozen=True, kw_only=True)
class Identities(Folder):
    """Pictures in a folder per identity, some of which training never sees.

    ``unseen`` identities (a share of them up to 1, a number above) are drawn by ``split_seed``; all their
    pictures are the split "unseen". The pictures of the others are drawn as ``train``, ``validation`` and
    ``test`` say, but each identity gives at least one to training. Where the root has folders train,
    unseen, validation (or val) and test, these decide; whoever has no picture in train is unseen, too.
    Identities with fewer than ``min_pictures`` are left out. All pictures are one ``group``.
    """

    kind: ClassVar[str] = "identities"
    all_train: ClassVar[bool] = True
    split_folders: ClassVar[Mapping[str, str]] = {**SPLIT_FOLDERS, UNSEEN: UNSEEN}
    unseen: float = 0.2
    min_pictures: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "unseen", check_unseen(self.unseen, "identities"))
        if self.min_pictures < 0:
            raise SettingError(f"source.min_pictures is {self.min_pictures}; expected 0 or more.")

    def index(self) -> Index:
        whole = super().index()
        names = [whole.names[label] for label in whole.rows["label"].to_pylist()]
        apart = {name for name, split in zip(names, whole.rows["split"].to_pylist(), strict=True) if split == UNSEEN}
        trained, unseen = sorted(set(names) - apart), sorted(apart)
        if len(trained) == 1:
            raise DataError(
                f"{self.storage.uri} has 1 identity to train on ({trained[0]}, {names.count(trained[0])} pictures) and "
                f"{len(unseen)} unseen; expected two or more, or there is nothing to tell apart. Add folders, or "
                "lower source.unseen and source.min_pictures."
            )
        label = {name: i for i, name in enumerate((*trained, *unseen))}
        columns = {"label": [label[name] for name in names], "group": ["all"] * len(names)}
        table = whole.rows
        for name, values in columns.items():
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
        return Index(table, tuple(trained), whole.bad, tuple(unseen))

    def splits_among(self, good: Sequence[Entry], names: Sequence[str], has_splits: bool) -> list[str]:
        counts = Counter(names)
        enough = {name for name, count in counts.items() if count >= self.min_pictures}
        if not enough:
            raise DataError(
                f"{self.storage.uri} has {len(counts)} identities, none with {self.min_pictures} pictures (the most: "
                f"{max(counts.values(), default=0)}). Lower source.min_pictures."
            )
        apart = self._untrained(good, names) if has_splits else self._draw_apart(enough)
        trained = [i for i, name in enumerate(names) if name in enough - apart]
        splits = [UNSEEN if name in enough & apart else "" for name in names]
        given_splits = super().splits_among([good[i] for i in trained], [names[i] for i in trained], has_splits)
        for i, split in zip(trained, given_splits, strict=True):
            splits[i] = split
        return splits

    def _draw_apart(self, names: set[str]) -> set[str]:
        return set(shuffled(names, self.split_seed)[: unseen_count(self.unseen, len(names), "identities")])

    def _untrained(self, good: Sequence[Entry], names: Sequence[str]) -> set[str]:
        """The identities without a picture in train/. Raises DataError where a name is in both unseen/ and train/."""
        folders = {UNSEEN: set[str](), "train": set[str]()}
        for entry, name in zip(good, names, strict=True):
            folders.setdefault(entry.path.partition("/")[0], set()).add(name)
        if both := sorted(folders[UNSEEN] & folders["train"]):
            raise DataError(
                f"{self.storage.uri} has {len(both)} identities in {UNSEEN}/ and in train/ ({', '.join(both[:5])}); "
                f"expected those of {UNSEEN}/ nowhere else. Move them, or rename them where they are others."
            )
        return set(names) - folders["train"]

    def no_classes(self) -> DataError:
        if not self.storage.exists(""):
            return super().no_classes()
        return DataError(
            f"{self.storage.uri} has no folder per identity: found {self.listed()}; expected NAME/PICTURE with the "
            f"suffix {', '.join(self.suffixes)}. Point the root (--data) at the folder that holds the identities; "
            "pictures of whom nobody knows are sorted by mvray group MODEL FOLDER."
        )
