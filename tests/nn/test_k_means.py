"""K-means against Lloyd's algorithm written slowly, and against itself on several ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from as_ranks import Sum, as_ranks

from mvray.errors import SettingError
from mvray.nn import k_means as module
from mvray.nn.k_means import Clusters, kmeans

pytestmark = pytest.mark.usefixtures("one_thread")


def alone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def blobs(samples: int = 900, dims: int = 6, dtype: torch.dtype = torch.float64, spread: float = 1.0) -> torch.Tensor:
    rand = torch.Generator().manual_seed(3)
    centres = 2 * torch.randn(12, dims, generator=rand)
    chosen = centres[torch.randint(0, 12, (samples,), generator=rand)]
    return (chosen + spread * torch.randn(samples, dims, generator=rand)).to(dtype)


def one(points: torch.Tensor, clusters: int, seed: int = 0, iterations: int = 20) -> Clusters:
    numbers = torch.arange(len(points), device=points.device)
    return kmeans(points, numbers, len(points), clusters, seed=seed, sum_over_ranks=alone, iterations=iterations)


def shared(points: torch.Tensor, clusters: int, owner: torch.Tensor, world: int) -> list[Clusters]:
    """The same on ``world`` ranks."""

    def run(rank: int, sum_over_ranks: Sum) -> Clusters:
        rows = (owner == rank).nonzero()[:, 0]
        return kmeans(points[rows], rows, len(points), clusters, seed=0, sum_over_ranks=sum_over_ranks)

    return as_ranks(run, world)


def lloyd(points: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids and labels, every distance computed each time."""
    for _ in range(iterations):
        labels = ((points[:, None] - centroids) ** 2).sum(2).argmin(1)
        centroids = np.stack([points[labels == each].mean(0) for each in range(len(centroids))])
    return centroids, ((points[:, None] - centroids) ** 2).sum(2).argmin(1)


@pytest.mark.parametrize("iterations", [1, 2, 5, 60])
@pytest.mark.parametrize("clusters", [1, 5, 33, 70])
def test_it_is_lloyds_algorithm(clusters: int, iterations: int) -> None:
    points = blobs()
    start = one(points, clusters, iterations=0).centroids.numpy()
    assert all((points.numpy() == row).all(1).any() for row in start)
    found = one(points, clusters, iterations=iterations)
    centroids, labels = lloyd(points.numpy(), start, iterations)
    np.testing.assert_allclose(found.centroids, centroids, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.counts, np.bincount(labels, minlength=clusters))
    assert found.inertia == pytest.approx(((points.numpy() - centroids[labels]) ** 2).sum(), rel=1e-9)
    assert found.iterations <= iterations
    if iterations == 60:
        assert found.iterations < 60  # nothing moved any more


def test_many_blocks_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = one(blobs(), 20)
    monkeypatch.setattr(module, "_BLOCK_ON_CPU", 20 * 7)
    parts = one(blobs(), 20)
    assert torch.equal(whole.labels, parts.labels)
    assert whole.inertia == pytest.approx(parts.inertia, rel=1e-12)


def test_each_core_has_its_own_points() -> None:
    whole = one(blobs(), 20)
    torch.set_num_threads(3)  # one_thread puts it back
    parts = one(blobs(), 20)
    assert torch.get_num_threads() == 3
    assert torch.equal(whole.labels, parts.labels)
    assert whole.inertia == pytest.approx(parts.inertia, rel=1e-12)


def test_the_optimum_is_as_good_as_sklearns() -> None:
    from sklearn.cluster import KMeans

    points = blobs(dtype=torch.float32)
    start = one(points, 30, iterations=0).centroids.numpy()
    theirs = KMeans(30, init=start, n_init=1, max_iter=100, tol=0).fit(points.numpy())
    found = one(points, 30, iterations=100)
    assert found.inertia == pytest.approx(theirs.inertia_, rel=1e-4)
    assert (found.labels.numpy() == theirs.labels_).mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_find_what_one_finds(world: int, dtype: torch.dtype) -> None:
    points = blobs(dtype=dtype)
    owner = torch.arange(len(points)) * world // len(points)
    whole, parts = one(points, 40), shared(points, 40, owner, world)
    labels = torch.cat([part.labels for part in parts])
    assert torch.equal(labels, whole.labels)
    for part in parts:
        assert torch.equal(part.centroids, parts[0].centroids)  # bit for bit
        assert (part.iterations, part.inertia) == (whole.iterations, parts[0].inertia)
        assert part.inertia == pytest.approx(whole.inertia, rel=1e-6)
        assert torch.equal(part.counts, whole.counts)
    torch.testing.assert_close(parts[0].centroids, whole.centroids)


def test_it_does_not_matter_who_has_which_point() -> None:
    points = blobs()
    owner = torch.randint(0, 2, (len(points),), generator=torch.Generator().manual_seed(1)) * 2  # rank 1 has none
    parts, whole = shared(points, 25, owner, 3), one(points, 25)
    for rank in range(3):
        assert torch.equal(parts[rank].labels, whole.labels[owner == rank])


def test_numbers_may_be_missing() -> None:
    """Samples that could not be read have no features."""
    points = blobs()
    numbers = torch.arange(len(points)) * 3 + 1
    found = kmeans(points, numbers, 3 * len(points) + 7, 10, seed=0, sum_over_ranks=alone)
    assert torch.equal(found.labels, one(points, 10).labels)


def test_the_seed_chooses_the_start() -> None:
    starts = [one(blobs(), 10, seed=seed, iterations=0).centroids for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_an_empty_cluster_takes_half_of_the_largest() -> None:
    """Most points are one and the same, so most of the start is too, and all but one of its centroids get nothing."""
    points = torch.cat([torch.ones(60, 4, dtype=torch.float64), 5 + blobs(300, 4)])
    found = one(points, 12)
    start = one(points, 12, iterations=0)
    assert (start.counts == 0).any()
    assert int((found.counts == 0).sum()) <= 1
    assert found.inertia < 0.8 * start.inertia
    assert found.centroids.isfinite().all()
    sums = torch.tensor([[8.0, -4.0, 4.0], [0.0, 0.0, 0.0], [3.0, 3.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    before = torch.full((4, 2), 7.0, dtype=torch.float64)
    e = module.SPLIT
    half, other = [2 * (1 - e), -1 * (1 + e)], [2 * (1 + e), -1 * (1 - e)]
    twice = [half[0] * (1 - e), half[1] * (1 + e)], [half[0] * (1 + e), half[1] * (1 - e)]
    expected = torch.tensor([twice[0], other, [3.0, 3.0], twice[1]], dtype=torch.float64)
    torch.testing.assert_close(module._centroids(sums, before, split=True), expected, rtol=1e-15, atol=0)
    kept = module._centroids(sums, before, split=False)
    assert kept.tolist() == [[2.0, -1.0], [7.0, 7.0], [3.0, 3.0], [7.0, 7.0]]


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
@pytest.mark.parametrize("clusters", [1, 2, 40, 50])
def test_identical_points(clusters: int, value: float) -> None:
    found = one(torch.full((50, 3), value), clusters)
    assert found.centroids.isfinite().all()
    assert int(found.counts.sum()) == 50
    assert found.inertia < 1e-3


def test_as_many_clusters_as_points() -> None:
    found = one(blobs(70), 70)
    assert sorted(found.labels.tolist()) == list(range(70))
    assert found.inertia == 0
    assert found.iterations == 1
    twice = one(blobs(35).repeat(2, 1), 70)
    assert torch.equal(twice.labels[:35], twice.labels[35:])
    assert twice.inertia < 1e-3


def test_more_clusters_than_points_are_refused() -> None:
    with pytest.raises(SettingError, match="9 points cannot make 10 clusters; expected at least a point for each"):
        one(blobs(9), 10)


def test_the_largest_of_each_row() -> None:
    scores = torch.randn(50, 96, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(module._largest(scores), scores.max(1), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.gpu
def test_a_gpu_finds_what_a_cpu_finds() -> None:
    points = blobs()
    found, expected = one(points.cuda(), 30), one(points, 30)
    assert torch.equal(found.labels.cpu(), expected.labels)
    assert found.inertia == pytest.approx(expected.inertia, rel=1e-9)
