"""RoIAlign against torchvision's own, and against the paper's rule written slowly."""

import math

import pytest
import torch
import torchvision

from mvray.nn.roi_align import roi_align

BATCH, CHANNELS, HEIGHT, WIDTH, SCALE = 2, 5, 13, 17, 0.25


def features() -> torch.Tensor:
    return torch.randn(BATCH, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def boxes(count: int = 60) -> torch.Tensor:
    """Inside, across the borders, outside, empty and turned round."""
    rand = torch.Generator().manual_seed(1)
    corners_N2 = torch.rand(count, 2, generator=rand) * torch.tensor([WIDTH, HEIGHT]) / SCALE * 1.4 - 8
    sides_N2 = torch.rand(count, 2, generator=rand) ** 2 * 70
    sides_N2[:3] = torch.tensor([[0.0, 9.0], [0.0, 0.0], [-5.0, 6.0]])
    which_N1 = torch.randint(0, BATCH, (count, 1), generator=rand).float()
    return torch.cat([which_N1, corners_N2, corners_N2 + sides_N2], 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("bins", "samples"), [(7, 0), (14, 0), (7, 2), (1, 1)])
def test_as_torchvision(bins: int, samples: int, aligned: bool, layout: torch.memory_format) -> None:
    ours = roi_align(features().to(memory_format=layout), boxes(), bins, SCALE, samples, aligned)
    theirs = torchvision.ops.roi_align(features(), boxes(), bins, SCALE, samples or -1, aligned)
    assert ours.shape == (60, CHANNELS, bins, bins)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradients_are_torchvisions() -> None:
    made = []
    for align in (roi_align, torchvision.ops.roi_align):
        given = features().requires_grad_()
        out = align(given, boxes(), 7, SCALE, 2, False)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        made.append(given.grad)
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)


def test_no_boxes() -> None:
    assert roi_align(features(), torch.zeros(0, 5), 7, SCALE, 0, True).shape == (0, CHANNELS, 7, 7)


def bilinear(map_HW: torch.Tensor, y: float, x: float) -> float:
    """The map between its places; beyond its outermost places it goes on for one place, then is 0."""
    height, width = map_HW.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    total = 0.0
    for row in range(height):
        for column in range(width):
            total += max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column)) * float(map_HW[row, column])
    return total


def test_the_mean_of_bilinear_samples() -> None:
    """He et al. 2017, section 3: regular points in each bin, bilinear, averaged; nothing is rounded."""
    box = torch.tensor([[1.0, 5.0, 11.0, 49.0, 40.0]])
    found = roi_align(features(), box, 3, SCALE, 0, True)
    x0, y0, x1, y1 = (float(side) * SCALE - 0.5 for side in box[0, 1:])
    count_y, count_x = math.ceil((y1 - y0) / 3), math.ceil((x1 - x0) / 3)
    for row, column in ((0, 0), (1, 2), (2, 1)):
        mean = 0.0
        for i in range(count_y):
            for j in range(count_x):
                y = y0 + (row + (i + 0.5) / count_y) * (y1 - y0) / 3
                x = x0 + (column + (j + 0.5) / count_x) * (x1 - x0) / 3
                mean += bilinear(features()[1, 4], y, x) / (count_y * count_x)
        assert float(found[0, 4, row, column]) == pytest.approx(mean, abs=1e-5)
