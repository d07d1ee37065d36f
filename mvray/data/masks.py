"""Instance masks as training uses them: which instances count, widened, in the sample's own geometry.

They are stored per frame as COCO run lengths (generators/instance_masks.py). Shapes: T frames,
H x W pixels of the sample.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageFilter

from mvray.data.geometry import cut_view
from mvray.errors import DataError, SettingError
from mvray.experiment import ALL, PEOPLE, PEOPLE_AND_OBJECTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mvray.data.geometry import View
    from mvray.experiment import Masks

SCENERY = frozenset(
    (
        "traffic light",
        "fire hydrant",
        "stop sign",
        "parking meter",
        "bench",
        "chair",
        "couch",
        "potted plant",
        "bed",
        "dining table",
        "toilet",
        "microwave",
        "oven",
        "toaster",
        "sink",
        "refrigerator",
    )
)
"""COCO's supercategories outdoor, furniture and appliance: what stands around, in "people and objects" left out."""
MOST_INSTANCES = 32
"""The most instances of a frame that keep masks of their own; those with the best scores."""


Keys = Any  # pa.ChunkedArray or pa.Array


def positions_of(keys: Keys, among: Keys, name: str, most: float) -> np.ndarray:
    """Positions (int64) of ``keys``, -1 for none. Raises DataError where that is more than the share ``most``."""
    positions = pc.index_in(keys, value_set=among)
    if positions.null_count > most * len(keys):
        missing = pc.filter(keys, pc.is_null(positions))
        raise DataError(
            f"Found no {name!r} for {len(missing)} of {len(keys)} samples, first {missing[0].as_py()!r}; "
            "expected one for each. Let the Generate step run over the splits that are trained on."
        )
    return np.asarray(pc.fill_null(positions, -1).to_numpy(), np.int64)


def labels_of(classes: Sequence[str], classes_used: str) -> frozenset[int]:
    """The labels that ``classes_used`` (see job.Masks) means. Raises SettingError for a name that is not a class."""
    if classes_used == ALL:
        return frozenset(range(len(classes)))
    if classes_used == PEOPLE_AND_OBJECTS:
        return frozenset(label for label, name in enumerate(classes) if name not in SCENERY)
    names = ["person"] if classes_used == PEOPLE else [name.strip() for name in classes_used.split(",")]
    if unknown := [name for name in names if name not in classes]:
        raise SettingError(
            f"masks.classes is {classes_used!r}, but the segmenter knows no {unknown[0]!r}; expected {PEOPLE!r}, "
            f"{PEOPLE_AND_OBJECTS!r}, {ALL!r}, or some of {', '.join(classes)}."
        )
    return frozenset(classes.index(name) for name in names)


class MaskColumn:
    """The instance masks of samples; each sample's frames are neighbouring rows in their order."""

    name = "masks"

    def __init__(self, table: pa.Table, use: Masks) -> None:
        self._use = use
        self._masks, self._frames = table["masks"], table["frame"].to_numpy()
        self._sizes = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], 1)
        classes = json.loads((table.schema.field("masks").metadata or {}).get(b"classes", b"[]"))
        self._labels = labels_of(classes, use.classes)
        runs = [pc.run_end_encode(chunk) for chunk in table["key"].chunks]
        self._keys = pa.chunked_array([run.values for run in runs], pa.string())
        starts = [0, *(len(chunk) for chunk in table["key"].chunks)]
        ends = [run.run_ends.to_numpy() + base for run, base in zip(runs, np.cumsum(starts[:-1]), strict=True)]
        self._ends = np.concatenate([[0], *ends]).astype(np.int64)

    def lookup(self, keys: pa.ChunkedArray | pa.Array, max_missing: float = 0.0) -> np.ndarray:
        """As `Column.lookup`."""
        return positions_of(keys, self._keys, self.name, max_missing)

    def sample(self, position: int, height: int, width: int, view: View) -> dict[str, np.ndarray]:
        """``masks``: T x H x W uint8. Without ``union`` also ``mask_labels``, T x MOST_INSTANCES int64, -1 for none."""
        rows = self._rows(position, view)
        masks, labels = zip(*(self._frame(row, height, width, view) for row in rows), strict=True)
        columns = {"masks": np.stack(masks)}
        return columns if self._use.union else {**columns, "mask_labels": np.stack(labels)}

    def _rows(self, position: int, view: View) -> np.ndarray:
        """For each frame of the view the row that is nearest in time: perhaps only every k-th frame has masks."""
        first, end = self._ends[position], self._ends[position + 1]
        frames, numbers = self._frames[first:end], np.asarray(view.numbers)
        after = np.searchsorted(frames, numbers).clip(0, len(frames) - 1)
        before = (after - 1).clip(0)
        nearer = np.abs(frames[before] - numbers) <= np.abs(frames[after] - numbers)
        rows: np.ndarray = first + np.where(nearer, before, after)
        return rows

    def _frame(self, row: int, height: int, width: int, view: View) -> tuple[np.ndarray, np.ndarray]:
        from pycocotools import mask as coco

        least, labels = self._use.least_score, np.full(MOST_INSTANCES, -1, np.int64)
        size = [int(side) for side in self._sizes[row]]
        instances: list[dict[str, Any]] = [
            instance
            for instance in self._masks[row].as_py()
            if instance["label"] in self._labels and instance["score"] >= least
        ]
        runs = [{"size": size, "counts": instance["rle"]} for instance in instances]
        if self._use.union:
            whole = coco.decode(coco.merge(runs)) if runs else np.zeros(size, np.uint8)
        else:
            whole = np.zeros(size, np.uint8)
            kept = min(len(runs), MOST_INSTANCES)
            labels[:kept] = [instance["label"] for instance in instances[:kept]]
            for number in range(kept, 0, -1):  # the best-scored one lies on top
                whole[self._widen(coco.decode(runs[number - 1])) > 0] = number
            return self._place(whole, height, width, view), labels
        return self._place(self._widen(whole), height, width, view), labels

    def _widen(self, mask_HW: np.ndarray) -> np.ndarray:
        if not self._use.dilate:
            return mask_HW
        return np.asarray(Image.fromarray(mask_HW).filter(ImageFilter.MaxFilter(2 * self._use.dilate + 1)))

    def _place(self, mask_HW: np.ndarray, height: int, width: int, view: View) -> np.ndarray:
        return np.ascontiguousarray(
            cut_view(np.ascontiguousarray(mask_HW), height, width, view, Image.Resampling.NEAREST)
        )
