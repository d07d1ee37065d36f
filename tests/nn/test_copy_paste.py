"""Copy-paste: what is pasted is the next sample's, whole, at one place; nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mvray.nn.copy_paste import CopyPaste

K = 4


def given(samples: int = 3, frames: int = 1, size: int = 32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames of one grey each; in the middle of each sample's frames a square of its own colour, instance 2."""
    count = samples * frames
    frames_NCHW = torch.full((count, 3, size, size), 0.5)
    masks_NHW = torch.zeros(count, size, size, dtype=torch.uint8)
    middle = slice(size // 2 - 5, size // 2 + 5)
    for n in range(count):
        frames_NCHW[n, :, middle, middle] = 0.6 + 0.1 * (n // frames)
        masks_NHW[n, middle, middle] = 2
    labels_NK = torch.full((count, K), -1)
    labels_NK[:, 1] = torch.arange(count) // frames
    return frames_NCHW, masks_NHW, labels_NK, torch.arange(samples) * 7919 + 3


def test_pastes_the_next_samples_instances() -> None:
    frames_NCHW, masks_NHW, labels_NK, draw_B = given()
    made_NCHW, numbers_NHW, of_NK = CopyPaste(1.0).train()(frames_NCHW, masks_NHW, labels_NK, draw_B)
    assert of_NK.shape == (3, 2 * K)
    assert torch.equal(of_NK[:, :K], labels_NK)
    for n in range(3):
        pasted = numbers_NHW[n] == 2 + K
        assert pasted.any()
        assert of_NK[n, K + 1] == (n + 1) % 3
        own = numbers_NHW[n] == 2
        assert torch.equal(own, (masks_NHW[n] == 2) & ~pasted)
        assert torch.equal(made_NCHW[n][:, ~pasted], frames_NCHW[n][:, ~pasted])
        middle = made_NCHW[n, 0][pasted].median()
        assert middle == pytest.approx(0.6 + 0.1 * ((n + 1) % 3), abs=1e-6)


def test_picture_and_mask_go_the_same_way() -> None:
    """Ten draws: a square comes out as a rectangle of 0.6 to 1.4 times its side, of its own colour but for its rim."""
    sides = set()
    for seed in range(10):
        frames_NCHW, masks_NHW, labels_NK, _ = given(2)
        made_NCHW, numbers_NHW, _ = CopyPaste(1.0).train()(
            frames_NCHW, masks_NHW, labels_NK, torch.tensor([seed * 11, 5])
        )
        y, x = (numbers_NHW[0] == 2 + K).nonzero().T
        if not len(y):
            continue  # out of the picture
        height, width = int(y.max() - y.min()) + 1, int(x.max() - x.min()) + 1
        assert len(y) == height * width
        assert 5 <= max(height, width) <= 15
        sides.add(max(height, width))
        inner = made_NCHW[0, 0, y.min() + 1 : y.max(), x.min() + 1 : x.max()]
        torch.testing.assert_close(inner, torch.full_like(inner, 0.7))
    assert len(sides) > 3


def test_all_frames_of_a_sample_alike() -> None:
    _, numbers_NHW, _ = CopyPaste(1.0).train()(*given(2, frames=3))
    for n in (0, 3):
        assert (numbers_NHW[n] == 2 + K).any()
        assert torch.equal(numbers_NHW[n], numbers_NHW[n + 1])
        assert torch.equal(numbers_NHW[n], numbers_NHW[n + 2])
    frames_NCHW, masks_NHW, labels_NK, draw_B = given(2, frames=3)
    assert torch.equal(CopyPaste(1.0).train()(frames_NCHW, masks_NHW, labels_NK, draw_B)[2][:3, K + 1], torch.ones(3))


def test_the_share_is_of_instances() -> None:
    frames_NCHW, masks_NHW, labels_NK, _ = given(2)
    pasted = [
        bool((CopyPaste(0.3).train()(frames_NCHW, masks_NHW, labels_NK, torch.tensor([at, 1]))[1][0] > K).any())
        for at in range(150)
    ]
    assert 0.2 < sum(pasted) / 150 < 0.4  # 0.3, less those that are pasted out of the picture


def test_a_sample_that_is_alone_gets_its_own() -> None:
    numbers_NHW = torch.stack([CopyPaste(1.0).train()(*given(1)[:3], torch.tensor([at]))[1][0] for at in range(9)])
    assert (numbers_NHW == 2 + K).any()


@pytest.mark.parametrize(("share", "training"), [(0.0, True), (0.5, False)])
def test_else_nothing_changes(share: float, training: bool) -> None:
    frames_NCHW, masks_NHW, labels_NK, draw_B = given()
    made = CopyPaste(share).train(training)(frames_NCHW, masks_NHW, labels_NK, draw_B)
    assert all(one is other for one, other in zip(made, (frames_NCHW, masks_NHW, labels_NK), strict=True))


def test_the_draw_decides() -> None:
    first, again, other = (
        CopyPaste(0.5).train()(*given()[:3], torch.tensor(draw)) for draw in ([1, 2, 3], [1, 2, 3], [4, 5, 6])
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
