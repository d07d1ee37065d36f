"""Copy-paste: instances of one picture are pasted into another (Ghiasi et al. 2021, arXiv 2012.07177, section 3).

Needs torch while it is imported. Legend: N frames, B samples, K instances that a frame can have, H x W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mvray.nn import draws

if TYPE_CHECKING:
    from torch import Tensor

_STREAM = 105  # of a sample's draw (nn/draws.py)
SCALES = (0.6, 1.4)


class CopyPaste(torch.nn.Module):
    """In training, pastes about ``share`` of the instances of the batch's next sample into each sample.

    They come mirrored or not, 0.6 to 1.4 times as large, at a place anywhere in the picture, alike in all frames
    of a sample. Where, and which, is the receiving sample's own draw; whose they are depends on the batch, as the
    statistics of batch normalisation do. A sample that is alone gets its own.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(
        self, frames_NCHW: Tensor, masks_NHW: Tensor, labels_NK: Tensor, draw_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Frames, numbers of instances (uint8, 0 for none) and labels (-1 for none), of 2K instances where it pastes.

        The receiving picture's instances keep their numbers, the pasted ones have theirs and K more; what lies
        under a pasted instance is no part of its own any more.
        """
        if not (self.training and self.share):
            return frames_NCHW, masks_NHW, labels_NK
        frames, instances = len(frames_NCHW) // len(draw_B), labels_NK.shape[1]
        from_NCHW, from_NHW, from_NK = (tensor.roll(-frames, 0) for tensor in (frames_NCHW, masks_NHW, labels_NK))
        drawn_ND = draws.uniform(draw_B, _STREAM, (4 + instances,)).repeat_interleave(frames, 0)
        grid_NHW2 = _places(drawn_ND[:, :4], from_NCHW.shape)
        from_NCHW = torch.nn.functional.grid_sample(from_NCHW, grid_NHW2, "bilinear", align_corners=False)
        moved_N1HW = torch.nn.functional.grid_sample(
            from_NHW[:, None].to(from_NCHW.dtype), grid_NHW2, "nearest", align_corners=False
        )
        number_NHW = moved_N1HW[:, 0].long()
        chosen_NK = torch.nn.functional.pad(drawn_ND[:, 4:] < self.share, (1, 0))
        pasted_NHW = chosen_NK.gather(1, number_NHW.flatten(1)).view_as(number_NHW)
        return (
            torch.where(pasted_NHW[:, None], from_NCHW, frames_NCHW),
            torch.where(pasted_NHW, (number_NHW + instances).to(masks_NHW.dtype), masks_NHW),
            torch.cat([labels_NK, from_NK], 1),
        )


def _places(drawn_N4: Tensor, shape: torch.Size) -> Tensor:
    """Where each pixel comes from, N x H x W x 2 as grid_sample has it, by four uniform numbers a frame."""
    side_N, size_N, x_N, y_N = drawn_N4.unbind(1)
    scale_N = SCALES[0] + (SCALES[1] - SCALES[0]) * size_N
    mirror_N = torch.where(side_N < 0.5, -1.0, 1.0)
    zero_N = torch.zeros_like(scale_N)
    # A pixel p of the result, in -1..1, comes from (p - shift) / scale; the shift leaves the middle in the picture.
    shift_x_N, shift_y_N = 2 * x_N - 1, 2 * y_N - 1
    rows = (
        torch.stack([mirror_N / scale_N, zero_N, -mirror_N * shift_x_N / scale_N], 1),
        torch.stack([zero_N, 1 / scale_N, -shift_y_N / scale_N], 1),
    )
    return torch.nn.functional.affine_grid(torch.stack(rows, 1), list(shape), align_corners=False)
