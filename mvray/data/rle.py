"""Masks as COCO's compressed run lengths: columns of pixels from top to bottom, runs of 0 and 1 by turns.

Shapes: N masks of H x W pixels. Source: pycocotools, common/maskApi.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
        _check_size(run_lengths, height, width)
    if not counts:
        return np.zeros((0, height, width), bool)
    masks_HWN = coco.decode([{"size": [height, width], "counts": run_lengths} for run_lengths in counts])
    return np.ascontiguousarray(masks_HWN.transpose(2, 0, 1)).view(bool)


def compressed(segmentation: Any, height: int, width: int) -> bytes:
    """The compressed run lengths of an annotation's ``segmentation``: polygons, or run lengths as numbers or text.

    Raises ValueError for anything else, for a mask of another size, and for corners that lie further outside of the
    picture than it is large: pycocotools would need memory for all pixels up to there.
    """
    from pycocotools import mask as coco

    try:
        if isinstance(segmentation, list):
            for corners in segmentation:
                _check_polygon(corners, height, width)
            if not segmentation:
                raise ValueError("a mask without polygons")
            parts = coco.frPyObjects(segmentation, height, width)
            return bytes((parts[0] if len(parts) == 1 else coco.merge(parts))["counts"])
        if [int(side) for side in segmentation["size"]] != [height, width]:
            raise ValueError(f"a mask of {segmentation['size'][0]} x {segmentation['size'][1]}")
        run_lengths = segmentation["counts"]
        if isinstance(run_lengths, list):
            numbers = {"size": [height, width], "counts": run_lengths}
            run_lengths = coco.frPyObjects(numbers, height, width)["counts"]
        run_lengths = run_lengths.encode() if isinstance(run_lengths, str) else bytes(run_lengths)
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"no mask ({type(error).__name__}: {error})") from error
    _check_size(run_lengths, height, width)
    return run_lengths


def _check_polygon(corners: Any, height: int, width: int) -> None:
    values = np.asarray(corners)
    if values.ndim != 1 or values.dtype.kind not in "iuf" or len(values) < 6 or len(values) % 2:
        raise ValueError("a mask without polygons of three corners or more")
    x, y = values[::2], values[1::2]
    if not (x.min() >= -width and x.max() <= 2 * width and y.min() >= -height and y.max() <= 2 * height):
        raise ValueError(f"a polygon with corners far outside of {height} x {width}")


def _check_size(run_lengths: bytes, height: int, width: int) -> None:
    if (pixels := _pixels(run_lengths)) != height * width:
        raise ValueError(f"run lengths of {pixels} pixels, not of {height} x {width}")


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
