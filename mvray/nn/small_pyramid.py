"""A small feature pyramid for detectors.mask_rcnn. This file needs torch while it is imported."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torchvision.ops import FeaturePyramidNetwork

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (24, 48, 80, 112)
OUT = 48


class SmallPyramid(torch.nn.Module):
    """B x 3 x H x W to features of `OUT` channels at 1/4, 1/8 and 1/16, named "0", "1" and "2"."""

    out_channels = OUT

    def __init__(self) -> None:
        super().__init__()
        sizes = zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)
        self.stages = torch.nn.ModuleList(_stage(inputs, outputs) for inputs, outputs in sizes)
        self.pyramid = FeaturePyramidNetwork(list(WIDTHS[1:]), OUT)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        levels = OrderedDict()
        for at, stage in enumerate(self.stages):
            images_BCHW = stage(images_BCHW)
            if at:
                levels[str(at - 1)] = images_BCHW
        found: dict[str, Tensor] = self.pyramid(levels)
        return found


def _stage(inputs: int, outputs: int) -> torch.nn.Module:
    def convolution(inputs: int, stride: int) -> list[torch.nn.Module]:
        layer = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return [layer, torch.nn.BatchNorm2d(outputs), torch.nn.ReLU(inplace=True)]

    return torch.nn.Sequential(*convolution(inputs, 2), *convolution(outputs, 1))
