"""Entropy, IoU and pointing of attention, written again slowly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mvray.nn import sharpness

RAND = torch.Generator().manual_seed(0)


def slow_entropy(map_Thw: np.ndarray) -> float:
    """Nitta et al., equations (9) and (10), one frame at a time."""
    found = []
    for frame in map_Thw:
        if frame.max() == frame.min():
            continue
        scaled = (frame - frame.min()) / (frame.max() - frame.min())
        counts = np.zeros(10)
        for value in scaled.ravel():
            counts[min(int(value * 10), 9)] += 1
        share = counts / counts.sum()
        found.append(-sum(p * np.log2(p) for p in share if p > 0))
    return float(np.mean(found)) if found else float("nan")


def test_entropy_is_the_papers() -> None:
    maps = torch.rand((3, 4, 7, 5), generator=RAND) ** 3
    found = sharpness.entropy_bits(maps)
    assert found.tolist() == pytest.approx([slow_entropy(each.numpy()) for each in maps], abs=1e-5)


def test_entropy_is_greatest_for_evenly_spread_values_and_0_for_none() -> None:
    even = torch.arange(100).reshape(1, 1, 10, 10) / 99
    assert sharpness.entropy_bits(even).item() == pytest.approx(np.log2(10), abs=1e-2)
    peak = torch.zeros(1, 1, 10, 10)
    peak[..., 3, 3] = 0.4
    expected = -(0.99 * np.log2(0.99) + 0.01 * np.log2(0.01))
    assert sharpness.entropy_bits(peak).item() == pytest.approx(expected, abs=1e-5)


def test_frames_without_a_scale_are_left_out() -> None:
    maps = torch.rand((1, 2, 6, 6), generator=RAND)
    flat = torch.cat([maps, torch.full((1, 3, 6, 6), 0.7)], dim=1)
    assert sharpness.entropy_bits(flat).item() == pytest.approx(sharpness.entropy_bits(maps).item(), abs=1e-6)
    assert sharpness.entropy_bits(torch.ones(1, 2, 4, 4)).isnan().item()


def test_agreement_counts_pixels() -> None:
    masks = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    masks[0, 0, :4, :4] = 1
    masks[0, 1, 4:, 4:] = 1  # frame 2 has none
    maps = torch.zeros(1, 3, 8, 8)
    maps[0, 0, :4, :2], maps[0, 0, 0, 0] = 0.8, 1.0  # half of the mask, its peak inside
    maps[0, 1, :4, :4], maps[0, 1, 5, 5] = 0.6, 0.5  # beside it, 1 pixel inside
    maps[0, 2] = torch.rand((8, 8), generator=RAND)
    iou, pointing = sharpness.agreement(maps, masks)
    assert iou.item() == pytest.approx((8 / 16 + 1 / 32) / 2)
    assert pointing.item() == pytest.approx(0.5)


def test_agreement_of_a_coarse_map_is_that_of_its_enlargement() -> None:
    maps, masks = torch.rand((2, 3, 4, 4), generator=RAND), torch.rand((2, 3, 16, 16), generator=RAND) > 0.7
    large = torch.stack([torch.nn.functional.interpolate(each[None], (16, 16), mode="bilinear")[0] for each in maps])
    for found, expected in zip(sharpness.agreement(maps, masks), sharpness.agreement(large, masks), strict=True):
        torch.testing.assert_close(found, expected)


def test_without_masks_nothing_is_known() -> None:
    iou, pointing = sharpness.agreement(torch.rand((2, 3, 4, 4), generator=RAND), torch.zeros(2, 3, 8, 8))
    assert iou.isnan().all()
    assert pointing.isnan().all()
