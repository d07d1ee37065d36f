"""PASCAL VOC 2012 (Everingham et al. 2010) as it is distributed, and SBD's labels for more of its pictures.

    ROOT/JPEGImages/NAME.jpg                        17,125 pictures
    ROOT/SegmentationClass/NAME.png                 2,913 class maps: a palette's indices, 255 for boundaries
    ROOT/ImageSets/Segmentation/train.txt           names, one a line; val, trainval, and test where it was fetched
    ROOT/Annotations/NAME.xml                       objects with their classes, for every picture
    ROOT/SegmentationClassAug/NAME.png              class maps of 10,582 + 1,449 pictures, as others hand them on
    ROOT/ImageSets/Segmentation/trainaug.txt        with their list
    ROOT/benchmark_RELEASE/dataset/cls/NAME.mat     SBD (Hariharan et al. 2011) as it is distributed, with
    ROOT/benchmark_RELEASE/dataset/train.txt        its own lists, train.txt and val.txt

ROOT may also be a folder around it: VOCdevkit, or the one in which VOCdevkit/VOC2012 lies. SBD may lie beside
JPEGImages or in ROOT, under benchmark_RELEASE, SBD or dataset.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar
from xml.parsers import expat

import numpy as np

from mvray.data.bad_files import inspect
from mvray.data.decoding import Unreadable, open_upright, pixels_of
from mvray.data.readers import class_maps
from mvray.data.readers.base import FileSource
from mvray.data.readers.class_maps import MASK
from mvray.data.rows import rows
from mvray.data.splits import assign_splits
from mvray.errors import DataError, SettingError
from mvray.experiment import CLASSES, BadRecord, Index

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mvray.storage import Entry

NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The classes in the order of the class maps' indices."""
TRAINAUG = "trainaug"
_PLACES = ("", "VOC2012/", "VOCdevkit/VOC2012/")
_SBD_PLACES = ("benchmark_RELEASE/dataset/", "SBD/benchmark_RELEASE/dataset/", "SBD/dataset/", "SBD/", "dataset/")
_SBD_SUFFIX = ".mat"
_LISTS, _PICTURES, _MASKS, _AUGMENTED = (
    "ImageSets/Segmentation",
    "JPEGImages",
    "SegmentationClass",
    "SegmentationClassAug",
)


@dataclass(frozen=True, kw_only=True)
class VOC2012(FileSource):
    """Pictures of VOC 2012, or of any in its layout, with class maps as the target "mask".

    ``train`` names the training list: "train" (1,464 pictures), "trainaug" (10,582: VOC's own class maps where there
    are any, else SBD's; never one of VOC's val), or another list that is there. ``test`` names the list that is tested
    on. Of the training list the share ``validation`` is kept apart, drawn by ``split_seed``; "validation" may also name
    a list. Labels of a picture (``batch["labels"]``) are the classes of its objects in Annotations. A file
    ``classes.txt`` beside JPEGImages, one name a line, background first, stands for VOC's 21 classes.
    """

    kind: ClassVar[str] = "voc2012"
    train: str = "train"
    validation: float = 0.1
    test: str = "val"
    split_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.validation < 1:
            raise SettingError(f"source.validation is {self.validation}; expected a share from 0 to below 1.")

    @property
    def targets(self) -> Mapping[str, str]:
        return {MASK: CLASSES}

    @cached_property
    def top(self) -> str:
        """The folder that holds JPEGImages, below the root. Raises DataError where there is none."""
        for place in _PLACES:
            if self.storage.exists(f"{place}{_PICTURES}") and self.storage.exists(f"{place}{_LISTS}"):
                return place
        raise DataError(
            f"{self.storage.uri} holds {self.listed()}; expected VOC 2012: {_PICTURES}, {_MASKS}, {_LISTS} and "
            "Annotations, or a folder VOC2012 or VOCdevkit/VOC2012 with them. Check the path (--data)."
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The classes, background first."""
        try:
            text = self._text(f"{self.top}classes.txt")
        except FileNotFoundError:
            return NAMES
        return tuple(line.strip() for line in text.splitlines() if line.strip())

    def index(self) -> Index:
        self.storage.check(write=False)
        train, test = self._names_of(self.train), self._names_of(self.test)
        if both := sorted(set(train) & set(test)):
            raise DataError(
                f"{len(both)} pictures are in the lists {self.train} and {self.test}, first {both[0]}; expected none. "
                "Name other lists with --set source.train and source.test."
            )
        splits = dict(zip(train, self._drawn(train), strict=True)) | dict.fromkeys(test, "test")
        pictures, bad = self._below(_PICTURES)
        masks = self._masks(splits)
        doubled = {record.location.rpartition("/")[2].rpartition(".")[0] for record in bad}
        for name in sorted(name for name in splits if name not in pictures and name not in doubled):
            bad.append(BadRecord(f"{self.top}{_PICTURES}/{name}.jpg", "in a list, and not there"))
        there = sorted(name for name in splits if name in pictures)
        wrong = inspect(self.storage, [pictures[name] for name in there])
        pairs = [(pictures[name], masks[name]) for name in there if name in masks and not _is_sbds(masks[name])]
        wrong |= class_maps.wrong_masks(self.storage, pairs, class_maps.INDICES)
        class_maps.look_closely(
            self.storage.uri,
            [mask for _, mask in pairs if mask.path not in wrong],
            lambda path: self.read_target(path, MASK),
            self.names,
            f"Expected indices of {len(self.names)} classes: VOC's, or those of {self.top}classes.txt, one name a "
            "line, background first.",
        )
        labels, unread = self._labels(there)
        bad += [BadRecord(location, reason) for location, reason in wrong.items()] + unread
        out = {record.location.rpartition("/")[2].rpartition(".")[0] for record in bad}
        good = [name for name in there if name not in out]
        table = rows(
            {
                "key": good,
                "location": [pictures[name].path for name in good],
                "part": [""] * len(good),
                "label": [-1] * len(good),
                "split": [splits[name] for name in good],
                "group": [""] * len(good),
                "regions": [[]] * len(good),
                "bytes": [pictures[name].size for name in good],
            },
            labels=np.array([labels[name] for name in good], np.uint8) if labels else None,
            targets={
                MASK: (
                    [masks[name].path if name in masks else "" for name in good],
                    [masks[name].size if name in masks else 0 for name in good],
                )
            },
        )
        return Index(table, self.names, tuple(bad))

    def read(self, location: str, part: str) -> np.ndarray:
        return pixels_of(open_upright(self.again(location), 1 << 30, 1 << 30, grey=False))

    def read_target(self, location: str, name: str) -> np.ndarray:
        data = self.again(location)
        if location.endswith(_SBD_SUFFIX):
            return _of_sbd(data, len(self.names))
        return class_maps.classes_of(data, len(self.names))

    def _names_of(self, list_: str) -> list[str]:
        """The names in one of the lists. Raises DataError where there is no such list."""
        if list_ == TRAINAUG and not self.storage.exists(f"{self.top}{_LISTS}/{TRAINAUG}.txt"):
            own = self._names_of("train")
            others = [name for part in ("train", "val") for name in self._lines(f"{self._sbd()}{part}.txt")]
            kept = set(self._names_of("val"))
            return list(dict.fromkeys([*own, *(name for name in others if name not in kept)]))
        return self._lines(f"{self.top}{_LISTS}/{list_}.txt")

    def _lines(self, file: str) -> list[str]:
        try:
            text = self._text(file)
        except FileNotFoundError:
            raise DataError(
                f"There is no {file} below {self.storage.uri}; expected a list of names there. Name one that is there "
                "with --set source.train or source.test."
            ) from None
        # Lists that others hand on have paths: /JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png
        names = (line.split()[0].rpartition("/")[2] for line in text.splitlines() if line.strip())
        return list(dict.fromkeys(name.removesuffix(".jpg") for name in names))

    def _text(self, file: str) -> str:
        try:
            return self.storage.read(file).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.storage.full(file)} is not text in UTF-8 ({error}).") from None

    def _sbd(self) -> str:
        """SBD's folder dataset/. Raises DataError where there is none."""
        for place in (f"{above}{place}" for above in (self.top, "") for place in _SBD_PLACES):
            if self.storage.exists(f"{place}cls"):
                return place
        raise DataError(
            f"{self.storage.uri} has neither {_LISTS}/{TRAINAUG}.txt with {_AUGMENTED} nor SBD's "
            "benchmark_RELEASE/dataset/cls; source.train=trainaug needs one of them. source.train=train does without."
        )

    def _drawn(self, names: Sequence[str]) -> list[str]:
        sizes = (1 - self.validation, self.validation, 0.0)
        return assign_splits(names, [""] * len(names), sizes, self.split_seed)

    def _below(self, folder: str) -> tuple[dict[str, Entry], list[BadRecord]]:
        return class_maps.by_name(self.storage.list(f"{self.top}{folder}"), f"{self.top}{folder}")

    def _masks(self, names: Iterable[str]) -> dict[str, Entry]:
        """The class maps of these pictures: VOC's own, else those of SegmentationClassAug, else SBD's."""
        masks, _ = self._below(_MASKS)
        if missing := [name for name in names if name not in masks]:
            more: dict[str, Entry] = {}
            if self.storage.exists(f"{self.top}{_AUGMENTED}"):
                more, _ = self._below(_AUGMENTED)
            elif self.train == TRAINAUG:
                entries = self.storage.list(f"{self._sbd()}cls")
                more = {entry.path.rpartition("/")[2].removesuffix(_SBD_SUFFIX): entry for entry in entries}
            masks |= {name: more[name] for name in missing if name in more}
        return masks

    def _labels(self, names: Sequence[str]) -> tuple[dict[str, list[int]], list[BadRecord]]:
        """1 for each class that a picture's objects have, and the annotations that cannot be read.

        Nothing where there is no folder of annotations: segmentation by pixels' labels does without.
        """
        if not self.storage.exists(f"{self.top}Annotations"):
            return {}, []
        numbers = {name: number for number, name in enumerate(self.names)}
        labels: dict[str, list[int]] = {}
        bad: list[BadRecord] = []

        def read(name: str) -> bytes | None:
            try:
                return self.storage.read(f"{self.top}Annotations/{name}.xml")
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(8) as pool:
            for name, xml in zip(names, pool.map(read, names), strict=True):
                present = [0] * len(numbers)
                try:
                    if xml is None:
                        raise Unreadable("missing")
                    for object_ in objects_of(xml):
                        if object_ not in numbers:
                            raise Unreadable(f"names the class {object_!r}; expected one of {', '.join(numbers)}")
                        present[numbers[object_]] = 1
                except Unreadable as error:
                    bad.append(BadRecord(f"{self.top}Annotations/{name}.xml", error.reason))
                labels[name] = present
        return labels, bad


def objects_of(xml: bytes) -> list[str]:
    """The class of each object of an annotation. Raises Unreadable; a document type, and so any entity, is refused."""
    names: list[str] = []
    path: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        path.append(tag)
        if path == ["annotation", "object", "name"]:
            names.append("")

    def text(data: str) -> None:
        if path == ["annotation", "object", "name"]:
            names[-1] += data

    def refuse(*_: object) -> None:
        raise Unreadable("it has a document type, which VOC's annotations do not have")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda tag: path.pop()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(xml, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # a wrong encoding is a LookupError
        raise Unreadable(f"not valid XML ({error})") from error
    return [name.strip() for name in names]


def _is_sbds(mask: Entry) -> bool:
    return mask.path.endswith(_SBD_SUFFIX)


def _of_sbd(data: bytes, classes: int) -> np.ndarray:
    """The class map in a .mat file of SBD: GTcls.Segmentation."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        classes_HW: np.ndarray = loadmat(io.BytesIO(data))["GTcls"][0, 0]["Segmentation"]
    except Exception as error:  # scipy's reader raises whatever broken bytes lead it to
        raise Unreadable(f"not SBD's class map ({type(error).__name__}: {error})") from error
    if not isinstance(classes_HW, np.ndarray) or classes_HW.ndim != 2 or classes_HW.dtype != np.uint8:
        raise Unreadable("not SBD's class map (GTcls.Segmentation is no H x W uint8)")
    if (highest := int(classes_HW.max(initial=0))) >= classes:
        raise Unreadable(f"holds the value {highest}; expected 0 to {classes - 1}")
    return np.ascontiguousarray(classes_HW)
