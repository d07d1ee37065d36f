"""Retrieval by vectors: pairs within a distance, and the nearest of each picture.

A pair of pictures counts as the same character where the distance of its vectors is at most a
threshold, as in the source (papers.md, section 4: scikit-learn's NearestNeighbors with a distance threshold).
Vectors are scaled to unit length first, so distances are Euclidean, 0 to 2, and d^2 = 2 - 2 cos. Pairs are
counted by distance in steps of 2 / 65,536 = 0.00003: that is how fine a threshold is; the counts at a threshold
are exact. All pairs are looked at, some rows at a time, so memory grows with the pictures and not with
their square. Pictures without a label (-1) are left out.

Shapes: N pictures, B of them at a time, E dimensions, T thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mvray.errors import DataError
from mvray.experiment import Metric

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

STEPS = 1 << 16
FURTHEST = 2.0
THRESHOLDS_T = np.linspace(0, FURTHEST, STEPS + 1)
_CELLS = 1 << 22
"""Distances that are held at a time."""


@dataclass(frozen=True)
class Pairs:
    """How many pairs of the same class, and of different ones, are at most THRESHOLDS_T apart: T int64 each.

    The properties have a value for each threshold too.
    """

    same: Array
    different: Array

    @property
    def precision(self) -> Array:
        """Precision: the share of pairs of one class among the pairs within each threshold; 0 without a pair."""
        share_T: Array = self.same / np.maximum(self.same + self.different, 1)
        return share_T

    @property
    def recall(self) -> Array:
        """Share of the pairs of the same class that is within each threshold."""
        return self.same / max(int(self.same[-1]), 1)

    @property
    def false(self) -> Array:
        """Share of the pairs of different classes that is within each threshold: what a ROC curve has as x."""
        return self.different / max(int(self.different[-1]), 1)

    @property
    def f1(self) -> Array:
        """Harmonic mean of precision and recall."""
        mean_T: Array = 2 * self.same / np.maximum(self.same + self.different + self.same[-1], 1)
        return mean_T

    def best_threshold(self) -> float:
        """The smallest threshold of those with the highest F1."""
        return float(THRESHOLDS_T[self.f1.argmax()])

    def at(self, threshold: float) -> dict[str, float]:
        """``f1``, ``precision`` and ``recall`` of the pairs within ``threshold``."""
        t = int(np.searchsorted(THRESHOLDS_T, threshold, side="right")) - 1
        shares = {"f1": self.f1, "precision": self.precision, "recall": self.recall}
        return {name: float(share_T[t]) for name, share_T in shares.items()}

    def roc_auc(self) -> float:
        """Probability that a pair of the same class is closer than one of different classes; half for equal ones."""
        same_T, different_T = (np.diff(counts, prepend=0) for counts in (self.same, self.different))
        further_T = self.different[-1] - self.different + different_T / 2
        return float((same_T * further_T).sum() / self.same[-1] / self.different[-1])


@dataclass(frozen=True)
class SearchResult:
    """The pairs of some pictures, and of each picture that has others of its class: whether the nearest is one
    (``first``), and its average precision at R (``average_precision``), Q values each."""

    pairs: Pairs
    first: Array
    average_precision: Array


def search(vectors_NE: Array, label_N: Array) -> SearchResult:
    """Look for each picture among all others.

    Average precision at R (Musgrave et al. 2020, "A Metric Learning Reality Check", arXiv 2003.08505,
    section 3.2): with R others of the class, the mean over the R nearest of the precision up to there where
    it is one of the class, and of 0 where it is not.
    """
    kept = label_N >= 0
    unit_NE, label_N = unit_length(vectors_NE[kept]), label_N[kept]
    _, class_N, size_K = np.unique(label_N, return_inverse=True, return_counts=True)
    others_N = size_K[class_N] - 1
    same_T, all_T = np.zeros((2, STEPS + 2), np.int64)
    first, average_precision = [np.empty(0, bool)], [np.empty(0)]
    for rows, distance_BN in _blocks(unit_NE):
        step_BN = np.ceil(distance_BN * (STEPS / FURTHEST)).astype(np.int32)
        same_BN = class_N[rows, None] == class_N
        all_T += np.bincount(step_BN.ravel(), minlength=STEPS + 2)
        same_T += np.bincount(step_BN[same_BN], minlength=STEPS + 2)
        asked_B = others_N[rows] > 0
        if asked_B.any():
            right_BR = np.take_along_axis(same_BN, _nearest(distance_BN, int(others_N[rows].max())), 1)[asked_B]
            first.append(right_BR[:, 0])
            average_precision.append(_average_precision(right_BR, others_N[rows][asked_B]))
    # Each pair was met from both sides; what lies beyond the last step is each picture with itself.
    same_T, all_T = (np.cumsum(counts[:-1]) // 2 for counts in (same_T, all_T))
    return SearchResult(Pairs(same_T, all_T - same_T), np.concatenate(first), np.concatenate(average_precision))


def unit_length(vectors_NE: Array) -> Array:
    """The vectors at unit length, float32; one of zeros stays as it is."""
    vectors_NE = vectors_NE.astype(np.float32)
    norm_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    unit_NE: Array = vectors_NE / np.maximum(norm_N1, np.finfo(np.float32).tiny)
    return unit_NE


def _blocks(unit_NE: Array) -> Iterator[tuple[slice, Array]]:
    """Distances of some rows to all; a row's to itself is beyond any other."""
    count = max(1, _CELLS // max(len(unit_NE), 1))
    squares_N = np.square(unit_NE).sum(1)
    for begin in range(0, len(unit_NE), count):
        rows = slice(begin, begin + count)
        squared_BN = unit_NE[rows] @ unit_NE.T
        squared_BN *= -2
        squared_BN += squares_N[rows, None]
        squared_BN += squares_N
        distance_BN = np.sqrt(np.clip(squared_BN, 0, FURTHEST**2, out=squared_BN), out=squared_BN)
        np.fill_diagonal(distance_BN[:, begin:], FURTHEST * (1 + 1 / STEPS))
        yield rows, distance_BN


def _nearest(distance_BN: Array, count: int) -> Array:
    """Columns of the ``count`` smallest distances of each row, nearest first, in order of columns where equal."""
    closest_BR = np.sort(np.argpartition(distance_BN, count - 1, axis=1)[:, :count], axis=1)
    order_BR = np.take_along_axis(distance_BN, closest_BR, 1).argsort(axis=1, kind="stable")
    return np.take_along_axis(closest_BR, order_BR, 1)


def _average_precision(right_BR: Array, others_B: Array) -> Array:
    place_R = np.arange(1, right_BR.shape[1] + 1)
    counted_BR = right_BR & (place_R <= others_B[:, None])
    result: Array = (counted_BR * counted_BR.cumsum(1) / place_R).sum(1) / others_B
    return result


def scores(result: SearchResult, threshold: float | None = None) -> dict[str, float]:
    """All numbers of Retrieval at ``threshold``, or at the one with the best F1; what cannot be known is left out."""
    pairs, numbers = result.pairs, {}
    if pairs.same[-1]:
        threshold = pairs.best_threshold() if threshold is None else threshold
        numbers = {"threshold": threshold, **pairs.at(threshold)}
        numbers["recall_at_1"] = float(result.first.mean())
        numbers["map_at_r"] = float(result.average_precision.mean())
        if pairs.different[-1]:
            numbers["roc_auc"] = pairs.roc_auc()
    return numbers


@dataclass(frozen=True)
class Retrieval(Metric):
    """The metric for Measure: retrieval by the vectors in ``column``.

    ``threshold`` is the distance within which a pair counts as the same; None chooses the one with the best
    F1 on the split ``chosen_on`` and uses it for all splits. Numbers: ``threshold``; ``f1``, ``precision``
    and ``recall`` of pairs at it; ``recall_at_1``, the share of pictures whose nearest other is of their class;
    ``map_at_r``, the mean average precision at R (search); ``roc_auc``. Pictures that are alone in their
    class are found by others, but not looked for. A number that cannot be known is left out: all where no two
    pictures are of a class, ``roc_auc`` where there is one class.
    """

    kind: ClassVar[str] = "retrieval"
    column: str = "embedding"
    threshold: float | None = None
    chosen_on: str = "validation"

    def check(self, rows: pa.Table) -> None:
        """Raise DataError where the index's ``rows`` cannot give a threshold, before anything is trained."""
        splits = rows["split"].to_pylist()
        labels = rows["label"].to_numpy()[[split == self.chosen_on for split in splits]]
        labels = labels[labels >= 0]
        if self.threshold is None and len(set(labels.tolist())) == len(labels):
            raise self._no_threshold(set(splits))

    def _no_threshold(self, splits: Iterable[str]) -> DataError:
        why = "has no two pictures of the same class" if self.chosen_on in splits else "is not among its data's splits"
        return DataError(
            f"The threshold is chosen on the split {self.chosen_on!r}, which {why}; found the splits "
            f"{', '.join(sorted(splits))}. Give more pictures of each class, or a larger share: "
            f"--set source.train=0.6 --set source.{self.chosen_on}=0.2."
        )

    def fitted(self, tables: Mapping[str, pa.Table], names: tuple[str, ...]) -> Retrieval:
        """The metric with its threshold. Raises DataError where the split ``chosen_on`` cannot give one."""
        if self.threshold is not None:
            return self
        table = tables.get(self.chosen_on)
        numbers = {} if table is None else scores(search(*columns(table, self.column)))
        if not numbers:
            raise self._no_threshold(tables)
        return replace(self, threshold=numbers["threshold"])

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> dict[str, float]:
        return scores(search(*columns(table, self.column)), self.threshold)


def columns(table: pa.Table, name: str) -> tuple[Array, Array]:
    """The vectors in column ``name`` (N x E) and the labels (N) of a table. Raises DataError without that column."""
    if name not in table.column_names:
        raise DataError(
            f"There is no column {name!r} with vectors; the data has {', '.join(table.column_names)}. "
            "Join it with a Generate step that makes it, or name another column."
        )
    vectors = table[name].combine_chunks()
    return vectors.flatten().to_numpy().reshape(len(table), -1), table["label"].to_numpy()
