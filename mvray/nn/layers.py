"""Outputs of a network's layers in one forward pass, by the names that papers use or by their own.

    conv1, conv2 ...   what goes into each max-pool: the last convolution before it, normalised and rectified
                       (VGG16: five, AlexNet: three). ResNets have one max-pool; their stages layer1 to layer4
                       are conv2 to conv5, as He et al. 2016, table 1, call them
    fc1, fc2 ...       the fully connected layers but the one that makes the scores, after their activation;
                       dropout has no part in it
    penultimate        what the last layer with weights gets, whatever the network is
    any dotted name    the output of that layer

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from mvray.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor

PENULTIMATE = "penultimate"
_STAGES = ("layer1", "layer2", "layer3", "layer4")
_NAMES_IN_MESSAGE = 12


def named_layers(module: torch.nn.Module) -> dict[str, str]:
    """The names above that ``module`` has, each with the dotted name of its layer in ``module``.

    Of a method it is its ``network`` that is looked at, where it has one.
    """
    inside = getattr(module, "network", module)
    prefix = "" if inside is module else "network."
    by_name = {f"conv{at}": name for at, name in enumerate(_before_pools(inside), start=1)}
    if "conv1" in by_name and all(hasattr(inside, stage) for stage in _STAGES):
        by_name = {"conv1": by_name["conv1"]} | {f"conv{at}": stage for at, stage in enumerate(_STAGES, start=2)}
    by_name |= {f"fc{at}": name for at, name in enumerate(_fully_connected(inside), start=1)}
    if weighted := _weighted_layers(inside):
        by_name[PENULTIMATE] = weighted[-1]
    return {name: prefix + layer for name, layer in by_name.items()}


class Layers:
    """Reads the layers ``layer_names`` of ``module``, which must be in eval mode, while something runs it.

    Maps are averaged over a grid of at most ``pool`` x ``pool`` places (0: kept as they are). Of a layer that
    is called more than once the last call counts. One read at a time. Raises SettingError for a name that
    does not exist.
    """

    def __init__(self, module: torch.nn.Module, layer_names: Sequence[str], pool: int) -> None:
        assert not module.training, "features of a batch are per sample in eval mode only"
        known = named_layers(module)
        layers = {name: find_layer(module, name, known) for name in layer_names}
        self._names, self._pool = tuple(layer_names), pool
        self._calls: Counter[str] | None = None
        self._reading: _Reading | None = None
        for name, layer in layers.items():
            self._hook(layer, name)

    def read(self, run: Callable[[], Any], whole: bool = False) -> tuple[dict[str, Tensor], Any]:
        """The layers' outputs while ``run`` runs, B x C x H x W or B x C float32, and what it returned.

        The first run counts how often each layer is called; from then on a run ends with the last of
        these calls, and None is returned of it, unless ``whole``. Raises SettingError for a layer that
        takes no part or whose output is no tensor of a row per sample.
        """
        reading = self._reading = _Reading({}, Counter(), None if whole else self._calls)
        returned = None
        try:
            with torch.inference_mode(), suppress(_AllRead):
                returned = run()
        finally:
            self._reading = None
        if missing := [name for name in self._names if name not in reading.outputs]:
            raise SettingError(f"Layer {missing[0]!r} takes no part in a prediction; name one that does.")
        self._calls = reading.called
        return {name: reading.outputs[name] for name in self._names}, returned

    def _hook(self, layer: torch.nn.Module, name: str) -> None:
        if name == PENULTIMATE:
            layer.register_forward_pre_hook(lambda _layer, inputs: self._note(name, inputs[0]))
        else:
            layer.register_forward_hook(lambda _layer, _inputs, output: self._note(name, output))

    def _note(self, name: str, value: Any) -> None:
        reading = self._reading
        if reading is None:
            return  # something else runs the module
        reading.outputs[name] = self._pool_output(name, value)
        reading.called[name] += 1
        if reading.called == reading.calls:
            raise _AllRead

    def _pool_output(self, name: str, value: Any) -> Tensor:
        """A copy: what follows may work in place."""
        if not isinstance(value, torch.Tensor) or value.ndim < 2:
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise SettingError(f"Layer {name!r} gives {shape}; expected a row of numbers or maps for each sample.")
        if value.ndim != 4 or not self._pool:
            return value.float().clone()
        height, width = value.shape[2:]
        grid = min(self._pool, height), min(self._pool, width)
        pooled: Tensor = torch.nn.functional.adaptive_avg_pool2d(value.float(), grid)
        return pooled.clone() if grid == (height, width) else pooled


@dataclass
class _Reading:
    """The outputs of a run so far, and the number of calls of each layer after which the run has all of them."""

    outputs: dict[str, Tensor]
    called: Counter[str]
    calls: Counter[str] | None


class _AllRead(Exception):
    """Ends a forward pass of which the rest is not needed."""


def find_layer(module: torch.nn.Module, name: str, known: Mapping[str, str] | None = None) -> torch.nn.Module:
    """The layer with this dotted name, also without "network." before it, or with one of the names ``known``.

    Raises SettingError that lists the nearest names.
    """
    layers: dict[str, torch.nn.Module] = {key: layer for key, layer in module.named_modules() if key}
    known = known or {}
    for key in (known.get(name, name), f"network.{name}"):
        if key in layers:
            return layers[key]
    nearest = sorted(layers, key=lambda key: -SequenceMatcher(None, name, key).ratio())
    more = len(nearest) - _NAMES_IN_MESSAGE
    raise SettingError(
        f"There is no layer {name!r}; expected one of {', '.join([*known, *nearest[:_NAMES_IN_MESSAGE]])}"
        + (f" and {more} more." if more > 0 else ".")
    )


def _before_pools(module: torch.nn.Module) -> list[str]:
    """What stands right before each max-pool, in the order of the network. Pools that begin a branch have nothing."""
    layers = []
    for parent, inside in module.named_modules():
        children = list(inside.named_children())
        for (before, _), (_, layer) in pairwise(children):
            if isinstance(layer, torch.nn.MaxPool2d):
                layers.append(f"{parent}.{before}".lstrip("."))
    return layers


def _fully_connected(module: torch.nn.Module) -> list[str]:
    """Linear layers near the top (those of attention blocks lie deeper), each with the activation after it.

    The last one makes the scores unless an activation follows.
    """
    linear = [
        name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear) and name.count(".") <= 1
    ]
    with_followers = [_with_followers(module, name) for name in linear]
    if linear and with_followers[-1] == linear[-1]:
        del with_followers[-1]
    return with_followers


def _with_followers(module: torch.nn.Module, name: str) -> str:
    """The last of the normalisations and activations right after the layer ``name`` of a Sequential."""
    parent, _, own = name.rpartition(".")
    inside = module.get_submodule(parent)
    if isinstance(inside, torch.nn.Sequential):
        children = list(inside.named_children())
        at = [key for key, _ in children].index(own)
        for key, layer in children[at + 1 :]:
            if type(layer).__module__.rpartition(".")[2] not in ("batchnorm", "normalization", "activation"):
                break
            own = key
    return f"{parent}.{own}".lstrip(".")


def _weighted_layers(module: torch.nn.Module) -> list[str]:
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [name for name, layer in module.named_modules() if isinstance(layer, kinds)]
