"""Semantic segmentation: intersection over union by PASCAL VOC's protocol, out of counts of pixels.

Counts are K x (K + 1): a row for each true class, a column for each predicted one and one for "none". Pixels whose
truth is 255 do not count. One matrix stands for a whole split; a mean over pictures is another number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mvray.experiment import IGNORE, Metric

if TYPE_CHECKING:
    import pyarrow as pa


def counts_of(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The counts of two class maps of one shape (uint8), K x (K + 1) int64; predicted values of 255 are "none"."""
    counted = truth.ravel() != IGNORE
    pairs = truth.ravel()[counted].astype(np.int64) * (classes + 1) + np.minimum(predicted.ravel()[counted], classes)
    return np.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def iou(counts: np.ndarray) -> np.ndarray:
    """The intersection over union of each class, NaN where neither truth nor prediction has it."""
    right = counts[:, :-1].diagonal().astype(np.float64)
    union = counts.sum(1) + counts[:, :-1].sum(0) - right
    iou_K: np.ndarray = np.divide(right, union, out=np.full(len(right), np.nan), where=union > 0)
    return iou_K


def accuracy(counts: np.ndarray) -> float:
    """The share of the pixels that are predicted right; NaN where none counts."""
    return float(counts[:, :-1].trace() / total) if (total := counts.sum()) else float("nan")


@dataclass(frozen=True)
class MeanIoU(Metric):
    """``mean_iou``, ``pixel_accuracy``, ``iou/CLASS``, and what the columns give beside: see generators/map_scores.py.

    ``trimap_iou``: mean_iou of the pixels next to true boundaries; ``boundary_f``: the mean over pictures. For each
    picture ``picture_iou``, the mean over the classes that it has. ``one_class`` and ``several_classes``: mean_iou of
    the pictures with one class beside the background, and with more. All from 0 to 1.
    """

    kind: ClassVar[str] = "mean_iou"

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> Mapping[str, float | np.ndarray]:
        counts_N = _counts(table, "counts", len(names))
        whole = counts_N.sum(0)
        numbers: dict[str, float | np.ndarray] = {"mean_iou": _mean(iou(whole)), "pixel_accuracy": accuracy(whole)}
        numbers |= {
            f"iou/{name}": float(value) for name, value in zip(names, iou(whole), strict=True) if value == value
        }
        true_N = (counts_N.sum(2)[:, 1:] > 0).sum(1)
        for name, chosen in (("one_class", true_N == 1), ("several_classes", true_N > 1)):
            if chosen.any():
                numbers[name] = _mean(iou(counts_N[chosen].sum(0)))
        if "trimap" in table.column_names:
            numbers["trimap_iou"] = _mean(iou(_counts(table, "trimap", len(names)).sum(0)))
        if "boundary_f" in table.column_names:
            numbers["boundary_f"] = _mean(table["boundary_f"].to_numpy())
        return {**numbers, "picture_iou": np.array([_mean(iou(counts)) for counts in counts_N])}


def _counts(table: pa.Table, name: str, classes: int) -> np.ndarray:
    column = table[name].combine_chunks()
    return np.asarray(column.flatten().to_numpy(), np.int64).reshape(-1, classes, classes + 1)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
