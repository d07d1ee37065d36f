"""DCSM by its formulas, written slowly: one class, one picture and one layer at a time, gradients by autograd."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from mvray.errors import SettingError
from mvray.nn import Saliency, class_saliency

SIZE = (8, 6)
CLASSES = 5


class Net(nn.Module):
    """Convolutions with ReLUs in place, as VGG has them; a score map and a sigmoid of its highest place."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 6, 8, 8)
        self.features = nn.Sequential()
        for before, after in itertools.pairwise(widths):
            self.features.extend([nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)])
        self.head = nn.Conv2d(8, CLASSES, 1)

    def score_maps(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores_BKhw = self.head(self.features(images_BCHW.float() / 255))
        return scores_BKhw, scores_BKhw.amax((2, 3)).sigmoid()


LAYERS = ("features.2", "features.4")


@pytest.fixture
def net() -> Net:
    torch.manual_seed(3)
    return Net().eval()


def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 16, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Guided(torch.autograd.Function):
    """A ReLU through which only what is positive comes back."""

    @staticmethod
    def forward(ctx: object, values: torch.Tensor) -> torch.Tensor:
        ctx.positive = values > 0  # type: ignore[attr-defined]
        return values.clamp_min(0)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clamp_min(0) * ctx.positive  # type: ignore[attr-defined]


def slow(net: Net, picture_3HW: torch.Tensor, candidates: list[int], form: Saliency) -> torch.Tensor:
    """M^c of one picture, a class at a time."""
    relu = Guided.apply if form.guided else torch.relu
    convolutions = [layer for layer in net.features if isinstance(layer, nn.Conv2d)]
    total = torch.zeros(len(candidates), *SIZE)
    for scale in form.scales:
        size = [round(side * scale) for side in picture_3HW.shape[1:]]
        scaled = functional.interpolate(picture_3HW[None].float(), size, mode="bilinear") / 255
        gradients: list[list[torch.Tensor]] = []
        for class_ in candidates:
            inputs = [relu(convolutions[0](scaled))]  # type: ignore[no-untyped-call]
            inputs.append(relu(convolutions[1](inputs[0])))  # type: ignore[no-untyped-call]
            scores = net.head(relu(convolutions[2](inputs[1])))  # type: ignore[no-untyped-call]
            gradients.append(list(torch.autograd.grad(scores[0, class_].sum(), inputs)))
        for layer in range(2):
            g = [
                functional.interpolate(of[layer].abs().amax(1, keepdim=True), SIZE, mode="bilinear")[0, 0]
                for of in gradients
            ]
            for c in range(len(candidates)):
                if not form.subtract:
                    total[c] += g[c] / g[c].max()
                for other in range(len(candidates)):
                    difference = g[c] - g[other]
                    if form.subtract and other != c and difference.max() > 0:
                        total[c] += torch.tanh(3 * difference / difference.max()).clamp_min(0)
    return torch.tanh(3 * total / total.amax((1, 2), keepdim=True))


@pytest.mark.parametrize("form", [Saliency(), Saliency(guided=False), Saliency(subtract=False, scales=(1.0,))])
def test_maps_are_the_papers(net: Net, form: Saliency) -> None:
    form = replace(form, candidates=3)
    with torch.inference_mode():  # as a generator calls it
        saliency = class_saliency(net.score_maps, net, LAYERS, images(), SIZE, form)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())
    for b in range(3):
        expected = slow(net, images()[b], saliency.candidates[b].tolist(), form)
        torch.testing.assert_close(saliency.maps[b], expected, rtol=1e-3, atol=1e-4)


def test_candidates_are_the_likeliest_and_known_classes_come_first(net: Net) -> None:
    with torch.no_grad():
        tags = torch.stack(
            [
                net.score_maps(functional.interpolate(images().float(), scale_factor=scale, mode="bilinear"))[1]
                for scale in (1.0, 0.5)
            ]
        ).amax(0)
    form = Saliency(candidates=2, scales=(1.0, 0.5))
    saliency = class_saliency(net.score_maps, net, LAYERS, images(), SIZE, form)
    for b in range(3):
        order = sorted(range(1, CLASSES), key=lambda k: -float(tags[b, k]))
        assert saliency.candidates[b].tolist() == order[:2]
        torch.testing.assert_close(saliency.probabilities[b], tags[b, order[:2]])
    known = torch.zeros(3, CLASSES)
    known[:, 4] = known[:, 0] = 1
    limited = class_saliency(net.score_maps, net, LAYERS, images(), SIZE, form, known)
    assert limited.candidates[:, 0].tolist() == [4, 4, 4]
    assert class_saliency(net.score_maps, net, LAYERS, images(), SIZE, Saliency()).maps.shape == (3, 4, *SIZE)


def test_mistakes_are_said(net: Net) -> None:
    with pytest.raises(SettingError, match="nosuch"):
        class_saliency(net.score_maps, net, ("nosuch",), images(), SIZE, Saliency())
    for wrong in ({"scales": ()}, {"candidates": 0}, {"least_probability": 1.0}):
        with pytest.raises(SettingError, match=f"saliency.{next(iter(wrong))}"):
            Saliency(**wrong)  # type: ignore[arg-type]
