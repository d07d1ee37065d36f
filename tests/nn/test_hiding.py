"""What is hidden and what is put there, against slow versions of the papers' words."""

import random

import numpy as np
import pytest
import torch
from scipy import stats

from mvray.nn import hiding

DRAWS_B = torch.arange(3000) * 104729 - 5_000_000
AREA, ASPECT = (0.02, 0.4), (0.3, 3.3)


def slow_random_erasing(height: int, width: int, rand: random.Random) -> tuple[float, float, float, float]:
    """Zhong et al. 2017, Algorithm 1, from S_e on, line by line: top, left, height, width."""
    s_l, s_h = AREA
    r_1, r_2 = ASPECT
    while True:
        S_e = rand.uniform(s_l, s_h) * height * width
        r_e = rand.uniform(r_1, r_2)
        H_e, W_e = (S_e * r_e) ** 0.5, (S_e / r_e) ** 0.5
        x_e, y_e = rand.uniform(0, width), rand.uniform(0, height)
        if x_e + W_e <= width and y_e + H_e <= height:
            return y_e, x_e, H_e, W_e


def test_rectangles_are_random_erasings() -> None:
    height, width = 146, 104
    masks = hiding.rectangle_mask(DRAWS_B, height, width, AREA, ASPECT).numpy()
    rows, columns = masks.any(2), masks.any(1)
    assert masks.any((1, 2)).all()
    assert np.array_equal(masks, rows[:, :, None] & columns[:, None, :])  # rectangles, in one piece:
    assert (np.abs(np.diff(rows.astype(int), axis=1, prepend=0, append=0)).sum(1) == 2).all()
    assert (np.abs(np.diff(columns.astype(int), axis=1, prepend=0, append=0)).sum(1) == 2).all()
    found = np.stack((rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)), axis=1)
    rand = random.Random(0)
    expected = np.array([slow_random_erasing(height, width, rand) for _ in DRAWS_B])
    for name, ours, theirs in (
        ("centre, down", found[:, 0] + found[:, 2] / 2, expected[:, 0] + expected[:, 2] / 2),
        ("centre, across", found[:, 1] + found[:, 3] / 2, expected[:, 1] + expected[:, 3] / 2),
        ("area", found[:, 2] * found[:, 3], expected[:, 2] * expected[:, 3]),
        ("aspect", found[:, 2] / found[:, 3], expected[:, 2] / expected[:, 3]),
    ):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3, name


def test_a_rectangle_that_cannot_fit_hides_nothing() -> None:
    assert not hiding.rectangle_mask(DRAWS_B[:50], 10, 1000, (0.5, 0.5), (3.0, 3.3)).any()


def test_share_of_hidden_samples() -> None:
    for probability in (0.0, 0.3, 1.0):
        share = hiding.is_hidden(DRAWS_B, probability).float().mean().item()
        assert abs(share - probability) <= 4 * (probability * (1 - probability) / len(DRAWS_B)) ** 0.5


def test_the_coin_is_independent_of_the_rectangle() -> None:
    chosen = hiding.is_hidden(DRAWS_B, 0.5)
    area = hiding.rectangle_mask(DRAWS_B, 40, 30, AREA, ASPECT).float().mean((1, 2))
    assert stats.ks_2samp(area[chosen].numpy(), area[~chosen].numpy()).pvalue > 1e-3


def test_attention_mask_is_the_map_from_the_threshold_on() -> None:
    maps_BHW = torch.tensor([[[0.0, 0.49, 0.5], [1.0, 0.51, 0.2]]])
    expected = torch.tensor([[[False, False, True], [True, True, False]]])
    assert torch.equal(hiding.attention_mask(maps_BHW, 0.5, 2, 3), expected)
    assert not hiding.attention_mask(torch.zeros(1, 2, 3), 0.5, 20, 30).any()


def test_attention_mask_scales_maps_up_bilinearly() -> None:
    map_HW = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)).double()
    height, width = 35, 24
    mask_HW = hiding.attention_mask(map_HW[None], 0.5, height, width)[0]
    for y in range(height):
        for x in range(width):
            down = min(max((y + 0.5) * 5 / height - 0.5, 0), 4)  # pixel centres, in cells of the map
            across = min(max((x + 0.5) * 4 / width - 0.5, 0), 3)
            top, left = min(int(down), 3), min(int(across), 2)
            b, a = down - top, across - left
            value = (1 - b) * ((1 - a) * map_HW[top, left] + a * map_HW[top, left + 1])
            value += b * ((1 - a) * map_HW[top + 1, left] + a * map_HW[top + 1, left + 1])
            if abs(value - 0.5) > 1e-6:
                assert mask_HW[y, x] == (value >= 0.5)


@pytest.fixture(name="images_BCHW")
def _images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 48, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(name="mask_BHW")
def _mask() -> torch.Tensor:
    return torch.rand(4, 48, 40, generator=torch.Generator().manual_seed(1)) < 0.4


@pytest.mark.parametrize("how", hiding.FILLS)
def test_fill_changes_the_mask_only(how: str, images_BCHW: torch.Tensor, mask_BHW: torch.Tensor) -> None:
    draw_B = DRAWS_B[:4]
    before = images_BCHW.clone()
    filled = hiding.fill(images_BCHW, mask_BHW, how, draw_B, 37)
    assert torch.equal(images_BCHW, before)
    assert filled.dtype == torch.uint8
    hidden = mask_BHW[:, None].expand_as(images_BCHW)
    assert torch.equal(filled[~hidden], images_BCHW[~hidden])
    assert (filled[hidden] != images_BCHW[hidden]).float().mean() > 0.9
    alone = [hiding.fill(images_BCHW[i : i + 1], mask_BHW[i : i + 1], how, draw_B[i : i + 1], 37) for i in range(4)]
    assert torch.equal(torch.cat(alone), filled)


def test_fills(images_BCHW: torch.Tensor) -> None:
    everything, draw_B = torch.ones(4, 48, 40, dtype=torch.bool), DRAWS_B[:4]
    mean = hiding.fill(images_BCHW, everything, "mean", draw_B)
    expected = np.rint(images_BCHW.numpy().astype(np.float64).mean((2, 3)))
    assert np.array_equal(mean.numpy(), np.broadcast_to(expected[:, :, None, None], mean.shape))
    assert (hiding.fill(images_BCHW, everything, "constant", draw_B, 200) == 200).all()
    noise = hiding.fill(images_BCHW, everything, "noise", draw_B)
    assert stats.chisquare(np.bincount(noise.flatten().numpy(), minlength=256)).pvalue > 1e-3


def test_blur_removes_detail_and_keeps_the_light(images_BCHW: torch.Tensor) -> None:
    everything, draw_B = torch.ones(4, 240, 160, dtype=torch.bool), DRAWS_B[:4]
    step = torch.zeros(4, 1, 240, 160, dtype=torch.uint8)
    step[..., 80:] = 200
    checks = (torch.arange(240)[:, None] + torch.arange(160)) % 2
    blurred = hiding.fill((step + (checks * 50).to(torch.uint8)), everything, "blur", draw_B).float()
    assert (blurred[..., :40] - 25).abs().max() <= 1  # checks are gone
    assert (blurred[..., 120:] - 225).abs().max() <= 1
    assert (blurred.diff(dim=3) >= 0).all()  # the edge has become a ramp
    assert blurred.diff(dim=3).max() < 20
    assert (hiding.fill(torch.full_like(step, 255), everything, "blur", draw_B) == 255).all()
