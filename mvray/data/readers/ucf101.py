"""UCF101 (Soomro, Zamir, Shah 2012) in its public layout.

    ROOT/UCF-101/CLASS/v_CLASS_gXX_cXX.avi          13,320 clips; those of one source video share a group, gXX
    ROOT/ucfTrainTestlist/classInd.txt              1 ApplyEyeMakeup
    ROOT/ucfTrainTestlist/trainlist01.txt           ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
    ROOT/ucfTrainTestlist/testlist01.txt            ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi

ROOT may also be the folder around these two, or UCF-101 itself, with the lists in it or beside it.
Files and lists spell HandstandPushups and HandStandPushups; case does not count here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from mvray.data.readers.base import VideoSource
from mvray.data.rows import rows
from mvray.data.splits import assign_splits
from mvray.errors import DataError, SettingError
from mvray.experiment import BadRecord, Index
from mvray.storage import Storage

if TYPE_CHECKING:
    from mvray.storage import Entry

_VIDEOS = "UCF-101"
_LISTS = ("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "")
_CLASSES = "classInd.txt"


class ListedClip(NamedTuple):
    """A line of a list: CLASS/NAME.avi, its class, and "train" or "test"."""

    path: str
    name: str
    split: str

    @property
    def group(self) -> str:
        return re.sub(r"_c\d+$", "", PurePosixPath(self.path).stem)


@dataclass(frozen=True, kw_only=True)
class UCF101(VideoSource):
    """Clips of UCF101, or of any videos in its layout. ``read`` gives the frame in the middle.

    ``split`` chooses the official lists. "test" is the official test list; "validation" gets the share
    ``validation`` of the training list, whole groups of each class, drawn by ``split_seed``; 0 for none.
    ``classes`` chooses classes (empty: all). ``group`` is v_CLASS_gXX. A clip of the lists that is
    not there is quarantined as missing; ``frames`` is what each file's header says.
    """

    kind: ClassVar[str] = "ucf101"
    split: int = 1
    validation: float = 0.1
    split_seed: int = 0
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in (1, 2, 3):
            raise SettingError(f"source.split is {self.split}; expected 1, 2 or 3, the official lists.")
        if not 0 <= self.validation < 1:
            raise SettingError(f"source.validation is {self.validation}; expected a share from 0 to less than 1.")

    def index(self) -> Index:
        self.storage.check(write=False)
        top = self._top()
        lists = self._lists(top)
        names = self._names(lists)
        classes = tuple(name for name in names if name in self.classes or not self.classes)
        listed = [line for line in self._listed_clips(lists, names) if line.name in classes]
        present, missing = self._files(top, listed)
        counts, wrong = self.frame_counts([entry for _, entry in present])
        good = [(line, entry) for line, entry in present if entry.path not in wrong]
        table = rows(
            {
                "key": [line.path for line, _ in good],
                "location": [entry.path for _, entry in good],
                "part": [""] * len(good),
                "label": [classes.index(line.name) for line, _ in good],
                "split": self._splits([line for line, _ in good]),
                "group": [line.group for line, _ in good],
                "regions": [[]] * len(good),
                "bytes": [entry.size for _, entry in good],
                "frames": [counts[entry.path] for _, entry in good],
            }
        )
        bad = [BadRecord(location, reason) for location, reason in wrong.items()]
        return Index(table, classes, (*missing, *bad))

    def _top(self) -> str:
        """Where the classes' folders lie below the root: "UCF-101/", "FOLDER/UCF-101/" or ""."""
        if not self.storage.exists(""):
            raise DataError(f"Found no folder {self.storage.uri}; expected UCF101 there. Check the path (--data).")
        folders = [entry.path for entry in self.storage.list() if entry.is_dir]
        if _VIDEOS in folders:
            return f"{_VIDEOS}/"
        inner = [folder for folder in folders if self.storage.exists(f"{folder}/{_VIDEOS}")]
        return f"{inner[0]}/{_VIDEOS}/" if len(inner) == 1 else ""

    def _lists(self, top: str) -> Storage:
        """The folder of classInd.txt: beside the folder of videos, in the root, or beside the root."""
        beside = self.storage.child(top.removesuffix(f"{_VIDEOS}/"))
        parent = self.storage.uri.rpartition("/")[0] or "/"
        around = [] if parent == "s3:/" else [Storage(parent)]
        for place in (beside, self.storage, *around):
            for folder in _LISTS:
                lists = place.child(folder)
                if lists.exists(_CLASSES):
                    return lists
        raise DataError(
            f"{self.storage.uri} is not UCF101 with its lists: found {self.listed()}; expected {_VIDEOS}/CLASS/"
            f"v_CLASS_gXX_cXX.avi and {_LISTS[0]}/{_CLASSES}. Point the root (--data) at the folder that holds both, "
            "or read a folder per class with --set source=videos."
        )

    def _names(self, lists: Storage) -> tuple[str, ...]:
        """The classes in the order of classInd.txt, which counts from 1."""
        lines = [line.split() for line in _lines_of(lists, _CLASSES)]
        if not lines or [line[:-1] for line in lines] != [[str(i)] for i in range(1, len(lines) + 1)]:
            first = " ".join(lines[0]) if lines else "nothing"
            raise DataError(
                f"{lists.full(_CLASSES)} does not number its classes: found {first!r} first; expected lines as "
                "'1 ApplyEyeMakeup', in order. Restore the official file."
            )
        names = tuple(line[1] for line in lines)
        if unknown := sorted(set(self.classes) - set(names)):
            raise DataError(
                f"source.classes names {', '.join(unknown)}, which {lists.full(_CLASSES)} does not have. "
                f"It has: {', '.join(names)}."
            )
        return names

    def _listed_clips(self, lists: Storage, names: Sequence[str]) -> Iterator[ListedClip]:
        """The clips of the official lists, "train" before "test"."""
        number = {name.lower(): i for i, name in enumerate(names, start=1)}
        for split in ("train", "test"):
            file = f"{split}list{self.split:02}.txt"
            for line in _lines_of(lists, file):
                path, *label = line.split()
                at = number.get(path.partition("/")[0].lower(), 0)
                if not at or (label and label != [str(at)]):
                    raise DataError(
                        f"{lists.full(file)} has the line {line!r}; expected CLASS/v_CLASS_gXX_cXX.avi and the number "
                        f"of a class in {_CLASSES}. Take both files from the same release of the lists."
                    )
                yield ListedClip(path, names[at - 1], split)

    def _files(self, top: str, listed: Sequence[ListedClip]) -> tuple[list[tuple[ListedClip, Entry]], list[BadRecord]]:
        """The file of each clip, and the clips that are not there. Raises DataError where most are not."""
        files = {entry.path[len(top) :].lower(): entry for entry in self.storage.list(top, recursive=True)}
        present = [(line, files[line.path.lower()]) for line in listed if line.path.lower() in files]
        if 2 * len(present) < len(listed) or not present:
            place = self.storage.full(top)
            raise DataError(
                f"{place} has {len(present)} of the {len(listed)} clips in the lists: found {self.listed(top)}; "
                f"expected such as {listed[0].path if listed else 'CLASS/v_CLASS_gXX_cXX.avi'}. Point the root "
                f"(--data) at the whole of UCF101, or choose what is there with --set source.classes=NAME,NAME."
            )
        missing = [
            BadRecord(f"{top}{line.path}", "missing (it is in the list)")
            for line in listed
            if line.path.lower() not in files
        ]
        return present, missing

    def _splits(self, lines: Sequence[ListedClip]) -> list[str]:
        """The split of each clip: as in the lists, but some groups of "train" are "validation"."""
        groups = {line.group: line.name for line in lines if line.split == "train"}
        shares = (1 - self.validation, self.validation, 0)
        taken = dict(
            zip(groups, assign_splits(list(groups), list(groups.values()), shares, self.split_seed), strict=True)
        )
        return [taken[line.group] if line.split == "train" else "test" for line in lines]


def _lines_of(lists: Storage, file: str) -> list[str]:
    try:
        text = lists.read(file).decode("utf-8-sig")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DataError(
            f"{lists.full(file)} cannot be read ({error}); expected the official list of UCF101. Restore it."
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]
