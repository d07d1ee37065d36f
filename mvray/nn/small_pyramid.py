"""The parts of the small Mask R-CNN of detectors.py that torchvision's lacks. Needs torch while it is imported.

Legend: B pictures, R regions, C channels, H x W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from mvray.nn.roi_align import roi_align

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (24, 48, 80, 112)
BLOCKS = (0, 1, 2, 2)
"""Residual blocks of each stage after the convolution that halves the sides."""
OUT = 48
FINEST = "0"


def norm(channels: int) -> torch.nn.GroupNorm:
    """Does not depend on how many pictures or regions come together (Wu and He 2018, arXiv 1803.08494).

    Without any, detectors hardly learn from random weights (He et al. 2018, arXiv 1811.08883, section 3).
    """
    return torch.nn.GroupNorm(8, channels)


class SmallPyramid(torch.nn.Module):
    """B x 3 x H x W to features of `OUT` channels at 1/4, 1/8 and 1/16, named "0", "1" and "2"."""

    out_channels = OUT

    def __init__(self) -> None:
        super().__init__()
        sizes = zip((3, *WIDTHS[:-1]), WIDTHS, BLOCKS, strict=True)
        self.stages = torch.nn.ModuleList(_Stage(*size) for size in sizes)
        self.pyramid = FeaturePyramidNetwork(list(WIDTHS[1:]), OUT, norm_layer=norm)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        levels = OrderedDict()
        for at, stage in enumerate(self.stages):
            images_BCHW = stage(images_BCHW)
            if at:
                levels[str(at - 1)] = images_BCHW
        found: dict[str, Tensor] = self.pyramid(levels)
        return found


class _Stage(torch.nn.Module):
    """Halves the sides, then residual blocks that begin as the identity."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.first = torch.nn.Sequential(*_convolution(inputs, outputs, 2), torch.nn.ReLU(inplace=True))
        self.blocks = torch.nn.ModuleList(_block(outputs) for _ in range(blocks))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        features_BCHW = self.first(features_BCHW)
        for block in self.blocks:
            features_BCHW = torch.relu(features_BCHW + block(features_BCHW))
        return features_BCHW


def _block(channels: int) -> torch.nn.Sequential:
    first, (second, last) = _convolution(channels, channels, 1), _convolution(channels, channels, 1)
    torch.nn.init.zeros_(last.weight)
    return torch.nn.Sequential(*first, torch.nn.ReLU(inplace=True), second, last)


def _convolution(inputs: int, outputs: int, stride: int) -> tuple[torch.nn.Conv2d, torch.nn.BatchNorm2d]:
    layer = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer, torch.nn.BatchNorm2d(outputs)


class RoiPool(MultiScaleRoIAlign):  # type: ignore[misc]
    """R x C x side x side from the finest features alone, which is where the original looks for regions of less
    than 112 x 112 pixels, through our roi_align: 0.42 of the time, there and back, on a CPU."""

    def __init__(self, side: int, samples: int) -> None:
        super().__init__([FINEST], side, samples)

    def forward(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        numbered = [torch.nn.functional.pad(each, (1, 0), value=float(at)) for at, each in enumerate(boxes)]
        finest_BCHW = features[FINEST].contiguous(memory_format=torch.channels_last)
        side, samples = self.output_size[0], self.sampling_ratio
        return roi_align(finest_BCHW, torch.cat(numbered), side, 1 / 4, samples, aligned=False)


class BoxHead(torch.nn.Sequential):
    """R x C x side x side to R x ``width``."""

    def __init__(self, inputs: int, width: int) -> None:
        layers: list[torch.nn.Module] = [torch.nn.Flatten()]
        for size in (inputs, width):
            layers += [torch.nn.Linear(size, width), torch.nn.LayerNorm(width), torch.nn.ReLU(inplace=True)]
        super().__init__(*layers)
