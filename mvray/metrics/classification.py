"""Metrics for Measure steps: columns in, numbers out.

Each takes the joined table of some samples and the class names. Columns used: ``label`` (-1: none),
``predicted``, ``scores`` (probabilities, K per sample), ``map`` (attention in 0..1; the shape H,W is
in the field's metadata), ``regions`` (boxes with their kind, in pixels of a sample of ``height`` x
``width``). A number with no sample to average over is left out. Shapes: N samples, H x W cells of a map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mvray.experiment import Metric

if TYPE_CHECKING:
    import pyarrow as pa

_ENTROPY_BINS = 10
Box = Mapping[str, float]


@dataclass(frozen=True)
class Accuracy(Metric):
    """``accuracy``: share of the labelled samples that are predicted right, 0..1."""

    kind: ClassVar[str] = "accuracy"

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> dict[str, float]:
        label, predicted = _numbers(table, "label"), _numbers(table, "predicted")
        known = label >= 0
        return _means(accuracy=(label == predicted)[known])


@dataclass(frozen=True)
class Top5(Metric):
    """``top5``: share of the labelled samples with less than five classes scored above the label's, 0..1."""

    kind: ClassVar[str] = "top5"

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> dict[str, float]:
        label, scores_NK = _numbers(table, "label"), _rows(table, "scores")
        known = label >= 0
        label, scores_NK = label[known], scores_NK[known]
        own = scores_NK[np.arange(len(label)), label]
        return _means(top5=(scores_NK > own[:, None]).sum(1) < 5)


def confusion(table: pa.Table, classes: tuple[str, ...]) -> np.ndarray:
    """How many samples of each class (row) are predicted as each class (column), K x K int64."""
    label, predicted = _numbers(table, "label"), _numbers(table, "predicted")
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (label[label >= 0], predicted[label >= 0]), 1)
    return counts


@dataclass(frozen=True)
class AttentionEntropy(Metric):
    """``attention_entropy_bits``: entropy of the 10-bin histogram of each map's values, mean over the samples.

    Values are scaled to 0..1 by the map's least and greatest first (Nitta et al., Object-ABN); at
    most log2(10) = 3.32, smaller is sharper. A map that is the same everywhere has no such scale:
    it is left out, and ``attention_flat`` is the share of such maps.
    """

    kind: ClassVar[str] = "attention_entropy"

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> dict[str, float]:
        maps_NHW = _maps(table)
        low, high = maps_NHW.min((1, 2)), maps_NHW.max((1, 2))
        shaped = high > low
        maps_NHW, low, high = maps_NHW[shaped], low[shaped, None, None], high[shaped, None, None]
        bins_NHW = np.minimum((maps_NHW - low) / (high - low) * _ENTROPY_BINS, _ENTROPY_BINS - 1).astype(int)
        share_NB = np.stack([(bins_NHW == bin_).mean((1, 2)) for bin_ in range(_ENTROPY_BINS)], axis=1)
        entropy_N = -(share_NB * np.log2(np.where(share_NB > 0, share_NB, 1))).sum(1)
        return _means(attention_entropy_bits=entropy_N, attention_flat=~shaped)


@dataclass(frozen=True)
class AttentionOnMasks(Metric):
    """Means over the clips of ``attention_entropy_bits``, ``attention_iou`` and ``attention_pointing``, as far as they
    are columns (methods/object_abn.py says what they are); clips where one is not known (NaN) are left out of it."""

    kind: ClassVar[str] = "attention_on_masks"

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> dict[str, float]:
        known = [
            name
            for name in ("attention_entropy_bits", "attention_iou", "attention_pointing")
            if name in table.column_names
        ]
        values = {name: _numbers(table, name) for name in known}
        return _means(**{name: values_N[~np.isnan(values_N)] for name, values_N in values.items()})


@dataclass(frozen=True)
class MaskAgreement(Metric):
    """Means over the clips of every column named *_iou (methods/mask_rcnn.py says what they are), NaN left out."""

    kind: ClassVar[str] = "mask_agreement"

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> dict[str, float]:
        values = {name: _numbers(table, name) for name in table.column_names if name.endswith("_iou")}
        return _means(**{name: values_N[~np.isnan(values_N)] for name, values_N in values.items()})


@dataclass(frozen=True)
class AttentionInside(Metric):
    """Share of the attention that falls inside the body boxes and the face boxes of a page, 0..1.

    ``attention_in_body`` and ``attention_in_face``: a map's sum inside the union of the boxes of
    that kind over its whole sum, cells counted by the part of them that is covered; mean over the
    samples. ``body_area`` and ``face_area`` are the shares of the page that those boxes cover: what
    attention spread evenly would score. Pages without such boxes, and maps that are zero
    everywhere, are left out of both.
    """

    kind: ClassVar[str] = "attention_inside"

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> dict[str, float]:
        maps_NHW = _maps(table)
        sizes = zip(_numbers(table, "height"), _numbers(table, "width"), strict=True)
        pages = list(zip(maps_NHW, table["regions"].to_pylist(), sizes, strict=True))
        numbers: dict[str, float] = {}
        for kind in ("body", "face"):
            inside, area = [], []
            for map_HW, regions, (height, width) in pages:
                boxes = [box for box in regions or () if box["kind"] == kind]
                if boxes and map_HW.sum() > 0:
                    covered_HW = coverage(boxes, (int(height), int(width)), map_HW.shape)
                    inside.append((map_HW * covered_HW).sum() / map_HW.sum())
                    area.append(covered_HW.mean())
            numbers |= _means(**{f"attention_in_{kind}": inside, f"{kind}_area": area})
        return numbers


def coverage(boxes: Iterable[Box], size: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """How much of each cell the union of ``boxes`` covers, ``shape`` (H, W) float64 in 0..1.

    Boxes are x0, y0, x1, y1 in pixels of a page of ``size`` (height, width); the cells divide the
    page evenly. Exact: the page is cut along every edge of a box or cell, and the pieces are added.
    """
    y = np.array([(box["y0"], box["y1"]) for box in boxes], float) * shape[0] / size[0]
    x = np.array([(box["x0"], box["x1"]) for box in boxes], float) * shape[1] / size[1]
    y, x = y.clip(0, shape[0]), x.clip(0, shape[1])
    rows = np.unique(np.concatenate((y.ravel(), np.arange(shape[0] + 1))))
    columns = np.unique(np.concatenate((x.ravel(), np.arange(shape[1] + 1))))
    covered = np.zeros((len(rows) - 1, len(columns) - 1))
    for (top, bottom), (left, right) in zip(np.searchsorted(rows, y), np.searchsorted(columns, x), strict=True):
        covered[top:bottom, left:right] = 1
    pieces = covered * np.diff(rows)[:, None] * np.diff(columns)
    first_row = np.searchsorted(rows, np.arange(shape[0]))
    first_column = np.searchsorted(columns, np.arange(shape[1]))
    cells: np.ndarray = np.add.reduceat(np.add.reduceat(pieces, first_row, axis=0), first_column, axis=1)
    return cells


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and the ends of its 95 % interval (Student's t, n - 1 degrees of freedom); None for one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    from scipy import stats  # type: ignore[import-untyped]

    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def _means(**values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {name: float(np.mean(numbers)) for name, numbers in values.items() if len(numbers)}


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    column: np.ndarray = table[name].to_numpy()
    return column


def _rows(table: pa.Table, name: str) -> np.ndarray:
    """A column of lists of equal length, N x length float64."""
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[name].chunks]
    values: np.ndarray = np.concatenate([np.zeros(0), *chunks])
    return values.reshape(len(table), -1)


def _maps(table: pa.Table) -> np.ndarray:
    shape = table.schema.field("map").metadata[b"shape"].decode().split(",")
    return _rows(table, "map").reshape(-1, *map(int, shape))
