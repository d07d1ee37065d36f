"""Vectors in, groups out: which samples belong together, without knowing how many groups there are.

The way of Yanagisawa et al. (papers.md, section 2) is the default: UMAP to 32 dimensions, then HDBSCAN
with min_cluster_size 10 and min_samples 1. scikit-learn's HDBSCAN, because it is more than twice as fast
as the hdbscan package at 20,000 vectors and gives the same groups (tests/test_clustering.py,
tests/benchmarks/bench_clustering.py). Shapes: N samples, D features, d reduced dimensions.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import cpu_count
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mvray.errors import DataError, SettingError
from mvray.experiment import Metric, Settings, check_above_0
from mvray.metrics.reduction import Pca as Pca
from mvray.metrics.reduction import Umap as Umap
from mvray.metrics.reduction import flat_map

if TYPE_CHECKING:
    import pyarrow as pa

NOISE, LEFT_OUT = -1, -2
"""Group numbers of samples that belong to no group, and of those that were not grouped at all."""
NOISES = ("group", "drop", "single")


# -- ways to group -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hdbscan(Settings):
    """HDBSCAN (Campello et al. 2013): groups of any density, the rest is noise.

    ``min_samples`` is meant as in the hdbscan package, and so in the paper: the neighbours of a point
    without itself. ``selection`` is "eom" (excess of mass) or "leaf" (the finest groups). All samples
    in one group is an answer only where ``allow_single`` says so.
    """

    kind: ClassVar[str] = "hdbscan"
    min_cluster_size: int = 10
    min_samples: int = 1
    selection: str = "eom"
    allow_single: bool = False

    def __post_init__(self) -> None:
        check_above_0(self, "hdbscan", "min_samples")
        if self.min_cluster_size < 2:
            raise SettingError(f"hdbscan.min_cluster_size is {self.min_cluster_size}; expected 2 or more.")
        _one_of("hdbscan.selection", self.selection, ("eom", "leaf"))

    @property
    def smallest(self) -> int:
        return max(self.min_cluster_size, self.min_samples + 1)

    def labels(self, points_Nd: np.ndarray, seed: int, k: int | None) -> np.ndarray:
        """N labels; takes time N squared."""
        from sklearn.cluster import HDBSCAN

        way = HDBSCAN(
            min_cluster_size=self.min_cluster_size,
            min_samples=self.min_samples + 1,  # scikit-learn counts the point itself
            cluster_selection_method=self.selection,
            allow_single_cluster=self.allow_single,
            copy=True,
        )
        labels_N: np.ndarray = way.fit_predict(points_Nd)
        return labels_N


@dataclass(frozen=True)
class Dbscan(Settings):
    """DBSCAN (Ester et al. 1996): groups of one density, the rest is noise.

    ``min_samples`` counts the point itself, as there. Without ``eps`` it is the knee of the sorted
    distances to the ``min_samples``-th point: where that curve, both axes scaled to 0..1, is farthest
    below the line between its ends (Satopää et al. 2011).
    """

    kind: ClassVar[str] = "dbscan"
    eps: float | None = None
    min_samples: int = 5

    def __post_init__(self) -> None:
        check_above_0(self, "dbscan", "eps", "min_samples")

    @property
    def smallest(self) -> int:
        return self.min_samples

    def labels(self, points_Nd: np.ndarray, seed: int, k: int | None) -> np.ndarray:
        """N labels."""
        from sklearn.cluster import DBSCAN

        eps = self.eps or _knee(points_Nd, self.min_samples)
        labels_N: np.ndarray = DBSCAN(eps=eps, min_samples=self.min_samples).fit_predict(points_Nd)
        return labels_N


def _knee(points_Nd: np.ndarray, min_samples: int) -> float:
    from sklearn.neighbors import NearestNeighbors

    distances_Nk, _ = NearestNeighbors(n_neighbors=min_samples).fit(points_Nd).kneighbors(points_Nd)
    curve_N = np.sort(distances_Nk[:, -1])
    rise = curve_N[-1] - curve_N[0]
    below_N = np.linspace(0, 1, len(curve_N)) - (curve_N - curve_N[0]) / (rise or 1)
    knee = curve_N[below_N.argmax()] if rise else curve_N[-1]
    return float(max(knee, np.finfo(np.float64).tiny))


@dataclass(frozen=True)
class KMeans(Settings):
    """k-means (Lloyd) from the best of ``starts`` starts of k-means++; ``k`` None: the number that the caller knows."""

    kind: ClassVar[str] = "kmeans"
    k: int | None = None
    starts: int = 10
    smallest: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_above_0(self, "kmeans", "k", "starts")

    def labels(self, points_Nd: np.ndarray, seed: int, k: int | None) -> np.ndarray:
        """N labels. Raises SettingError where k is not known or above N."""
        from sklearn.cluster import KMeans as SklearnKMeans

        # Fewer different points than k are as many groups.
        warnings.filterwarnings("ignore", "Number of distinct clusters", module="sklearn")
        known = _known(self.k or k, len(points_Nd), "kmeans.k")
        labels_N: np.ndarray = SklearnKMeans(known, n_init=self.starts, random_state=seed).fit_predict(points_Nd)
        return labels_N


@dataclass(frozen=True)
class Agglomerative(Settings):
    """Agglomerative clustering, cut at ``distance`` or, without it, into ``k`` groups (None: as the caller knows).

    ``linkage`` is "ward", "average", "complete" or "single". Needs memory N squared (4 bytes a pair).
    """

    kind: ClassVar[str] = "agglomerative"
    k: int | None = None
    distance: float | None = None
    linkage: str = "ward"
    smallest: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_above_0(self, "agglomerative", "k", "distance")
        _one_of("agglomerative.linkage", self.linkage, ("ward", "average", "complete", "single"))
        if self.k and self.distance:
            raise SettingError("agglomerative.k and agglomerative.distance are both set; expected one of them.")

    def labels(self, points_Nd: np.ndarray, seed: int, k: int | None) -> np.ndarray:
        """N labels. Raises SettingError where neither k nor a distance is known, or k is above N."""
        from sklearn.cluster import AgglomerativeClustering

        if len(points_Nd) < 2:
            return np.zeros(len(points_Nd), np.int64)
        known = None if self.distance else _known(self.k or k, len(points_Nd), "agglomerative.k or .distance")
        way = AgglomerativeClustering(known, distance_threshold=self.distance, linkage=self.linkage)
        labels_N: np.ndarray = way.fit_predict(points_Nd)
        return labels_N


Way = Hdbscan | Dbscan | KMeans | Agglomerative


def _known(k: int | None, samples: int, setting: str) -> int:
    if k is None:
        raise SettingError(f"{setting} is not set, and the number of groups is not known; give it, or use Hdbscan.")
    if k > samples:
        raise SettingError(f"{setting} is {k}, but there are {samples} vectors to group; expected {samples} or less.")
    return k


def _one_of(setting: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise SettingError(f"{setting} is {value!r}; expected one of {', '.join(allowed)}.")


def group_vectors(
    vectors_ND: np.ndarray,
    reduce: Umap | Pca | None = Umap(),
    way: Way = Hdbscan(),
    seed: int = 0,
    k: int | None = None,
) -> np.ndarray:
    """The group of each vector: N int64, from 0 on, -1 for noise.

    ``reduce`` None groups the vectors as they are. ``k`` is the number of groups where it is known
    (k-means and agglomerative clustering need it). Vectors that are all the same are one group, and
    fewer than ``way`` asks of a group (HDBSCAN: min_cluster_size) are noise. Raises DataError where a
    vector is not finite.
    """
    finite_N = np.isfinite(vectors_ND).all(1)
    if not finite_N.all():
        raise DataError(
            f"{(~finite_N).sum()} of {len(vectors_ND)} vectors hold NaN or infinity, first number "
            f"{(~finite_N).argmax()}. Expected finite features: check the network that made them, its training "
            "may have diverged."
        )
    if len(vectors_ND) < way.smallest:
        return np.full(len(vectors_ND), NOISE, np.int64)
    if (vectors_ND == vectors_ND[:1]).all():
        return np.zeros(len(vectors_ND), np.int64)
    points_Nd = vectors_ND if reduce is None else reduce.reduced(vectors_ND, seed)
    return way.labels(np.asarray(points_Nd, np.float64), seed, k).astype(np.int64)


# -- how right the groups are --------------------------------------------------------------------


def agreement(label_N: np.ndarray, group_N: np.ndarray, noise: str = "group") -> dict[str, float]:
    """How well groups (-1: noise) agree with labels (-1: unknown, left out of everything).

    ``ami`` (adjusted mutual information, Vinh et al. 2010), ``nmi`` (both normalised by the arithmetic
    mean of the entropies), ``ari`` (adjusted Rand index) and ``purity`` (share of the samples whose
    label is the commonest of their group). The paper does not say how it counts noise: as one more
    group ("group"), not at all ("drop"; nothing left scores 0), or each sample as a group of its own
    ("single"). Beside them ``groups`` and ``classes``, how many there are, noise not counted, and
    ``noise``, its share.
    """
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    _one_of("noise", noise, NOISES)
    known_N = label_N >= 0
    label_N, group_N = label_N[known_N], group_N[known_N]
    lost_N = group_N < 0
    counts = {
        "groups": float(len(np.unique(group_N[~lost_N]))),
        "classes": float(len(np.unique(label_N))),
        "noise": float(lost_N.mean()) if len(lost_N) else 0.0,
    }
    if noise == "drop":
        label_N, group_N = label_N[~lost_N], group_N[~lost_N]
    elif noise == "single":
        group_N = np.where(lost_N, group_N.max(initial=0) + 1 + np.arange(len(group_N)), group_N)
    if not len(label_N):
        return {"ami": 0.0, "ari": 0.0, "nmi": 0.0, "purity": 0.0, **counts}
    scores = {
        "ami": adjusted_mutual_info_score(label_N, group_N),
        "ari": adjusted_rand_score(label_N, group_N),
        "nmi": normalized_mutual_info_score(label_N, group_N),
        "purity": contingency_matrix(label_N, group_N).max(0).sum() / len(label_N),
    }
    return {name: float(value) for name, value in scores.items()} | counts


def work_keys(works: Iterable[str]) -> dict[str, str]:
    """The works in order, each with the end of its metrics' keys: its name without what MLflow reads as a path."""
    keys: dict[str, str] = {}
    for work in sorted(works):
        key = plain = re.sub(r"[^\w. :-]", "_", work).strip(". ") or "_"
        number = 1
        while key in keys.values():
            number += 1
            key = f"{plain} {number}"
        keys[work] = key
    return keys


@dataclass(frozen=True)
class Clusters(Metric):
    """A metric for Measure: each work of a split grouped on its own, scored against its labels (`agreement`).

    A work is a value of the column "group"; ``column`` holds the vectors. Scores are means over the
    works, "NAME_ami" and so on, and "NAME_ami/WORK" for each; "NAME_group" has the group of every
    sample (-1 noise, -2 left out) and, with ``map``, "NAME_map" its place on a flat map of its work
    (NaN where left out). A work counts with ``least_samples`` labelled samples of two classes or more;
    "NAME_works", "NAME_works_left_out" and "NAME_samples_left_out" say what counted. k-means and
    agglomerative clustering without k get the number of classes that the work has.
    Raises DataError where the column is missing or holds vectors that are not finite.
    """

    kind: ClassVar[str] = "clusters"
    column: str
    name: str
    reduce: Umap | Pca | None = Umap()
    way: Way = Hdbscan()
    seed: int = 0
    noise: str = "group"
    map: bool = False
    least_samples: int = 20

    def __post_init__(self) -> None:
        check_above_0(self, self.name, "least_samples")
        _one_of(f"{self.name}.noise", self.noise, NOISES)

    def seeded(self, seed: int) -> Clusters:
        return replace(self, seed=seed)

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> dict[str, float | np.ndarray]:
        vectors_ND, label_N = _vectors(table, self.column), table["label"].to_numpy()
        work_N = np.array(table["group"].to_pylist(), object)
        rows = {work: np.flatnonzero(work_N == work) for work in sorted(set(work_N))}
        counted = {work: at for work, at in rows.items() if self._counts(label_N[at])}

        def one(at: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
            k = len(np.unique(label_N[at][label_N[at] >= 0]))
            group_n = group_vectors(vectors_ND[at], self.reduce, self.way, self.seed, k)
            return group_n, flat_map(vectors_ND[at], self.reduce, self.seed) if self.map else None

        group_N = np.full(len(table), LEFT_OUT, np.int64)
        map_N2 = np.full((len(table), 2), np.nan, np.float32)
        # One by one they would leave most of a large machine idle.
        with ThreadPoolExecutor(min(len(counted), cpu_count() or 1) or 1, "clustering") as pool:
            for at, (group_n, map_n2) in zip(counted.values(), pool.map(one, counted.values()), strict=True):
                group_N[at] = group_n
                if map_n2 is not None:
                    map_N2[at] = map_n2
        scores = {work: agreement(label_N[at], group_N[at], self.noise) for work, at in counted.items()}
        columns: dict[str, float | np.ndarray] = {f"{self.name}_group": group_N}
        if self.map:
            columns[f"{self.name}_map"] = map_N2
        return columns | self._numbers(scores, len(rows), int((group_N == LEFT_OUT).sum()))

    def _counts(self, label_n: np.ndarray) -> bool:
        known = label_n[label_n >= 0]
        return len(known) >= self.least_samples and len(np.unique(known)) > 1

    def _numbers(self, scores: dict[str, dict[str, float]], works: int, left_out: int) -> dict[str, float]:
        counts = {"works": len(scores), "works_left_out": works - len(scores), "samples_left_out": left_out}
        numbers = {f"{self.name}_{name}": float(count) for name, count in counts.items()}
        for score in next(iter(scores.values()), ()):
            numbers[f"{self.name}_{score}"] = float(np.mean([of_work[score] for of_work in scores.values()]))
            for work, key in work_keys(scores).items():
                numbers[f"{self.name}_{score}/{key}"] = scores[work][score]
        return numbers


def _vectors(table: pa.Table, column: str) -> np.ndarray:
    """A column of lists of equal length, N x D float32."""
    if column not in table.column_names:
        raise DataError(
            f"The samples have no column {column!r} to group by; they have {', '.join(table.column_names)}. "
            "Join the data with the step that makes it: data.with_columns(...)."
        )
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[column].chunks]
    vectors_ND: np.ndarray = np.concatenate([np.zeros(0, np.float32), *chunks]).astype(np.float32)
    vectors_ND = vectors_ND.reshape(len(table), -1) if len(table) else vectors_ND.reshape(0, 1)
    bad_N = ~np.isfinite(vectors_ND).all(1)
    if bad_N.any():
        raise DataError(
            f"The vectors {column!r} of {bad_N.sum()} of {len(table)} samples hold NaN or infinity, first "
            f"{table['key'][int(bad_N.argmax())]}. Expected finite numbers: the training of the network that made "
            "them may have diverged; look at its losses."
        )
    return vectors_ND
