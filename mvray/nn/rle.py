"""Masks as COCO's compressed run lengths: columns of pixels from top to bottom, runs of 0 and 1 by turns.

Shapes: N masks of H x W pixels. Source: pycocotools, common/maskApi.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor


def encode(masks_NHW: Tensor) -> list[bytes]:
    """The run lengths of boolean masks on any device, in COCO's compressed form."""
    from pycocotools import mask as coco

    # Columns are put next to each other where the masks are, so that they are moved and turned only once.
    turned_NWH = masks_NHW.transpose(1, 2).contiguous().view(torch.uint8).cpu().numpy()
    return [rle["counts"] for rle in coco.encode(turned_NWH.T)] if len(turned_NWH) else []


def decode(counts: Sequence[bytes], height: int, width: int) -> np.ndarray:
    """The masks, N x H x W bool, of compressed run lengths. Raises ValueError for those of another size."""
    from pycocotools import mask as coco

    for run_lengths in counts:
        if (pixels := _pixels(run_lengths)) != height * width:
            raise ValueError(f"run lengths of {pixels} pixels, not of {height} x {width}")
    if not counts:
        return np.zeros((0, height, width), bool)
    masks_HWN = coco.decode([{"size": [height, width], "counts": run_lengths} for run_lengths in counts])
    return np.ascontiguousarray(masks_HWN.transpose(2, 0, 1)).view(bool)


def _pixels(counts: bytes) -> int:
    """The number of pixels of all runs; pycocotools does not initialise the pixels that runs leave out.

    A run is a little-endian number of 5 bits a character from "0" on, with its sign and a bit that says
    whether it goes on; from the fourth run on it is the difference to the run before the last one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return sum(runs) if not shift and min(runs, default=-1) >= 0 else -1
