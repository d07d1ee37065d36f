"""Whitening from sums over ranks, against numpy's SVD and scikit-learn's PCA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from as_ranks import Sum, as_ranks

from mvray.nn import whitening
from mvray.nn.whitening import Whitening

pytestmark = pytest.mark.usefixtures("one_thread")


def one(points: torch.Tensor, components: int) -> Whitening:
    return whitening.fit(points, components, rank=0, sum_over_ranks=lambda tensor: tensor)


def features(samples: int = 500, dims: int = 12, offset: float = 3.0) -> torch.Tensor:
    """Variances from 1 to 1e-4, correlated, around ``offset``."""
    rand = torch.Generator().manual_seed(2)
    scale = torch.logspace(0, -2, dims, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(dims, dims, generator=rand, dtype=torch.float64))[0]
    return (torch.randn(samples, dims, generator=rand, dtype=torch.float64) * scale @ turned + offset).float()


def by_svd(points: np.ndarray, components: int) -> np.ndarray:
    """Whitened and L2-normalised, each direction with its largest entry positive."""
    centred = points - points.mean(0)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    rows = rows[:components]
    rows *= np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(1)])[:, None]
    white = centred @ rows.T / values[:components] * np.sqrt(len(points) - 1)
    return white / np.linalg.norm(white, axis=1, keepdims=True)


@pytest.mark.parametrize("components", [1, 5, 12])
def test_it_is_what_the_svd_gives(components: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "_BLOCK", 64)
    points = features()
    found = one(points, components)(points)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, by_svd(points.double().numpy(), components), atol=2e-4)


def test_it_is_what_scikit_learn_gives() -> None:
    from sklearn.decomposition import PCA

    points, made = features(), one(features(), 6)
    theirs = PCA(6, whiten=True, svd_solver="full").fit_transform(points.double().numpy())
    ours = ((points - made.mean) @ made.axes).numpy()
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-3)
    np.testing.assert_allclose(np.cov(ours.T), np.eye(6), atol=1e-4)


def test_a_great_offset_does_no_harm() -> None:
    """Features after a ReLU are far from zero; squares of float32 would drown what differs between them."""
    here, far = features(offset=0.0).double(), features(offset=0.0).double() + 300
    torch.testing.assert_close(one(far, 12).axes, one(here, 12).axes, rtol=1e-4, atol=1e-4)


def test_ranks_find_what_one_finds() -> None:
    points = features()
    parts, whole = [points[:123], points[123:]], one(points, 8)

    def run(rank: int, sum_over_ranks: Sum) -> Whitening:
        return whitening.fit(parts[rank], 8, rank=rank, sum_over_ranks=sum_over_ranks)

    first, second = as_ranks(run, 2)
    torch.testing.assert_close(first.axes, whole.axes, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(first.mean, whole.mean)
    assert torch.equal(first.axes, second.axes)  # bit for bit
    assert torch.equal(first.mean, second.mean)


def test_directions_without_variance_are_left_out() -> None:
    """Few points in many dimensions, and columns that say the same."""
    few = features(samples=5, dims=12)
    assert one(few, 12).axes.shape == (12, 4)
    twice = torch.cat([features(), features()], 1)
    assert one(twice, 256).axes.shape == (24, 12)
    torch.testing.assert_close(one(twice, 256)(twice).norm(dim=1), torch.ones(500))


@pytest.mark.parametrize("samples", [1, 7])
def test_points_that_are_all_the_same_become_zero(samples: int) -> None:
    points = torch.full((samples, 4), 0.3)
    assert torch.equal(one(points, 3)(points), torch.zeros(samples, 1))


@pytest.mark.gpu
def test_a_gpu_finds_what_a_cpu_finds() -> None:
    points = features()
    torch.testing.assert_close(one(points.cuda(), 6).axes.cpu(), one(points, 6).axes, rtol=1e-5, atol=1e-5)
