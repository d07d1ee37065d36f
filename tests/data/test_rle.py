"""Run lengths: the same masks come back, and what is no mask of that size is refused."""

import numpy as np
import pytest
import torch

from mvray.data import rle


def by_hand(mask_HW: np.ndarray) -> list[int]:
    """Runs of 0 and 1 by turns, down the columns, slowly."""
    runs, last = [0], 0
    for pixel in mask_HW.T.reshape(-1).tolist():
        if pixel != last:
            runs.append(0)
            last = pixel
        runs[-1] += 1
    return runs


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (48, 64), (240, 320)])
def test_masks_come_back(size: tuple[int, int]) -> None:
    from pycocotools import mask as coco

    draw = np.random.default_rng(0)
    masks_NHW = np.stack([draw.random(size) < share for share in (0, 0.01, 0.5, 0.97, 1)])
    masks_NHW[1, : size[0] // 2] = True
    counts = rle.encode(torch.from_numpy(masks_NHW))
    assert np.array_equal(rle.decode(counts, *size), masks_NHW)
    assert rle.decode(counts, *size).dtype == bool
    for each, mask_HW in zip(counts, masks_NHW, strict=True):
        assert each == coco.frPyObjects({"size": list(size), "counts": by_hand(mask_HW)}, *size)["counts"]


def test_no_masks() -> None:
    assert rle.encode(torch.zeros(0, 4, 5, dtype=torch.bool)) == []
    assert rle.decode([], 4, 5).shape == (0, 4, 5)


@pytest.mark.parametrize("wrong", [b"", b"0", b"343", b"34=1", b"garbage!", b"\xff\xff"])
def test_other_sizes_are_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="not of 4 x 5"):
        rle.decode([wrong], 4, 5)
