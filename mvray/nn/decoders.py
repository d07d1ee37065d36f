"""Decoders of segmentation networks: from an encoder's levels (encoders.py) to scores of each class at each place.

Every decoder gives B x K x h x w scores before softmax, at a resolution of its own; the segmenter enlarges them
bilinearly to the picture. ``auxiliary`` is the level whose features an auxiliary head reads, 0 for none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mvray.errors import SettingError
from mvray.nn.encoders import Encoder

Levels = list[Tensor]


class Decoder(Protocol):
    """What every decoder can do."""

    def __call__(self, levels: Levels, indices: list[tuple[Tensor, torch.Size]]) -> Tensor: ...


def enlarged(values_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinearly enlarged to ``size`` (height, width)."""
    return nn.functional.interpolate(values_BCHW, tuple(size), mode="bilinear", align_corners=False)


class FCN(nn.Module):
    """Long, Shelhamer, Darrell 2015: scores of levels 5, 4 (16s), 3 (8s) and 2 (4s), enlarged and summed.

    Behind a VGG fc6 and fc7 are convolutions of ``width`` channels (7 x 7 and 1 x 1, dropout 0.5). Scores start at
    zero. Enlarging is bilinear and fixed. A padding of 3 in fc6 stands for the 100 pixels that the authors put around
    the picture.
    """

    def __init__(self, encoder: Encoder, classes: int, levels: Sequence[int], width: int) -> None:
        super().__init__()
        inputs = encoder.channels[-1]
        self.fc: nn.Module = nn.Identity()
        if width:
            around = 3 * encoder.dilation
            self.fc = nn.Sequential(
                nn.Conv2d(inputs, width, 7, padding=around, dilation=encoder.dilation),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Conv2d(width, width, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
            )
            inputs = width
        self._levels = tuple(levels)
        self.scores = nn.ModuleList(
            nn.Conv2d(inputs if level == 5 else encoder.channels[level - 1], classes, 1) for level in levels
        )
        for layer in self.scores:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, levels: Levels, indices: list[tuple[Tensor, torch.Size]]) -> Tensor:
        summed: Tensor = self.scores[0](self.fc(levels[-1]))
        for level, layer in zip(self._levels[1:], list(self.scores)[1:], strict=True):
            scores: Tensor = layer(levels[level - 1])
            summed = enlarged(summed, scores.shape[2:]) + scores
        return summed


class Skips(nn.Module):
    """U-Net's expanding path (Ronneberger, Fischer, Brox 2015): up by 2, joined with the level, two 3 x 3 convolutions.

    Batch normalisation follows each convolution; the original has none.
    """

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        channels = encoder.channels
        self.ups = nn.ModuleList()
        self.blocks = nn.ModuleList()
        for low, high in zip(reversed(channels[:-1]), reversed(channels[1:]), strict=True):
            self.ups.append(nn.ConvTranspose2d(high, low, 2, 2))
            self.blocks.append(nn.Sequential(*_convolution(2 * low, low), *_convolution(low, low)))
        self.scores = nn.Conv2d(channels[0], classes, 1)

    def forward(self, levels: Levels, indices: list[tuple[Tensor, torch.Size]]) -> Tensor:
        values = levels[-1]
        for level, up, block in zip(reversed(levels[:-1]), self.ups, self.blocks, strict=True):
            larger = up(values)
            if larger.shape[2:] != level.shape[2:]:  # an odd side was rounded
                larger = enlarged(larger, level.shape[2:])
            values = block(torch.cat([level, larger], 1))
        scores: Tensor = self.scores(values)
        return scores


class Unpooling(nn.Module):
    """SegNet (Badrinarayanan, Kendall, Cipolla 2017) and DeconvNet (Noh, Hong, Han 2015): a mirrored VGG.

    Values go back to the places that the max pools took them from. ``transposed``: DeconvNet's transposed convolutions
    with fc6 (7 x 7) and fc7 between; else SegNet's convolutions, without them.
    """

    def __init__(self, encoder: Encoder, classes: int, transposed: bool, width: int) -> None:
        super().__init__()
        channels = encoder.channels
        self.middle: nn.Module = nn.Identity()
        if transposed:
            self.middle = nn.Sequential(
                *_convolution(channels[-1], width, 7),
                *_convolution(width, width, 1),
                *_convolution(width, channels[-1], 7),
            )
        self.unpool = nn.MaxUnpool2d(2, 2)
        counts = [sum(isinstance(layer, nn.Conv2d) for layer in stage) for stage in encoder.stages]
        self.stages = nn.ModuleList()
        for number in reversed(range(len(channels))):
            outputs = channels[max(0, number - 1)]
            sizes = [channels[number]] * counts[number] + [outputs]
            pairs = itertools.pairwise(sizes)
            self.stages.append(nn.Sequential(*(part for pair in pairs for part in _convolution(*pair, 3, transposed))))
        self.scores = nn.Conv2d(channels[0], classes, 1)

    def forward(self, levels: Levels, indices: list[tuple[Tensor, torch.Size]]) -> Tensor:
        values = self.middle(levels[-1])
        for (index, size), stage in zip(reversed(indices), self.stages, strict=True):
            values = stage(self.unpool(values, index, output_size=size[2:]))
        scores: Tensor = self.scores(values)
        return scores


class LargeFOV(nn.Module):
    """DeepLab LargeFOV (Chen et al. 2015): fc6 of 3 x 3, rate 12 and ``width`` channels, fc7, scores; dropout 0.5."""

    def __init__(self, encoder: Encoder, classes: int, width: int, rate: int = 12) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Conv2d(encoder.channels[-1], width, 3, padding=rate, dilation=rate),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        )
        self.scores = _scores(width, classes)

    def forward(self, levels: Levels, indices: list[tuple[Tensor, torch.Size]]) -> Tensor:
        scores: Tensor = self.scores(self.fc(levels[-1]))
        return scores


class Context(nn.Module):
    """Yu, Koltun 2016: a front end that makes scores, and the context module (basic form) that refines them.

    Seven 3 x 3 convolutions of rates 1 1 2 4 8 16 1 on K channels, rectified, which start as the identity, and one of
    1 x 1 that does, too.
    """

    RATES = (1, 1, 2, 4, 8, 16, 1)

    def __init__(self, encoder: Encoder, classes: int, width: int) -> None:
        super().__init__()
        self.front = FCN(encoder, classes, (5,), width)
        nn.init.normal_(self.front.scores[0].weight, std=0.01)  # type: ignore[arg-type]
        self.layers = nn.ModuleList(nn.Conv2d(classes, classes, 3, padding=rate, dilation=rate) for rate in self.RATES)
        self.last = nn.Conv2d(classes, classes, 1)
        for layer in (*self.layers, self.last):
            assert isinstance(layer, nn.Conv2d)
            nn.init.dirac_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, levels: Levels, indices: list[tuple[Tensor, torch.Size]]) -> Tensor:
        values = self.front(levels, indices)
        for layer in self.layers:
            values = torch.relu(layer(values))
        scores: Tensor = self.last(values)
        return scores


class SummedASPP(nn.Module):
    """DeepLab v2 (Chen et al. 2016): four 3 x 3 convolutions of rates 6 12 18 24 to the classes, summed; N(0, 0.01)."""

    def __init__(self, encoder: Encoder, classes: int, rates: Sequence[int] = (6, 12, 18, 24)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_scores(encoder.channels[-1], classes, 3, rate) for rate in rates)

    def forward(self, levels: Levels, indices: list[tuple[Tensor, torch.Size]]) -> Tensor:
        return torch.stack([branch(levels[-1]) for branch in self.branches]).sum(0)


class ASPP(nn.Module):
    """DeepLab v3 (Chen et al. 2017) as torchvision has it, rates 12 24 36 at stride 8; entries under "classifier"."""

    def __init__(self, encoder: Encoder, classes: int, rates: Sequence[int] = (12, 24, 36)) -> None:
        from torchvision.models.segmentation.deeplabv3 import DeepLabHead

        super().__init__()
        self.classifier = DeepLabHead(encoder.channels[-1], classes, tuple(rates))

    def forward(self, levels: Levels, indices: list[tuple[Tensor, torch.Size]]) -> Tensor:
        scores: Tensor = self.classifier(levels[-1])
        return scores


class Plain(nn.Module):
    """One 3 x 3 convolution to a quarter of the channels, dropout 0.1, scores: torchvision's FCNHead."""

    def __init__(self, encoder: Encoder, classes: int, level: int = 5) -> None:
        from torchvision.models.segmentation.fcn import FCNHead

        super().__init__()
        self._level = level
        self.classifier = FCNHead(encoder.channels[level - 1], classes)

    def forward(self, levels: Levels, indices: list[tuple[Tensor, torch.Size]]) -> Tensor:
        scores: Tensor = self.classifier(levels[self._level - 1])
        return scores


class PyramidPooling(nn.Module):
    """PSPNet (Zhao et al. 2017): means over 1, 2, 3, 6 parts a side, each to a quarter of the channels, all joined."""

    def __init__(self, encoder: Encoder, classes: int, width: int, parts: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        inputs = encoder.channels[-1]
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(number), *_convolution(inputs, inputs // len(parts), 1))
            for number in parts
        )
        joined = inputs + len(parts) * (inputs // len(parts))
        self.head = nn.Sequential(*_convolution(joined, width), nn.Dropout(0.1), nn.Conv2d(width, classes, 1))

    def forward(self, levels: Levels, indices: list[tuple[Tensor, torch.Size]]) -> Tensor:
        values = levels[-1]
        means = [enlarged(pool(values), values.shape[2:]) for pool in self.pools]
        scores: Tensor = self.head(torch.cat([values, *means], 1))
        return scores


def take_fully_connected(decoder: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill fc6 and fc7 with a VGG classifier's, where the decoder has them and ``state`` (torchvision's names) too.

    Its fc6 is a convolution of 7 x 7 (Long, Shelhamer, Darrell 2015). Of a wider classifier every nth output is taken,
    and for 3 x 3 every third tap (Chen et al. 2015, section 3.1). Raises SettingError for a width that is no divisor.
    """
    fc6, fc7 = (state.get(f"classifier.{number}.weight") for number in (0, 3))
    for part in decoder.modules():
        if fc6 is None or fc7 is None or not isinstance(part, FCN | LargeFOV) or not isinstance(part.fc, nn.Sequential):
            continue
        first, second = (layer for layer in part.fc if isinstance(layer, nn.Conv2d))
        width, inputs, size, _ = first.weight.shape
        if fc6.shape[1] != inputs * 49:
            continue  # a classifier without a fc6 over 7 x 7 places, as vgg-small's
        if fc6.shape[0] % width:
            raise SettingError(
                f"method.width is {width}, and method.weights have {fc6.shape[0]} channels in fc6; expected a divisor "
                "of them, so that every nth can be taken."
            )
        nth, tap = fc6.shape[0] // width, 1 if size == 7 else 3
        with torch.no_grad():
            first.weight.copy_(fc6.view(-1, inputs, 7, 7)[::nth, :, ::tap, ::tap])
            second.weight.copy_(fc7[::nth, ::nth, None, None])
            for layer, number in ((first, 0), (second, 3)):
                assert layer.bias is not None
                layer.bias.copy_(state[f"classifier.{number}.bias"][::nth])


def _convolution(inputs: int, outputs: int, size: int = 3, transposed: bool = False) -> tuple[nn.Module, ...]:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(inputs, outputs, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # He et al. 2015
    return layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _scores(inputs: int, classes: int, size: int = 1, rate: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, classes, size, padding=rate * (size // 2), dilation=rate)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


DECODERS: Mapping[str, Callable[[Encoder, int, int], nn.Module]] = {
    "fcn32": lambda encoder, classes, width: FCN(encoder, classes, (5,), width),
    "fcn16": lambda encoder, classes, width: FCN(encoder, classes, (5, 4), width),
    "fcn8": lambda encoder, classes, width: FCN(encoder, classes, (5, 4, 3), width),
    "fcn4": lambda encoder, classes, width: FCN(encoder, classes, (5, 4, 3, 2), width),
    "segnet": lambda encoder, classes, width: Unpooling(encoder, classes, False, width),
    "deconvnet": lambda encoder, classes, width: Unpooling(encoder, classes, True, width),
    "unet": lambda encoder, classes, width: Skips(encoder, classes),
    "largefov": LargeFOV,
    "context": Context,
    "aspp_sum": lambda encoder, classes, width: SummedASPP(encoder, classes),
    "aspp": lambda encoder, classes, width: ASPP(encoder, classes),
    "psp": PyramidPooling,
    "plain": lambda encoder, classes, width: Plain(encoder, classes),
}
"""Decoders by name: (encoder, classes, width)."""
