"""X3D by name: a small network for clips, expanded step by step from a tiny one.

Feichtenhofer 2020, "X3D: Expanding Architectures for Efficient Video Recognition", arXiv 2004.04730.
All sizes follow from the paper's expansion factors (section 3, table 1), rounded as pytorchvideo
0.1.5 rounds: widths to the nearest multiple of 8 that is not below 0.9 of the wanted, depths up, the
width inside a bottleneck down. So the public Kinetics-400 checkpoints of pytorchvideo fit, and the
scores are the same: ours are before softmax, pytorchvideo's hub gives them after it.

Clips are B x 3 x T x H x W floats, normalised, of any size. The state dict does not depend on the
size: the head averages over whatever is there. At the size of pretraining (see `SIZES`) that is what
pytorchvideo does; for larger clips pytorchvideo slides a window of the native size and averages the
softmax of each, and smaller ones it refuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mvray.errors import SettingError
from mvray.nn import weights as files
from mvray.nn import x3d_layers as layers


@dataclass(frozen=True)
class Size:
    """The factors by which the paper's first network, X2D, is expanded, and the features before the classifier."""

    depth: float = 2.2
    width: float = 2.0
    features: int = 2048


SIZES: Mapping[str, Size] = {
    # Not of the paper: for two CPU cores and clips of about 8 x 64 x 64 to 8 x 96 x 96.
    "x3d-tiny": Size(depth=0.4, width=1.0, features=256),
    # The next three differ in the clips of their pretraining: 4 x 160 x 160, 13 x 160 x 160, 16 x 224 x 224.
    "x3d-xs": Size(),
    "x3d-s": Size(),
    "x3d-m": Size(),
    "x3d-l": Size(depth=5.0),  # 16 x 312 x 312
}
NAMES = tuple(SIZES)

BOTTLENECK = 2.25
"""A bottleneck's inner width by its outer one, the same in all of them."""
SQUEEZE = 1 / 16
_X2D_WIDTHS, _X2D_DEPTHS = (12, 24, 48, 96), (1, 2, 5, 3)
_EXTRACTOR_BLOCKS = 4
"""Stem, res2, res3, res4: what gives 16 x 14 x 14 for 16 x 224 x 224."""


def check_name(name: str) -> None:
    """Raises SettingError, with the names that there are, where no X3D is called ``name``. Does not need torch."""
    if name not in SIZES:
        raise SettingError(f"There is no X3D network {name!r}; expected one of {', '.join(NAMES)}.")


def x3d(name: str, classes: int, weights: str = "", dropout: float = 0.5) -> torch.nn.Module:
    """The network called ``name`` with ``classes`` outputs: B x 3 x T x H x W to scores before softmax, B x K.

    Randomly initialised from torch's seed as pytorchvideo does. ``weights`` is a path or an http(s)
    or file URL (see weights.load) of a checkpoint of the same network; the last layer stays random
    where it has another number of classes. ``dropout`` is the rate before that layer. Raises
    SettingError for an unknown name, DataError for weights that do not fit.
    """
    check_name(name)
    size = SIZES[name]
    widths = [round_width(width, size.width) for width in _X2D_WIDTHS]
    stages, inputs = [], widths[0]
    for width, depth in zip(widths, _X2D_DEPTHS, strict=True):
        inner = int(BOTTLENECK * width)
        stages.append(layers.Stage(math.ceil(size.depth * depth), inputs, inner, width, 2, round_width(inner, SQUEEZE)))
        inputs = width
    head = layers.Head(inputs, inner, size.features, classes, dropout)
    model = layers.X3D(layers.Stem(widths[0]), *stages, head)
    layers.initialise(model)
    if weights:
        files.load(model, name, weights, "blocks.5.proj")
    return model


def round_width(width: int, factor: float) -> int:
    """``width`` times ``factor`` as a multiple of 8, at least 8, not below 0.9 of it (pytorchvideo's round_width)."""
    exact = width * factor
    nearest = max(8, int(exact + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * exact else nearest


def split(network: torch.nn.Module) -> tuple[torch.nn.Sequential, torch.nn.Sequential]:
    """The network in two: extractor (stem, res2, res3, res4; sides / 16) and perception (res5, head).

    One after the other they are the network; they share its parameters. For X3D-M at 16 x 224 x 224 the
    extractor gives 96 x 16 x 14 x 14 (Object-ABN, section 3 of its paper: where attention is applied).
    """
    blocks = list(network.get_submodule("blocks").children())
    return torch.nn.Sequential(*blocks[:_EXTRACTOR_BLOCKS]), torch.nn.Sequential(*blocks[_EXTRACTOR_BLOCKS:])


def split_width(name: str) -> int:
    """The number of channels between the two parts of the network called ``name``."""
    check_name(name)
    return round_width(_X2D_WIDTHS[2], SIZES[name].width)
