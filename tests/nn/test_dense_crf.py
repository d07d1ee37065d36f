"""The lattice against its own definition and exact Gaussians, the CRF against the paper's formula and pydensecrf."""

from __future__ import annotations

import importlib.util
import itertools
from functools import cache

import numpy as np
import pytest
import torch

from mvray.errors import SettingError
from mvray.nn import CRF, CRFLayers, marginals
from mvray.nn.permutohedral import lattice

HEIGHT, WIDTH, CLASSES = 40, 56, 4
PEER = importlib.util.find_spec("pydensecrf")


def noisy(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores (1 x K x H x W) that are noise around true labels (1 x H x W), and a picture of the labels' colours."""
    rand = torch.Generator().manual_seed(seed)
    y_HW, x_HW = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    labels_HW = ((y_HW - 18) ** 2 + (x_HW - 20) ** 2 < 150).long() + 2 * (x_HW + y_HW // 2 > 45).long()
    colours_K3 = torch.tensor([[60.0, 90.0, 40.0], [190.0, 60.0, 50.0], [80.0, 120.0, 200.0], [230.0, 220.0, 90.0]])
    image_HW3 = colours_K3[labels_HW] + 6 * torch.randn(HEIGHT, WIDTH, 3, generator=rand)
    scores_HWK = torch.nn.functional.one_hot(labels_HW, CLASSES) + torch.randn(HEIGHT, WIDTH, CLASSES, generator=rand)
    image_1HW3 = image_HW3.round().clamp(0, 255).to(torch.uint8)[None]
    return scores_HWK.permute(2, 0, 1)[None], image_1HW3.permute(0, 3, 1, 2), labels_HW[None]


def features(pictures: int = 1, places: int = 14, dims: int = 3, spread: float = 1.5) -> torch.Tensor:
    return spread * torch.randn(pictures, places, dims, generator=torch.Generator().manual_seed(2))


def barycentric(feature_D: np.ndarray) -> dict[tuple[int, ...], float]:
    """The corners around a place and their weights, by trying all simplices near it (Adams et al., section 3.1)."""
    corners = len(feature_D) + 1
    basis = np.zeros((corners, corners - 1))
    for j in range(1, corners):  # columns of equal length at right angles, each sums to 0
        basis[:j, j - 1], basis[j, j - 1] = 1, -j
        basis[:, j - 1] /= np.sqrt(j * (j + 1))
    place = basis @ feature_D * np.sqrt(2 / 3) * corners
    steps, inverse = simplices(corners)
    for multiples in itertools.product(*(range(int(x // corners), int(x // corners) + 2) for x in place)):
        corner = np.array(multiples) * corners
        weights = inverse @ [*(place - corner)[:-1], 1.0]
        for order in np.flatnonzero((weights.min(1) > -1e-9) & (sum(multiples) == 0)):
            points = (corner[:, None] + steps[order]).T
            return {tuple(int(c) for c in point): w for point, w in zip(points, weights[order], strict=True)}
    raise AssertionError("no simplex holds the place")


@cache
def simplices(corners: int) -> tuple[np.ndarray, np.ndarray]:
    """For each order of the coordinates the steps from corner 0 to all (columns); what makes weights of a place."""
    orders = [np.argsort(order) for order in itertools.permutations(range(corners))]
    steps = np.stack([[r - corners * (order >= corners - r) for r in range(corners)] for order in orders])
    steps = steps.transpose(0, 2, 1)
    ones = np.ones((len(steps), 1, corners))
    return steps, np.linalg.inv(np.concatenate([steps[:, :-1], ones], 1))


def defined(features_ND: np.ndarray, values_NK: np.ndarray) -> np.ndarray:
    """Splat, blur and slice as the paper defines them, with a dictionary of points."""
    corners = features_ND.shape[1] + 1
    around = [barycentric(feature) for feature in features_ND]
    points: dict[tuple[int, ...], np.ndarray] = {}
    for weights, value in zip(around, values_NK, strict=True):
        for point, weight in weights.items():
            points[point] = points.get(point, 0) + weight * value
    for axis in range(corners):
        step = -np.ones(corners, int) + corners * (np.arange(corners) == axis)
        points = {
            point: value + sum(points.get(tuple(point + sign * step), 0) for sign in (1, -1)) / 2
            for point, value in points.items()
        }
    sums = [sum(weight * points[point] for point, weight in weights.items()) for weights in around]
    return np.stack(sums) / (1 + 2.0 ** (1 - corners))


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_the_filter_is_splat_blur_slice(dims: int) -> None:
    features_BND = features(2, 8 if dims == 5 else 14, dims, 0.6)
    values_PK = torch.randn(features_BND.shape[:2].numel(), 3, generator=torch.Generator().manual_seed(3)).double()
    expected = [defined(f.double().numpy(), v.numpy()) for f, v in zip(features_BND, values_PK.chunk(2), strict=True)]
    found = lattice(features_BND).filter(values_PK)
    np.testing.assert_allclose(found.numpy(), np.concatenate(expected), atol=2e-5)


def gaussian(features_ND: torch.Tensor) -> torch.Tensor:
    """exp(-|f_i - f_j|^2 / 2), N x N float64, normalised symmetrically."""
    kernel_NN = torch.exp(-(torch.cdist(features_ND.double(), features_ND.double()) ** 2) / 2)
    norm_N = kernel_NN.sum(1).rsqrt()
    return norm_N[:, None] * kernel_NN * norm_N


def test_the_filter_is_nearly_a_gaussian() -> None:
    y_HW, x_HW = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    features_ND = torch.stack([x_HW, y_HW], 2).reshape(-1, 2) / 3.0
    labels_NK = torch.nn.functional.one_hot(noisy()[2].flatten(), CLASSES).double()
    error_NK = lattice(features_ND[None]).normalised().filter(labels_NK) - gaussian(features_ND) @ labels_NK
    assert error_NK.abs().max() < 0.06
    assert error_NK.abs().mean() < 0.01


def test_the_filters_gradient() -> None:
    kernel = lattice(features(2)).normalised()
    values_PK = torch.randn(28, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(kernel.filter, values_PK)
    assert torch.autograd.gradgradcheck(kernel.filter, values_PK)


def test_features_too_far_apart() -> None:
    with pytest.raises(SettingError, match="greater widths"):
        lattice(torch.tensor([[[0.0] * 5, [1e5] * 5]]))


def exact(scores_KHW: torch.Tensor, image_3HW: torch.Tensor, settings: CRF) -> torch.Tensor:
    """Equation 3 and algorithm 1 over all pairs of pixels in float64, kernels normalised symmetrically."""
    y_HW, x_HW = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    places_N2 = torch.stack([x_HW, y_HW], 2).reshape(-1, 2).double()
    colours_N3 = image_3HW.flatten(1).T.double() / settings.colour_width
    near_NN = gaussian(places_N2 / settings.gaussian_width)
    alike_NN = gaussian(torch.cat([places_N2 / settings.position_width, colours_N3], 1))
    kernel_NN = settings.gaussian_weight * near_NN + settings.bilateral_weight * alike_NN
    scores_NK = scores_KHW.flatten(1).T.double()
    marginals_NK = scores_NK.softmax(1)
    for _ in range(settings.iterations):
        marginals_NK = (scores_NK + kernel_NN @ marginals_NK).softmax(1)
    return marginals_NK.T.reshape(scores_KHW.shape)


def test_nearly_exact_inference() -> None:
    settings = CRF(position_width=20, colour_width=13)
    scores, image, labels = noisy()
    found = marginals(scores, image, settings)
    expected = exact(scores[0], image[0], settings)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(1, HEIGHT, WIDTH))
    assert (found[0].argmax(0) == expected.argmax(0)).double().mean() >= 0.97
    assert (found[0] - expected).abs().mean() < 0.02
    before, after = ((each.argmax(1) == labels).double().mean() for each in (scores, found))
    assert before < 0.75
    assert after > 0.95


@pytest.mark.skipif(PEER is None, reason="pydensecrf2, an oracle that mvray does not depend on, is not installed")
@pytest.mark.parametrize(
    "settings", [CRF(), CRF(position_width=80, colour_width=13, bilateral_weight=10, iterations=5)]
)
def test_as_pydensecrf(settings: CRF) -> None:
    from pydensecrf.densecrf import DenseCRF2D

    scores, image, _ = noisy()
    peer = DenseCRF2D(WIDTH, HEIGHT, CLASSES)
    peer.setUnaryEnergy(np.ascontiguousarray(-scores[0].log_softmax(0).flatten(1).numpy()))
    peer.addPairwiseGaussian(sxy=settings.gaussian_width, compat=settings.gaussian_weight)
    peer.addPairwiseBilateral(
        sxy=settings.position_width,
        srgb=settings.colour_width,
        rgbim=np.ascontiguousarray(image[0].permute(1, 2, 0).numpy()),
        compat=settings.bilateral_weight,
    )
    expected = np.array(peer.inference(settings.iterations)).reshape(CLASSES, HEIGHT, WIDTH)
    found = marginals(scores, image, settings)[0].numpy()
    assert (found.argmax(0) == expected.argmax(0)).mean() >= 0.999
    assert np.abs(found - expected).mean() < 1e-4
    assert np.abs(found - expected).max() < 0.02


def test_each_picture_of_a_batch_for_itself() -> None:
    (scores, image, _), (others, other, _) = noisy(), noisy(1)
    other = 255 - other.flip(3)
    together = marginals(torch.cat([scores, others]), torch.cat([image, other]), CRF(iterations=3))
    torch.testing.assert_close(together[:1], marginals(scores, image, CRF(iterations=3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(together[1:], marginals(others, other, CRF(iterations=3)), atol=1e-6, rtol=0)


def test_log_probabilities_and_scores_are_the_same() -> None:
    scores, image, _ = noisy()
    found = [marginals(each, image, CRF(iterations=3)) for each in (scores, scores.log_softmax(1))]
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


def test_layers_begin_as_the_potts_model() -> None:
    scores, image, _ = noisy()
    layers = CRFLayers(CLASSES)
    for iterations in (5, 10):
        found = layers.train(iterations == 5)(scores, image).softmax(1)
        expected = marginals(scores, image, CRF(iterations=iterations))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_layers_gradient() -> None:
    rand = torch.Generator().manual_seed(0)
    scores_BKHW = torch.randn(2, 3, 3, 4, generator=rand).double().requires_grad_()
    images_B3HW = 255 * torch.rand(2, 3, 3, 4, generator=rand)
    layers = CRFLayers(3, CRF(gaussian_weight=1, bilateral_weight=1, colour_width=90), 2).double()

    def run(scores: torch.Tensor, weights: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
        given = {"weights_2K": weights, "costs_KK": costs}
        return torch.func.functional_call(layers, given, (scores, images_B3HW))

    assert torch.autograd.gradcheck(run, (scores_BKHW, layers.weights_2K, layers.costs_KK), fast_mode=True)


def test_training_lowers_the_loss() -> None:
    scores, image, labels = noisy()
    layers = CRFLayers(CLASSES, CRF(gaussian_weight=0.5, bilateral_weight=0.5))
    optimiser = torch.optim.Adam(layers.parameters(), lr=0.1)
    losses = []
    for _ in range(6):
        loss = torch.nn.functional.cross_entropy(layers(scores, image), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"colour_width": 0.0}, {"iterations": -1}, {"bilateral_weight": float("nan")}, {"iterations": 2.5}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            CRF(**wrong)  # type: ignore[arg-type]
