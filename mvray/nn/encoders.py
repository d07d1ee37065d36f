"""Networks by name as encoders: their features at strides 2, 4, 8, 16 and 32, or dilated to keep a finer stride.

Dilation in place of striding is Chen et al. 2015 (DeepLab) and Yu, Koltun 2016. Level l (1 to 5) is the last feature
map at stride 2^l; where the network is dilated, deeper levels stay at the output stride.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mvray.errors import SettingError
from mvray.nn import networks

LEVELS = 5
STRIDES = (8, 16, 32)


class Encoder(nn.Module):
    """``network`` without what makes its scores. ``channels`` are those of the levels, from 1 to 5."""

    def __init__(self, name: str, stride: int = 32, weights: str = "", indices: bool = False) -> None:
        super().__init__()
        network = networks.network(name, 2, weights)  # its head is not used
        self.network, stages = _staged(network, name)
        if stride not in STRIDES:
            raise SettingError(f"method.stride is {stride}; expected one of {', '.join(map(str, STRIDES))}.")
        _dilate(stages[{8: 3, 16: 4, 32: 5}[stride] :], is_vgg(name))
        self.stages = [list(stage) for stage in stages]  # a plain list: the network has the parameters already
        self.channels = _channels(self.stages)
        self.dilation = 32 // stride
        """What a layer behind the last level is dilated by to see as far as it would without dilation."""
        self._indices = indices
        if indices:
            self._take_indices(name)

    def part_of(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of the encoder "encoder" of another network. Raises SettingError where they do not fit."""
        own = self.state_dict()
        theirs = {
            name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")
        }
        if wrong := [name for name in own if name not in theirs or theirs[name].shape != own[name].shape]:
            raise SettingError(
                f"The weights to start from are of another network: {len(wrong)} of {len(own)} entries of the encoder "
                f"do not fit, such as {wrong[0]}. Start from a step with the same method.network."
            )
        return {name: theirs[name] for name in own}

    def deep_layers(self, prefix: str = "") -> tuple[str, ...]:
        """The names of the convolutions, or blocks of them, of stages 3 to 5: for VGG16 conv3_1 to conv5_3."""
        deep = {id(layer) for stage in self.stages[2:] for layer in stage if networks.has_convolution(layer)}
        return tuple(f"{prefix}{name}" for name, layer in self.named_modules() if id(layer) in deep)

    def _take_indices(self, name: str) -> None:
        pools = [layer for stage in self.stages for layer in stage if isinstance(layer, nn.MaxPool2d)]
        if len(pools) != LEVELS:
            raise SettingError(
                f"method.network is {name}, which has {len(pools)} max pools; unpooling needs {LEVELS}: expected "
                "vgg16 or another VGG."
            )
        for pool in pools:
            pool.return_indices = True

    def forward(self, pictures_BCHW: Tensor) -> list[Tensor]:
        """The features of levels 1 to 5."""
        return self.with_indices(pictures_BCHW)[0]

    def with_indices(self, pictures_BCHW: Tensor) -> tuple[list[Tensor], list[tuple[Tensor, torch.Size]]]:
        """The features, and for each level the indices of its max pool with the size before it."""
        values, levels = pictures_BCHW, []
        indices: list[tuple[Tensor, torch.Size]] = []
        for stage in self.stages:
            for layer in stage:
                if self._indices and isinstance(layer, nn.MaxPool2d):
                    before = values.shape
                    values, index = layer(values)
                    indices.append((index, before))
                else:
                    values = layer(values)
            levels.append(values)
        return levels, indices


def is_vgg(name: str) -> bool:
    return name.startswith("vgg")


def _staged(network: nn.Module, name: str) -> tuple[nn.Module, list[list[nn.Module]]]:
    """The network without its head, and its layers in five stages, each halving the size once."""
    if isinstance(features := getattr(network, "features", None), nn.Sequential):
        layers = list(features)
        kept: nn.Module = nn.Module()
        kept.features = features
        stages = _cut(layers, at_end=is_vgg(name))
    elif all(hasattr(network, f"layer{i}") for i in range(1, 5)):
        parts = dict(network.named_children())
        kept = nn.Module()
        for part in parts:
            if part not in ("avgpool", "fc"):
                kept.add_module(part, parts[part])
        first = [parts["conv1"], parts["bn1"], parts["relu"]]
        blocks = [list(parts[f"layer{i}"].children()) for i in (1, 2, 3, 4)]
        stages = [first, [parts["maxpool"], *blocks[0]], *blocks[1:]]
    else:
        stages = []
    if len(stages) != LEVELS:
        raise SettingError(
            f"method.network is {name}, whose layers do not halve the size {LEVELS} times; expected a "
            "VGG, a ResNet, a MobileNet or an EfficientNet."
        )
    return kept, stages


def _cut(layers: Sequence[nn.Module], at_end: bool) -> list[list[nn.Module]]:
    """Layers in stages: cut after each halving (VGG's pools), or before it (a strided block is its stage's first)."""
    stages: list[list[nn.Module]] = [[]]
    for number, layer in enumerate(layers):
        halves = _stride(layer) == 2
        if halves and not at_end and number:
            stages.append([])
        stages[-1].append(layer)
        if halves and at_end:
            stages.append([])
    return [stage for stage in stages if stage]


def _stride(layer: nn.Module) -> int:
    stride = 1
    for part in layer.modules():
        if isinstance(part, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            step = part.stride if isinstance(part.stride, int) else part.stride[0]
            stride = max(stride, int(step))
    return stride


def _dilate(stages: Sequence[Sequence[nn.Module]], pooled: bool) -> None:
    """Take the halvings of these stages away; what follows each sees twice as far apart.

    As torchvision's ``replace_stride_with_dilation`` does it, whose weights expect that: a strided convolution keeps
    the dilation of what comes before it. A pool becomes one of 3 x 3 that moves by one (DeepLab LargeFOV).
    """
    dilation = 1
    for stage in stages:
        for layer in stage:
            for part in layer.modules():
                if isinstance(part, nn.MaxPool2d):
                    part.kernel_size, part.stride, part.padding = 3, 1, 1
                    dilation *= 2
                elif isinstance(part, nn.Conv2d):
                    strided = part.stride[0] == 2
                    part.stride = (1, 1)
                    if part.kernel_size[0] > 1:
                        _set_dilation(part, dilation)
                    halved = strided and part.kernel_size[0] > 1
                    dilation *= 2 if halved else 1


def _set_dilation(layer: nn.Conv2d, dilation: int) -> None:
    layer.dilation = (dilation, dilation)
    if isinstance(layer.padding, tuple):
        layer.padding = tuple(dilation * (size // 2) for size in layer.kernel_size)


def _channels(stages: Sequence[Sequence[nn.Module]]) -> tuple[int, ...]:
    """The channels of each level: those of the last convolution that is on the way."""
    channels: list[int] = []
    for stage in stages:
        outputs = channels[-1] if channels else 3
        for layer in stage:
            convolutions = [part for part in layer.modules() if isinstance(part, nn.Conv2d)]
            main = [part for part in convolutions if not _is_shortcut(layer, part)]
            if main:
                outputs = main[-1].out_channels
        channels.append(outputs)
    return tuple(channels)


def _is_shortcut(block: nn.Module, layer: nn.Module) -> bool:
    shortcut = getattr(block, "downsample", None)
    return shortcut is not None and any(part is layer for part in shortcut.modules())
