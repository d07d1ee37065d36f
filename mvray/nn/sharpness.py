"""How sharp attention is, and whether it lies on the people and objects of the frame.

Shapes: B clips, T frames, h x w cells of an attention map, H x W pixels of a mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

BINS = 10
FOCUS = 0.5
"""From this share of a frame's highest attention on, a place counts as attended to."""


def to_unit_range(maps_BThw: Tensor) -> Tensor:
    """Each frame's attention scaled to 0..1 by its least and greatest value; NaN where it is the same everywhere."""
    least, greatest = maps_BThw.flatten(2).aminmax(dim=2)
    spread = torch.where(greatest > least, greatest - least, torch.nan)
    return (maps_BThw - least[..., None, None]) / spread[..., None, None]


def entropy_bits(maps_BThw: Tensor) -> Tensor:
    """Entropy of the 10-bin histogram of each frame's attention, mean over the frames, B float32.

    Nitta et al., Object-ABN, equations (9) and (10): scaled to 0..1 by the frame's least and greatest
    value; at most log2(10) = 3.32 bits, smaller is sharper. Frames whose attention is the same
    everywhere have no such scale and are left out; NaN where all are.
    """
    values_BTN = to_unit_range(maps_BThw.float()).flatten(2)
    bins_BTN = (values_BTN * BINS).clamp(max=BINS - 1).floor()
    share_BTK = torch.stack([(bins_BTN == bin_).float().mean(2) for bin_ in range(BINS)], dim=2)
    entropy_BT = torch.special.entr(share_BTK).sum(2) / torch.log(torch.tensor(2.0))
    return _mean(entropy_BT, ~values_BTN[..., 0].isnan())


def agreement(maps_BThw: Tensor, masks_BTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union of attention and mask, and pointing accuracy, both B float32 in 0..1.

    The attention is enlarged bilinearly to the mask's pixels and scaled to 0..1 per frame. IoU: of the
    places with at least `FOCUS`, and the mask. Pointing (Zhang et al. 2018, "Top-down neural attention
    by excitation backprop", section 4.1): whether the place with the highest attention lies in the
    mask. Means over the frames that have a mask and attention with a scale; NaN where none has.
    """
    masks_BTHW = masks_BTHW > 0
    # bilinear in space alone: frames do not mix
    large_BTHW = torch.nn.functional.interpolate(
        maps_BThw.float(), masks_BTHW.shape[2:], mode="bilinear", align_corners=False
    )
    large_BTHW = to_unit_range(large_BTHW)
    known_BT = masks_BTHW.flatten(2).any(2) & ~large_BTHW[..., 0, 0].isnan()
    focus_BTHW = large_BTHW >= FOCUS
    both_BT = (focus_BTHW & masks_BTHW).flatten(2).sum(2)
    either_BT = (focus_BTHW | masks_BTHW).flatten(2).sum(2)
    at_BT = large_BTHW.nan_to_num().flatten(2).argmax(2)
    hit_BT = masks_BTHW.flatten(2).gather(2, at_BT[..., None])[..., 0]
    return _mean(both_BT / either_BT.clamp(min=1), known_BT), _mean(hit_BT.float(), known_BT)


def _mean(values_BT: Tensor, known_BT: Tensor) -> Tensor:
    """Mean over the known frames, B; NaN for a clip without one."""
    return torch.where(known_BT, values_BT, 0).sum(1) / known_BT.sum(1).float()
