"""Hides parts of pictures: masks say which pixels, fills say what replaces them.

Pictures are B x C x H x W uint8 before and after; masks are B x H x W, True where the picture is
hidden. Every random choice comes from the samples' draws (draws.py), so a sample is hidden alike in
any batch and on any device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from mvray.nn import draws

if TYPE_CHECKING:
    from torch import Tensor

Fill = Literal["mean", "constant", "noise", "blur"]
FILLS: tuple[str, ...] = get_args(Fill)

# Streams of a sample's draw, one per use.
_COIN, _RECTANGLE, _NOISE = 101, 102, 103
_ATTEMPTS = 64
_BLUR_CELLS = 24


def is_hidden(draw_B: Tensor, probability: float) -> Tensor:
    """Which samples are hidden at all: True with ``probability``, B bool."""
    return draws.uniform(draw_B, _COIN) < probability


def rectangle_mask(
    draw_B: Tensor, height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> Tensor:
    """One random rectangle per sample: Random Erasing, Zhong et al. 2017 (arXiv 1708.04896), Algorithm 1.

    Uniform share of the area in ``area``, uniform aspect (height / width) in ``aspect``, uniform
    corner; drawn again until it lies inside the picture. Here, 64 attempts are drawn at once and the
    first that fits is taken; should none fit, nothing is hidden.
    """
    share, ratio, left, top = draws.uniform(draw_B, _RECTANGLE, (4, _ATTEMPTS)).double().unbind(1)
    share = (area[0] + share * (area[1] - area[0])) * height * width
    ratio = aspect[0] + ratio * (aspect[1] - aspect[0])
    high, wide = torch.sqrt(share * ratio), torch.sqrt(share / ratio)
    top, left = top * height, left * width
    fits = (top + high <= height) & (left + wide <= width)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    top, left, high, wide = (side.gather(1, first) for side in (top, left, high, wide))
    y = torch.arange(height, device=draw_B.device) + 0.5  # a pixel is hidden where its centre is
    x = torch.arange(width, device=draw_B.device) + 0.5
    rows_BH = (y >= top) & (y < top + high)
    columns_BW = (x >= left) & (x < left + wide)
    return rows_BH[:, :, None] & columns_BW[:, None, :] & fits.any(1)[:, None, None]


def attention_mask(maps_BHW: Tensor, threshold: float, height: int, width: int) -> Tensor:
    """The "red" region of attention maps in 0..1: at least ``threshold``, B x ``height`` x ``width``.

    Maps of another size than the pictures are scaled up first, bilinearly as Grad-CAM's figures are.
    """
    if maps_BHW.shape[1:] != (height, width):
        size = (height, width)
        maps_BHW = torch.nn.functional.interpolate(maps_BHW[:, None].float(), size, mode="bilinear")[:, 0]
    return maps_BHW >= threshold


def fill(images_BCHW: Tensor, mask_BHW: Tensor, how: str, draw_B: Tensor, constant: int = 0) -> Tensor:
    """The pictures with what ``mask_BHW`` covers replaced.

    "mean": the mean of that whole picture, hidden part included, per channel. "constant": the value
    ``constant`` (0 is black). "noise": uniform 0..255, each pixel and channel by itself. "blur": the
    picture with all detail below 1/24 of its longer side removed.
    """
    if how == "mean":
        value = _mean(images_BCHW)
    elif how == "constant":
        value = torch.full_like(images_BCHW[:1, :1, :1, :1], constant)
    elif how == "noise":
        value = draws.noise(draw_B, _NOISE, tuple(images_BCHW.shape[1:]))
    else:
        assert how == "blur", f"unknown fill {how!r}"
        value = _blur(images_BCHW)
    return torch.where(mask_BHW[:, None], value, images_BCHW)


def _mean(images_BCHW: Tensor) -> Tensor:
    pixels = images_BCHW.shape[2] * images_BCHW.shape[3]
    total = images_BCHW.sum((2, 3), keepdim=True, dtype=torch.int64)
    return ((2 * total + pixels) // (2 * pixels)).to(torch.uint8)  # rounded in integers: alike on any device


def _blur(images_BCHW: Tensor) -> Tensor:
    """Mean over the cells of a coarse grid, then over 3 x 3 cells, then linear between their centres."""
    functional = torch.nn.functional
    height, width = images_BCHW.shape[2:]
    cell = max(height, width) / _BLUR_CELLS
    grid = (max(1, round(height / cell)), max(1, round(width / cell)))
    coarse = functional.adaptive_avg_pool2d(images_BCHW.float(), grid)
    coarse = functional.avg_pool2d(coarse, 3, stride=1, padding=1, count_include_pad=False)
    fine = functional.interpolate(coarse, (height, width), mode="bilinear")
    return fine.round().clamp(0, 255).to(torch.uint8)
