"""COCO 2017 (Lin et al. 2014; panoptic: Kirillov et al. 2019) as it is distributed, read as class maps.

    ROOT/train2017/NAME.jpg                         118,287 pictures; 5,000 in val2017; both also below ROOT/images
    ROOT/annotations/panoptic_train2017.json        the segments of each picture and their classes, 133 in all
    ROOT/annotations/panoptic_train2017/NAME.png    whose colours are the segments' ids: R + 256 G + 256^2 B
    ROOT/annotations/instances_train2017.json       objects of 80 classes: polygons and run lengths

The same for val2017. The folders of PNG files may also lie in ROOT.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from mvray.data.bad_files import inspect
from mvray.data.decoding import Unreadable, load_pixels, open_picture, open_upright, pixels_of
from mvray.data.node_cache import build_once, node_folder
from mvray.data.readers import class_maps, coco_annotations
from mvray.data.readers.base import FileSource
from mvray.data.readers.class_maps import MASK
from mvray.data.rows import rows
from mvray.data.splits import assign_splits
from mvray.errors import DataError, SettingError
from mvray.experiment import CLASSES, IGNORE, BadRecord, Index

if TYPE_CHECKING:
    from pathlib import Path

    from mvray.storage import Entry, Storage

PANOPTIC, INSTANCES = "panoptic", "instances"
_FOLDER = "annotations"
_LAYOUT = 1  # grows when the same annotations become another table


class Sample(NamedTuple):
    """A picture with its class map, and 0 or 1 for each class."""

    key: str
    picture: Entry
    mask: str
    mask_bytes: int
    labels: bytes


@dataclass(frozen=True, kw_only=True)
class COCO(FileSource):
    """Pictures of COCO, or of any in its layout, with class maps as the target "mask".

    ``annotations`` "panoptic": the classes are the file's categories in the order of their ids; what no segment covers
    is 255. "instances": class 0 is "background", the categories follow in the order of their ids. Where instances
    overlap, the one with fewer pixels lies on top. Crowds (iscrowd) are 255 in both, below all instances.

    ``train`` and ``test`` name sets ("" for no test); of the first the share ``validation`` is kept apart, drawn by
    ``split_seed``. A picture's labels (``batch["labels"]``) are the classes of its segments without crowds. A picture
    with a segment that cannot be used is left out. Each node makes a table of an annotation file once: of the
    instances of train2017 in about 80 s.
    """

    kind: ClassVar[str] = "coco"
    annotations: str = PANOPTIC
    train: str = "train2017"
    validation: float = 0.05
    test: str = "val2017"
    split_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.annotations not in (PANOPTIC, INSTANCES):
            raise SettingError(
                f"source.annotations is {self.annotations!r}; expected {PANOPTIC!r} or {INSTANCES!r}, as the files "
                "are named."
            )
        if not 0 <= self.validation < 1:
            raise SettingError(f"source.validation is {self.validation}; expected a share from 0 to below 1.")
        if self.train == self.test:
            raise SettingError(f"source.train and source.test are both {self.train!r}; expected two sets.")

    @property
    def targets(self) -> Mapping[str, str]:
        return {MASK: CLASSES}

    def index(self) -> Index:
        self.storage.check(write=False)
        classes = coco_annotations.classes_of(self._table(self.train))
        samples, splits, bad = [], [], []
        for set_ in (self.train, *([self.test] if self.test else [])):
            if coco_annotations.classes_of(self._table(set_)) != classes:
                raise DataError(
                    f"{self._file(set_)} and {self._file(self.train)} name other categories; expected the same."
                )
            of_set, wrong = self._samples(set_, len(classes))
            bad += wrong
            samples += of_set
            splits += self._drawn(of_set) if set_ == self.train else ["test"] * len(of_set)
        table = rows(
            {
                "key": [sample.key for sample in samples],
                "location": [sample.picture.path for sample in samples],
                "part": [""] * len(samples),
                "label": [-1] * len(samples),
                "split": splits,
                "group": [""] * len(samples),
                "regions": [[]] * len(samples),
                "bytes": [sample.picture.size for sample in samples],
            },
            labels=np.frombuffer(b"".join(sample.labels for sample in samples), np.uint8).reshape(-1, len(classes)),
            targets={MASK: ([sample.mask for sample in samples], [sample.mask_bytes for sample in samples])},
        )
        return Index(table, classes, tuple(bad))

    def read(self, location: str, part: str) -> np.ndarray:
        return pixels_of(open_upright(self.again(location), 1 << 30, 1 << 30, grey=False))

    def read_target(self, location: str, name: str) -> np.ndarray:
        if self.annotations == INSTANCES:
            file, _, number = location.partition(".json#")
            record = self._record(file.rpartition("/")[2].removeprefix(f"{INSTANCES}_"), number, location)
            try:
                return coco_annotations.painted(record["segments"], record["height"], record["width"])
            except ValueError as error:
                raise Unreadable(str(error)) from error
        folder, _, png = location.rpartition("/")
        record = self._record(folder.rpartition("/")[2].removeprefix(f"{PANOPTIC}_"), png, location)
        return _of_panoptic(self.again(location), record["segments"])

    def _drawn(self, samples: list[Sample]) -> list[str]:
        sizes = (1 - self.validation, self.validation, 0.0)
        return assign_splits([sample.key for sample in samples], [""] * len(samples), sizes, self.split_seed)

    def _samples(self, set_: str, classes: int) -> tuple[list[Sample], list[BadRecord]]:
        """The pictures of a set that can be used, sorted by key, and why the others cannot."""
        folder = self._folder(set_, "images/", "a folder of pictures")
        pictures = {entry.path: entry for entry in self.storage.list(folder, recursive=True)}
        masks = {entry.path: entry for entry in self._masks(set_)}
        samples, bad = [], []
        sizes: dict[str, tuple[int, int]] = {}
        for record in (record for batch in self._table(set_).to_batches() for record in batch.to_pylist()):
            path = f"{folder}/{record['file']}"
            mask, mask_bytes, reason = self._mask(set_, record, masks)
            if path not in pictures:
                reason = f"in {self._file(set_)}, and not there"
            if reason:
                bad.append(BadRecord(path, reason))
                continue
            present = bytearray(classes)
            for segment in record["segments"]:
                if segment["label"] != IGNORE:
                    present[segment["label"]] = 1
            sizes[path] = record["width"], record["height"]
            samples.append(Sample(f"{set_}/{record['file']}", pictures[path], mask, mask_bytes, bytes(present)))
        wrong = inspect(self.storage, [sample.picture for sample in samples])
        if self.annotations == PANOPTIC:
            pairs = [(sample.picture, masks[sample.mask]) for sample in samples]
            wrong |= class_maps.wrong_masks(self.storage, pairs, class_maps.NUMBERS)
        else:
            wrong |= self._other_sizes(samples, sizes)
        bad += [BadRecord(location, reason) for location, reason in wrong.items()]
        good = [sample for sample in samples if sample.picture.path not in wrong and sample.mask not in wrong]
        return sorted(good), bad

    def _other_sizes(self, samples: list[Sample], sizes: dict[str, tuple[int, int]]) -> dict[str, str]:
        """Why which pictures are not those that were annotated, by path."""

        def look(storage: Storage, entry: Entry) -> None:
            class_maps.check_size(storage, entry, sizes[entry.path])

        return inspect(self.storage, [sample.picture for sample in samples], look)

    def _mask(self, set_: str, record: dict[str, Any], masks: dict[str, Entry]) -> tuple[str, int, str]:
        """Where a picture's class map is found, its bytes, and why it cannot be used."""
        if record["reason"]:
            return "", 0, record["reason"]
        if self.annotations == INSTANCES:
            location = f"{self._file(set_)}#{record['mask']}"
            return location, sum(len(segment["runs"]) for segment in record["segments"]), ""
        if not record["mask"]:
            return "", 0, f"has no annotation in {self._file(set_)}"
        location = f"{self._folder(f'{PANOPTIC}_{set_}', f'{_FOLDER}/', 'a folder of PNG files')}/{record['mask']}"
        if location not in masks:
            return "", 0, f"its class map {location} is not there"
        return location, masks[location].size, ""

    def _masks(self, set_: str) -> list[Entry]:
        if self.annotations == INSTANCES:
            return []
        return self.storage.list(self._folder(f"{PANOPTIC}_{set_}", f"{_FOLDER}/", "a folder of PNG files"))

    def _folder(self, name: str, below: str, what: str) -> str:
        """A folder in ROOT, or below another there. Raises DataError where there is none."""
        for folder in (name, f"{below}{name}"):
            if self.storage.exists(folder):
                return folder
        raise DataError(
            f"{self.storage.uri} holds {self.listed()}; expected {what}, {name} or {below}{name}, as COCO 2017 has it. "
            "Check the path (--data), or name other sets with --set source.train and source.test."
        )

    def _file(self, set_: str) -> str:
        return f"{_FOLDER}/{self.annotations}_{set_}.json"

    def _record(self, set_: str, mask: str, location: str) -> dict[str, Any]:
        table = self._table(set_)
        if set_ not in self._rows:
            self._rows[set_] = {name: row for row, name in enumerate(table["mask"].to_pylist())}
        if mask not in self._rows[set_]:
            raise Unreadable(f"{location} is not in {self._file(set_)} any more")
        record: dict[str, Any] = table.slice(self._rows[set_][mask], 1).to_pylist()[0]
        return record

    def _table(self, set_: str) -> pa.Table:
        """The annotations of a set, made if no process of this node has made them from the same file."""
        if set_ not in self._tables:
            self._tables[set_] = self._opened(self._file(set_))
        return self._tables[set_]

    def _opened(self, path: str) -> pa.Table:
        try:
            size = self.storage.size(path)
            local = self.storage.local(path)
            changed = local.stat().st_mtime_ns if local else 0
        except FileNotFoundError:
            raise DataError(
                f"{self.storage.uri} holds {self.listed()}, and no {path}; expected it, as COCO 2017 has it. Check the "
                "path (--data), or name other sets or annotations with --set source.train, source.test and "
                "source.annotations."
            ) from None

        def make() -> pa.Table:
            return coco_annotations.table_of(self.storage.read(path), path, self.annotations == PANOPTIC)

        def write(file: Path) -> None:
            table = make()
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

        names = repr((_LAYOUT, self.storage.full(path), size, changed, self.annotations))
        file = node_folder("coco") / f"{hashlib.sha256(names.encode()).hexdigest()[:32]}.arrow"
        if build_once(file, write) is None:
            return make()
        with pa.memory_map(str(file)) as mapped:
            return pa.ipc.open_file(mapped).read_all()

    @cached_property
    def _tables(self) -> dict[str, pa.Table]:
        return {}

    @cached_property
    def _rows(self) -> dict[str, dict[str, int]]:
        """The row of each class map in a set's table."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_rows"}


def _of_panoptic(data: bytes, segments: list[dict[str, Any]]) -> np.ndarray:
    """The class map of a panoptic PNG. Raises Unreadable for an id that its annotation does not have."""
    ids_HW = class_maps.numbers_of(np.asarray(load_pixels(open_picture(data)).convert("RGB")))
    labels = {0: IGNORE} | {segment["id"]: segment["label"] for segment in segments}
    classes_HW, unknown = class_maps.by_number(ids_HW, labels)
    if unknown:
        raise Unreadable(f"holds the segment {unknown[0]}, which its annotation does not have")
    return classes_HW
