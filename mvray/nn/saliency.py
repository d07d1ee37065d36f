"""Saliency: which places of a picture a class's score depends on, class against class.

Shimoda, Yanai 2016, "Distinct class-specific saliency maps for weakly supervised semantic segmentation" (DCSM). With
S_c the sum of class c's scores over all places and x_l the input of layer l:

    g_l^c(i)   = max over channels of |d S_c / d x_l(i)|
    D_l^{c,c'} = max(0, tanh(3 (g_l^c - g_l^c') / max_i (g_l^c - g_l^c')))
    M^c        = sum over layers, scales and c' != c of D_l^{c,c'};  tanh(3 M^c / max_i M^c)

Every scale counts for every candidate, and there are ``candidates`` of them; the authors' code (mat_dcsm) counts for a
class the scales at which its probability is above 0.5, and has more candidates where more classes are.

Without subtraction g_l^c stands for the sum over c'. Guided: where back-propagation passes a ReLU, what is negative
becomes 0 (Springenberg et al. 2015). Shapes: B pictures, K classes, M candidates, H x W pixels, h x w cells of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mvray.errors import SettingError
from mvray.experiment import Settings
from mvray.nn.decoders import enlarged
from mvray.nn.layers import find_layer

SHARPNESS = 3.0
_RELUS = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class Saliency(Settings):
    """``guided``: guided back-propagation. ``subtract``: class against class (DCSM).

    ``scales``: the picture is looked at in these sizes. Candidates are the classes with a probability above
    ``least_probability`` at any scale, filled up to ``candidates`` by the next likely. ``layers``: names of the
    layers whose inputs are looked at, () for the method's own choice (VGG16: conv3_1 to conv5_3). ``sharpness`` is the
    factor in the last tanh, 3 in the paper; with 0 there is none, and half of the maximum is 0.5.
    """

    kind: ClassVar[str] = "saliency_form"
    guided: bool = True
    subtract: bool = True
    scales: tuple[float, ...] = (0.8, 1.0, 1.2)
    candidates: int = 4
    least_probability: float = 0.5
    layers: tuple[str, ...] = ()
    sharpness: float = SHARPNESS

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("scales", bool(self.scales) and min(self.scales) > 0, "one or more values above 0"),
            ("candidates", self.candidates >= 1, "1 or more"),
            ("sharpness", self.sharpness >= 0, "0 or more"),
            ("least_probability", 0 <= self.least_probability < 1, "0 up to below 1"),
        ):
            if not holds:
                raise SettingError(f"saliency.{name} is {getattr(self, name)}; expected {expected}.")


@dataclass(frozen=True)
class ClassMaps:
    """Maps in 0..1 (B x M x h x w) of each picture's candidates (B x M classes, the likeliest first), and how likely
    these are in the picture, at the scale where they are likeliest (B x M)."""

    maps: Tensor
    candidates: Tensor
    probabilities: Tensor


def class_saliency(
    score_maps: Callable[[Tensor], tuple[Tensor, Tensor]],
    module: nn.Module,
    layers: Sequence[str],
    images_BCHW: Tensor,
    size: Sequence[int],
    settings: Saliency,
    labels_BK: Tensor | None = None,
) -> ClassMaps:
    """Saliency maps of ``size`` (h, w) of each picture's candidates.

    ``score_maps`` gives scores of places and probabilities of classes through ``module``, in eval mode (as
    `Method.score_maps`). With ``labels_BK`` the classes that are in the picture come first among the candidates. All
    pictures go through the network once for each scale, and back once for each candidate's place in the order.
    Raises SettingError where a layer does not exist, or has no influence.
    """
    assert not module.training, "samples do not see each other in eval mode only"
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        images_BCHW = images_BCHW.clone() if images_BCHW.is_inference() else images_BCHW
        passes = []
        likeliest_BK: Tensor | None = None
        for scale in settings.scales:
            scaled = [max(1, round(side * scale)) for side in images_BCHW.shape[2:]]
            pictures_BCHW = images_BCHW if scale == 1 else enlarged(images_BCHW.float(), scaled)
            with _watched(module, layers, settings.guided) as inputs:
                scores_BKhw, tags_BK = score_maps(pictures_BCHW)
            passes.append((scores_BKhw, list(inputs)))
            likeliest_BK = tags_BK.detach() if likeliest_BK is None else likeliest_BK.maximum(tags_BK.detach())
        assert likeliest_BK is not None
        candidates_BM = _candidates(likeliest_BK, settings, labels_BK)
        total_BMhw = torch.zeros(*candidates_BM.shape, *size, device=images_BCHW.device)
        for scores_BKhw, inputs in passes:
            for gradients_BMhw in _gradients(scores_BKhw, inputs, candidates_BM, layers):
                maps_BMhw = enlarged(gradients_BMhw, size)
                total_BMhw += _against_others(maps_BMhw) if settings.subtract else _scaled(maps_BMhw)
        maps_BMhw = _scaled(total_BMhw)
        if settings.sharpness:
            maps_BMhw = (settings.sharpness * maps_BMhw).tanh()
    return ClassMaps(maps_BMhw, candidates_BM, likeliest_BK.gather(1, candidates_BM))


def _candidates(tags_BK: Tensor, settings: Saliency, labels_BK: Tensor | None) -> Tensor:
    """The likeliest classes, but the background, B x M; those that are in the picture before all others."""
    order_BK = tags_BK[:, 1:] + (0 if labels_BK is None else 2 * (labels_BK[:, 1:] > 0))
    return order_BK.topk(min(settings.candidates, order_BK.shape[1]), 1).indices + 1


@contextmanager
def _watched(module: nn.Module, layers: Sequence[str], guided: bool) -> Iterator[list[Tensor]]:
    """The inputs of the layers, in the order in which they are reached; autograd records from the first on."""
    inputs: list[Tensor] = []

    def enter(_layer: nn.Module, values: tuple[Any, ...]) -> tuple[Any, ...]:
        values_BCHW = values[0]
        if not inputs:  # what lies before is not needed: its graph, and its backward pass, are left out
            values_BCHW = values_BCHW.detach().requires_grad_()
        inputs.append(values_BCHW)
        return (values_BCHW, *values[1:])

    def clamp(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.clamp_min(0))  # type: ignore[no-untyped-call]

    with ExitStack() as stack:
        for name in layers:
            stack.callback(find_layer(module, name).register_forward_pre_hook(enter).remove)
        for layer in module.modules():
            if guided and isinstance(layer, _RELUS):
                stack.callback(layer.register_forward_hook(clamp).remove)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for parameter in trained:  # autograd then computes no gradient of a weight
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        yield inputs


def _gradients(
    scores_BKhw: Tensor, inputs: Sequence[Tensor], candidates_BM: Tensor, layers: Sequence[str]
) -> Iterator[Tensor]:
    """g_l of the candidates for each layer, B x M x h_l x w_l."""
    if not scores_BKhw.requires_grad:
        raise SettingError(f"None of the layers {', '.join(layers)} has an influence on the scores; name others.")
    scores_BM = scores_BKhw.sum((2, 3)).gather(1, candidates_BM)
    places = candidates_BM.shape[1]
    per_candidate = []
    for place in range(places):  # pictures do not see each other, so one pass backward serves all of them
        gradients = torch.autograd.grad(scores_BM[:, place].sum(), inputs, retain_graph=place + 1 < places)
        per_candidate.append([gradient.abs().amax(1) for gradient in gradients])
    for of_layer in zip(*per_candidate, strict=True):
        yield torch.stack(of_layer, 1)


def _scaled(maps_BMhw: Tensor) -> Tensor:
    """Each map over its maximum; one without anything above 0 stays as it is."""
    highest = maps_BMhw.amax((-2, -1), keepdim=True)
    return maps_BMhw / torch.where(highest > 0, highest, 1)


def _against_others(maps_BMhw: Tensor) -> Tensor:
    """The sum over the other candidates c' of D^{c,c'}."""
    differences_BMMhw = maps_BMhw[:, :, None] - maps_BMhw[:, None]
    return (SHARPNESS * _scaled(differences_BMMhw)).tanh().clamp_min(0).sum(2)
