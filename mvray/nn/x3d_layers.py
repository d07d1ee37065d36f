"""The layers of X3D (Feichtenhofer 2020, arXiv 2004.04730, table 1): stem, residual stage, head.

Attributes have the names that pytorchvideo gives them, so that its checkpoints fit. Two of them
mislead: in the stem, ``conv_t`` is the spatial convolution and ``conv_xy`` the temporal one.

Shapes: B clips, C channels, T frames, H x W pixels, K classes. This file needs torch while it is
imported; methods go through x3d.py.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional as F

from mvray.nn.conv3d import Conv3d, quick_layout

if TYPE_CHECKING:
    from torch import Tensor

POINT = (1, 1, 1)


class Stem(nn.Module):
    """B x 3 x T x H x W to B x C x T x H/2 x W/2: convolution in space, then depthwise in time, ``frames`` long."""

    def __init__(self, width: int, frames: int = 5) -> None:
        super().__init__()
        space, time = Conv3d(3, width, (1, 3, 3), (1, 2, 2)), Conv3d(width, width, (frames, 1, 1), groups=width)
        self.conv = nn.Sequential(OrderedDict(conv_t=space, conv_xy=time))
        self.norm = nn.BatchNorm3d(width)

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        return F.relu_(self.norm(self.conv(quick_layout(clips_BCTHW))))


class SqueezeExcitation(nn.Module):
    """Each channel times a factor in 0..1 that the means of all channels decide (Hu et al. 2018)."""

    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Conv3d(width, reduced, POINT, bias=True), nn.ReLU(), Conv3d(reduced, width, POINT, bias=True), nn.Sigmoid()
        )

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        scaled_BCTHW: Tensor = features_BCTHW * self.block(features_BCTHW.mean((2, 3, 4), keepdim=True))
        return scaled_BCTHW


class Bottleneck(nn.Module):
    """1 x 1 x 1 to ``inner`` channels, depthwise 3 x 3 x 3, squeeze and excitation, swish, 1 x 1 x 1 to ``outputs``."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, squeeze: int) -> None:
        super().__init__()
        self.conv_a = Conv3d(inputs, inner, POINT)
        self.norm_a = nn.BatchNorm3d(inner)
        self.conv_b = Conv3d(inner, inner, (3, 3, 3), (1, stride, stride), groups=inner)
        excitation = SqueezeExcitation(inner, squeeze) if squeeze else nn.Identity()
        self.norm_b = nn.Sequential(nn.BatchNorm3d(inner), excitation)
        self.conv_c = Conv3d(inner, outputs, POINT)
        self.norm_c = nn.BatchNorm3d(outputs)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        inner = F.relu_(self.norm_a(self.conv_a(features_BCTHW)))
        output: Tensor = self.norm_c(self.conv_c(F.silu(self.norm_b(self.conv_b(inner)))))
        return output


class Block(nn.Module):
    """A bottleneck beside a shortcut, added, rectified."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, squeeze: int) -> None:
        super().__init__()
        self.branch1_conv = self.branch1_norm = None
        if inputs != outputs or stride != 1:
            self.branch1_conv = Conv3d(inputs, outputs, POINT, (1, stride, stride))
        if inputs != outputs:  # pytorchvideo's checkpoints have no norm where only the stride differs
            self.branch1_norm = nn.BatchNorm3d(outputs)
        self.branch2 = Bottleneck(inputs, inner, outputs, stride, squeeze)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        shortcut = features_BCTHW if self.branch1_conv is None else self.branch1_conv(features_BCTHW)
        shortcut = shortcut if self.branch1_norm is None else self.branch1_norm(shortcut)
        # Normalisation needs its input again, not its output: adding and rectifying may work in place.
        return F.relu_(self.branch2(features_BCTHW).add_(shortcut))


class Stage(nn.Module):
    """``depth`` blocks, the first with ``stride`` in space; every second one squeezes to ``squeeze`` channels."""

    def __init__(self, depth: int, inputs: int, inner: int, outputs: int, stride: int, squeeze: int) -> None:
        super().__init__()
        first = Block(inputs, inner, outputs, stride, squeeze)
        rest = (Block(outputs, inner, outputs, 1, 0 if at % 2 else squeeze) for at in range(1, depth))
        self.res_blocks = nn.Sequential(first, *rest)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        output: Tensor = self.res_blocks(features_BCTHW)
        return output


class ProjectedPool(nn.Module):
    """1 x 1 x 1 to ``inner`` channels, mean over time and space, linear to ``outputs``, each rectified."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.pre_conv = Conv3d(inputs, inner, POINT)
        self.pre_norm = nn.BatchNorm3d(inner)
        self.post_conv = Conv3d(inner, outputs, POINT)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        inner = F.relu_(self.pre_norm(self.pre_conv(features_BCTHW)))
        return F.relu_(self.post_conv(inner.mean((2, 3, 4), keepdim=True)))


class Head(nn.Module):
    """B x C x T x H x W to class scores before softmax, B x K, for any T, H and W."""

    def __init__(self, inputs: int, inner: int, features: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.pool = ProjectedPool(inputs, inner, features)
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(features, classes)

    def forward(self, features_BCTHW: Tensor) -> Tensor:
        scores: Tensor = self.proj(self.dropout(self.pool(features_BCTHW).flatten(1)))
        return scores


class X3D(nn.Module):
    """``blocks`` one after the other: stem, res2, res3, res4, res5, head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        for block in self.blocks:
            clips_BCTHW = block(clips_BCTHW)
        return clips_BCTHW


def initialise(module: nn.Module) -> None:
    """Random weights as pytorchvideo draws them, from torch's seed.

    Convolutions: He et al. 2015 by the number of outputs; linear layers: deviation 0.01; biases 0; the
    last normalisation of a bottleneck starts at 0, so that a block begins as its shortcut (Goyal et al. 2017).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
        if isinstance(layer, nn.Conv3d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
        if isinstance(layer, Bottleneck):
            nn.init.zeros_(layer.norm_c.weight)
