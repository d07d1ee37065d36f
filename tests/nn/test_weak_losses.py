"""The losses of weak supervision against the papers' formulas, written slowly; what the constraints promise, holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mvray.nn import CRF, marginals, weak_losses

LABELS = torch.tensor([[0.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
HEIGHT, WIDTH = 5, 6


def scores(seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(3, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def probabilities(scores_BKhw: torch.Tensor) -> np.ndarray:
    exponents = np.exp(scores_BKhw.double().numpy())
    softmax: np.ndarray = (exponents / exponents.sum(1, keepdims=True)).reshape(3, 4, -1)
    return softmax


def classes_of(picture: int) -> list[int]:
    return [0, *(k for k in range(1, 4) if LABELS[picture, k])]


def test_mil_is_the_highest_place_of_each_class() -> None:
    p = probabilities(scores())
    expected = np.mean([np.mean([-math.log(p[b, k].max()) for k in classes_of(b)]) for b in range(3)])
    assert float(weak_losses.mil_softmax(scores(), LABELS)) == pytest.approx(expected, rel=1e-5)


def test_log_sum_exp_pools_between_mean_and_maximum() -> None:
    s = scores().double().numpy().reshape(3, 4, -1)
    pooled = np.log(np.exp(5 * s).mean(2)) / 5
    np.testing.assert_allclose(weak_losses.log_sum_exp(scores()).numpy(), pooled, rtol=1e-5)
    shares = np.exp(pooled) / np.exp(pooled).sum(1, keepdims=True)
    expected = np.mean([np.mean([-math.log(shares[b, k]) for k in classes_of(b)]) for b in range(3)])
    assert float(weak_losses.mil_log_sum_exp(scores(), LABELS)) == pytest.approx(expected, rel=1e-5)


def test_expand_ranks_places() -> None:
    p = probabilities(scores())
    share = 41 * 41 / (HEIGHT * WIDTH)

    def pooled(values: np.ndarray, decay: float) -> float:
        weights = [decay ** (rank * share) for rank in range(len(values))]
        return float(np.dot(sorted(values, reverse=True), weights) / sum(weights))

    losses = []
    for b in range(3):
        foreground = classes_of(b)[1:]
        absent = [k for k in range(4) if k not in classes_of(b)]
        losses.append(
            np.mean([-math.log(pooled(p[b, k], 0.996)) for k in foreground])
            + np.mean([-math.log(1 - p[b, k].max()) for k in absent])
            - math.log(pooled(p[b, 0], 0.999))
        )
    assert float(weak_losses.expand(scores(), LABELS)) == pytest.approx(np.mean(losses), rel=1e-4)


def test_seed_counts_the_places_that_are_known() -> None:
    cues = torch.full((3, HEIGHT, WIDTH), 255, dtype=torch.uint8)
    cues[0, 1, 2], cues[0, 4, 4], cues[1, 0, 0] = 1, 0, 2  # the third picture has none
    p = probabilities(scores()).reshape(3, 4, HEIGHT, WIDTH)
    expected = (-(math.log(p[0, 1, 1, 2]) + math.log(p[0, 0, 4, 4])) / 2 - math.log(p[1, 2, 0, 0])) / 3
    assert float(weak_losses.seed(scores(), cues)) == pytest.approx(expected, rel=1e-5)


def test_constrain_is_the_divergence_from_the_crfs_answer() -> None:
    images = torch.randint(0, 256, (3, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1))
    crf = CRF(10, 3.0, 1.0, 10.0, 3.0, 13.0)
    q = marginals(scores(), images, crf).double().numpy().reshape(3, 4, -1)
    p = probabilities(scores())
    expected = np.mean(np.sum(q * (np.log(np.maximum(q, 1e-5)) - np.log(p)), 1))
    own = scores().requires_grad_()
    loss = weak_losses.constrain(own, images, crf)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert own.grad is not None  # of -q log p alone: (p - q) / places / pictures
    np.testing.assert_allclose(own.grad.numpy().reshape(3, 4, -1), (p - q) / p[:, 0].size, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_em_adapt_gives_each_class_its_share(seed: int) -> None:
    strong = scores(seed)
    strong[:, 0] += 8  # background would win everywhere
    targets = weak_losses.em_adapt_targets(strong, LABELS)
    places = HEIGHT * WIDTH
    for b in range(3):
        shares = torch.bincount(targets[b].flatten(), minlength=4) / places
        for k in range(4):
            if k not in classes_of(b):
                assert shares[k] == 0
            else:  # another class's turn may take a place away again
                assert shares[k] >= (0.4 if k == 0 else 0.2) - 2 / places
    agreed = scores(seed)  # where the scores give everything its share already, they decide
    agreed = agreed.masked_fill((LABELS == 0)[:, :, None, None] & (torch.arange(4) > 0)[None, :, None, None], -99.0)
    free = weak_losses.em_adapt_targets(agreed, LABELS, foreground=1e-6, background=1e-6)
    assert torch.equal(free, agreed.argmax(1))


def test_ccnn_targets_are_the_nearest_that_keep_the_constraints() -> None:
    """Against a general solver of the same problem, over the dual variables."""
    strong = scores(spread=1.0)
    strong[:, 0] += 3
    targets = weak_losses.ccnn_targets(strong, LABELS, rounds=400).double().numpy().reshape(3, 4, -1)
    for b in range(3):
        p = probabilities(strong)[b].copy()
        p[[k for k in range(4) if k not in classes_of(b)]] = 0
        p /= p.sum(0)
        lower = np.array([0.3, *(0.05 if k in classes_of(b) else 0 for k in range(1, 4))])

        def dual(x: np.ndarray, p: np.ndarray = p, lower: np.ndarray = lower) -> float:
            weights = np.exp(x[:4] - np.array([x[4], 0, 0, 0]))
            return float(np.log((p * weights[:, None]).sum(0)).mean() - x[:4] @ lower + 0.7 * x[4])

        best = minimize(dual, np.zeros(5), bounds=[(0, None)] * 5).x
        expected = p * np.exp(best[:4] - np.array([best[4], 0, 0, 0]))[:, None]
        np.testing.assert_allclose(targets[b], expected / expected.sum(0), atol=2e-3)
        shares = targets[b].mean(1)
        assert shares[0] <= 0.7 + 1e-3
        assert (shares >= lower - 1e-3).all()


def test_a_picture_without_labels_is_background() -> None:
    nothing = torch.zeros(3, 4)
    assert not weak_losses.em_adapt_targets(scores(), nothing).any()
    assert bool((weak_losses.ccnn_targets(scores(), nothing)[:, 0] == 1).all())
    for loss in (weak_losses.mil_softmax, weak_losses.mil_log_sum_exp, weak_losses.expand):
        assert math.isfinite(float(loss(scores(), nothing)))
