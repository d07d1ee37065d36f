"""K-means over points that are shared out over ranks; no rank ever sees another's points.

Lloyd's algorithm (1982): assignments are made where the points are, and only sums and counts, K x (D + 1), go
between the ranks, once per iteration. Its three costs are kept low:

    distances     a block of points times all centroids is one matrix product that stays in the cache; on a CPU each
                  core has its own blocks
    smallest      see _largest
    iterations    a centroid whose cluster stays as it was does not move, and a point of such a cluster can only be
                  drawn away by a centroid that moved: nothing else is computed again. The result is the same

Shapes: N points of this rank, D dimensions, K clusters, B points of a block, G groups of centroids.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mvray.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor

Sum = Callable[["Tensor"], "Tensor"]
"""The sum of a tensor over all ranks, on every rank: method.EpochWork.sum."""
Lanes = Callable[[Callable[["Tensor"], None], "Tensor"], object]

SPLIT = 1 / 1024
"""By how much the two halves of a split cluster go apart, as a share of each coordinate (faiss, Clustering.cpp)."""
_GROUPS = 32
_BLOCK_ON_CPU, _BLOCK_ON_GPU = 2**22, 2**27
"""Scores (B x K) at a time: what stays in a core's cache, and what keeps a GPU busy."""


@dataclass(frozen=True)
class Clusters:
    """What k-means ends with. All but ``labels`` is equal bit for bit on all ranks.

    ``centroids`` K x D. ``labels`` the number of the nearest centroid of each of this rank's points (N int64).
    ``counts`` how many points of all ranks each has (K int64; 0 is possible). ``inertia`` the sum over all points of
    the squared distance to their centroid. ``iterations`` how often the centroids were moved.
    """

    centroids: Tensor
    labels: Tensor
    counts: Tensor
    inertia: float
    iterations: int


def kmeans(
    points_ND: Tensor,
    index_N: Tensor,
    samples: int,
    clusters: int,
    *,
    seed: int,
    sum_over_ranks: Sum,
    iterations: int = 20,
) -> Clusters:
    """Cluster the points of all ranks; every rank calls it with its own share, in float32 or float64.

    ``index_N`` (int64, below ``samples``) numbers the points over all ranks; numbers may be missing. The start is a
    sample of the points that depends on ``seed`` and the numbers alone. (k-means++ was measured: for 77,000 points
    and 3,000 clusters its inertia is 0.1 % lower in the end, and it takes longer than the 20 iterations.) Ends after
    ``iterations``, or earlier where no centroid moves. An empty cluster takes half of the largest one, as in faiss and
    so in DeepCluster (Caron et al. 2018, section 3.3). Sums are made in float64, so results for any number of ranks
    differ by rounding only. Points should lie around zero: distances come from scalar products. Raises SettingError
    for more clusters than points.
    """
    start_KD = _start(points_ND, index_N, samples, clusters, seed, sum_over_ranks)
    with _on_all_cores(points_ND.device) as lanes:
        return _lloyd(points_ND, start_KD, iterations, sum_over_ranks, lanes)


def _lloyd(points_ND: Tensor, centroids_KD: Tensor, iterations: int, sum_over_ranks: Sum, lanes: Lanes) -> Clusters:
    clusters = len(centroids_KD)
    part = _Share(points_ND, clusters, lanes)
    moved_K = torch.ones(clusters, dtype=torch.bool, device=points_ND.device)
    done, last = 0, iterations == 0
    while not last:
        part.assign(centroids_KD, moved_K)
        done += 1
        sums, before_KD = sum_over_ranks(part.sums), centroids_KD
        centroids_KD = _centroids(sums, before_KD, split=True)
        last = done == iterations or torch.equal(centroids_KD, before_KD)
        if last:  # a cluster that was split only now would be one that no point chose
            centroids_KD = _centroids(sums, before_KD, split=False)
        moved_K = (centroids_KD != before_KD).any(1)
    part.assign(centroids_KD, moved_K)
    counts_K = sum_over_ranks(torch.bincount(part.labels_N, minlength=clusters))
    inertia = float(sum_over_ranks(part.inertia(centroids_KD)))
    return Clusters(centroids_KD, part.labels_N, counts_K, inertia, done)


class _Share:
    """This rank's points, their labels and the scores of these; the sum and number of the points of each cluster."""

    def __init__(self, points_ND: Tensor, clusters: int, lanes: Lanes) -> None:
        self.points_ND, self.lanes = points_ND, lanes
        on = points_ND.device
        self.labels_N = torch.full((len(points_ND),), -1, device=on)
        self.scores_N = torch.empty(len(points_ND), dtype=points_ND.dtype, device=on)
        self.sums = torch.zeros(clusters, points_ND.shape[1] + 1, dtype=torch.float64, device=on)
        """K x (D + 1): sums of points, and in the last column how many there are."""
        elements = _BLOCK_ON_GPU if on.type == "cuda" else _BLOCK_ON_CPU
        self.rows = max(1, elements // clusters)

    def assign(self, centroids_KD: Tensor, moved_K: Tensor) -> None:
        """Every point to its nearest centroid, ``sums`` with it; ``moved_K`` says which moved since the last call.

        The first time all of them did (and a label of -1 then asks for the last one).
        """
        before_N = self.labels_N.clone()
        again_N = moved_K[self.labels_N]
        rows = again_N.nonzero()[:, 0]
        self.scores_N[rows], self.labels_N[rows] = self._nearest(rows, centroids_KD)
        which, rows = moved_K.nonzero()[:, 0], (~again_N).nonzero()[:, 0]
        if len(which) and len(rows):
            scores, nearest = self._nearest(rows, centroids_KD[which])
            better = scores > self.scores_N[rows]
            self.scores_N[rows[better]], self.labels_N[rows[better]] = scores[better], which[nearest[better]]
        self._count((self.labels_N != before_N).nonzero()[:, 0], before_N)

    def _nearest(self, rows: Tensor, centroids_KD: Tensor) -> tuple[Tensor, Tensor]:
        """Score and number of the centroid that is nearest to each of ``rows``.

        The smallest ||x - c||^2 is the largest x.c - ||c||^2 / 2.
        """
        missing = -len(centroids_KD) % _GROUPS
        padded_KD = torch.nn.functional.pad(centroids_KD, (0, 0, 0, missing))
        bias_K = torch.nn.functional.pad(centroids_KD.square().sum(1) / -2, (0, missing), value=-torch.inf)
        scores, numbers = torch.empty_like(rows, dtype=padded_KD.dtype), torch.empty_like(rows)

        def run(lane: Tensor) -> None:
            # Written in place: small results among large blocks that come and go would leave memory in pieces.
            scores_BK = torch.empty(
                min(self.rows, len(lane)), len(padded_KD), dtype=padded_KD.dtype, device=rows.device
            )
            for at in torch.split(lane, self.rows):
                points_BD = self.points_ND[rows[at]]
                found_BK = torch.addmm(bias_K, points_BD, padded_KD.T, out=scores_BK[: len(at)])
                scores[at], numbers[at] = _largest(found_BK)

        self.lanes(run, torch.arange(len(rows), device=rows.device))
        return scores, numbers

    def _count(self, rows: Tensor, before_N: Tensor) -> None:
        """Take the points that changed from the sums of their old clusters to those of their new ones."""
        for block in torch.split(rows, self.rows):
            ones = torch.ones(len(block), 1, dtype=torch.float64, device=block.device)
            points = torch.cat([self.points_ND[block].double(), ones], 1)
            self.sums.index_add_(0, self.labels_N[block], points)
            old = before_N[block]
            self.sums.index_add_(0, old[old >= 0], points[old >= 0], alpha=-1)

    def inertia(self, centroids_KD: Tensor) -> Tensor:
        """The sum of squared distances of this rank's points to their centroids, float64."""
        parts = zip(torch.split(self.points_ND, self.rows), torch.split(self.labels_N, self.rows), strict=True)
        squares = [(points - centroids_KD[labels]).square().sum(dtype=torch.float64) for points, labels in parts]
        return torch.stack(squares).sum()


@contextlib.contextmanager
def _on_all_cores(device: torch.device) -> Iterator[Lanes]:
    """What runs a function on pieces of a tensor of numbers: on a CPU, a core on each, so that none waits for another.

    Meanwhile torch's own threads rest: between the products is too little for them.
    """
    cores = torch.get_num_threads()
    if device.type != "cpu" or cores == 1:
        yield lambda run, numbers: run(numbers)
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda run, numbers: [*pool.map(run, torch.tensor_split(numbers, cores))]
    finally:
        torch.set_num_threads(cores)


def _largest(scores_BK: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row and its column; K is a multiple of 32.

    On a CPU, torch looks for a maximum's place one number at a time, which takes half as long as the product before
    it, but for a maximum's value at 16 at a time. So first the maxima over groups, and then places among few.
    """
    if scores_BK.is_cuda:
        largest_B, at_B = scores_BK.max(1)
        return largest_B, at_B
    groups_BGJ = scores_BK.reshape(len(scores_BK), _GROUPS, scores_BK.shape[1] // _GROUPS)
    largest_B, within_B = groups_BGJ.amax(1).max(1)
    group_B = groups_BGJ.gather(2, within_B[:, None, None].expand(-1, _GROUPS, 1))[:, :, 0].argmax(1)
    return largest_B, group_B * groups_BGJ.shape[2] + within_B


def _start(points_ND: Tensor, index_N: Tensor, samples: int, clusters: int, seed: int, sum_over_ranks: Sum) -> Tensor:
    """``clusters`` points, drawn from all by their numbers: K x D on every rank."""
    there_S = torch.zeros(samples, dtype=torch.int64, device=points_ND.device)
    there_S[index_N] = 1
    numbers = sum_over_ranks(there_S).nonzero()[:, 0]
    if len(numbers) < clusters:
        raise SettingError(
            f"{len(numbers)} points cannot make {clusters} clusters; expected at least a point for each. "
            "Ask for fewer clusters or give more samples."
        )
    draw = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))[:clusters]
    slot_S = torch.full((samples,), -1, device=points_ND.device)
    slot_S[numbers[draw.to(numbers.device)]] = torch.arange(clusters, device=points_ND.device)
    mine_N = slot_S[index_N] >= 0
    start_KD = torch.zeros(clusters, points_ND.shape[1], dtype=points_ND.dtype, device=points_ND.device)
    start_KD[slot_S[index_N[mine_N]]] = points_ND[mine_N]
    return sum_over_ranks(start_KD)


def _centroids(sums: Tensor, before_KD: Tensor, split: bool) -> Tensor:
    """The mean of each cluster; an empty one stays where it was, or takes half of a large one where ``split``."""
    counts_K = sums[:, -1]
    means_KD = (sums[:, :-1] / counts_K.clamp(min=1)[:, None]).to(before_KD.dtype)
    new_KD = torch.where(counts_K[:, None] > 0, means_KD, before_KD)
    empty = (counts_K == 0).nonzero()[:, 0].tolist()
    if split and empty:
        signs_D = 1 - 2 * (torch.arange(before_KD.shape[1], device=before_KD.device) % 2)
        largest = [(-count, cluster) for cluster, count in enumerate(counts_K.tolist())]
        heapq.heapify(largest)
        for cluster in empty:
            count, other = largest[0]
            new_KD[cluster] = new_KD[other] * (1 + SPLIT * signs_D)
            new_KD[other] *= 1 - SPLIT * signs_D
            heapq.heapreplace(largest, (count / 2, other))
            heapq.heappush(largest, (count / 2, cluster))
    return new_KD
