"""Convolutions over clips that are quick on CPUs too.

torch has no good kernels for 3D convolutions with few channels per group on CPUs: of an X3D training
step they take most. The same sums written as 2D convolutions, for which it has good ones, take a
fraction of it, if the clip lies in channels-last memory (`quick_layout`):

    1 x k x k    frames are independent: the time joins the batch
    k x 1 x 1    pixels are independent: the picture becomes one line
    depthwise    forward is quick as it is; the gradient of the input is a convolution with the mirrored
                 kernel, the gradient of the weights one 2D convolution's per step in time

Shapes: B clips, C channels, T frames, H x W pixels. This file needs torch while it is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

Triple = tuple[int, int, int]


def quick_layout(clips_BCTHW: Tensor) -> Tensor:
    """The same clips, in channels-last memory on CPUs. On GPUs they stay as they are."""
    on_cpu = clips_BCTHW.device.type == "cpu"
    return clips_BCTHW.contiguous(memory_format=torch.channels_last_3d) if on_cpu else clips_BCTHW


class Conv3d(torch.nn.Conv3d):
    """torch.nn.Conv3d with odd kernels and padding of half a kernel: same parameters, same results.

    ``kernel`` and ``stride`` are (time, height, width). On CPUs it takes the quick way where there
    is one; elsewhere, and under autocast where the weights' gradient is concerned, torch's own.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1), groups: int = 1, bias: bool = False
    ) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
        self.margin = padding

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        if input.device.type != "cpu":
            return super().forward(input)
        if self.kernel_size[0] == self.stride[0] == 1:
            return self._frame_by_frame(input)
        if self.kernel_size[1:] == self.stride[1:] == (1, 1):
            return self._pixel_by_pixel(input)
        depthwise = self.groups == self.in_channels == self.out_channels and self.stride[0] == 1 and self.bias is None
        if depthwise and not torch.is_autocast_enabled("cpu"):
            output: Tensor = _Depthwise.apply(quick_layout(input), self.weight, self.stride, self.margin)
            return output
        return super().forward(input)

    def _frame_by_frame(self, clips_BCTHW: Tensor) -> Tensor:
        weight, stride, frames = self.weight.squeeze(2), self.stride[1:], _frames(clips_BCTHW)
        if self.kernel_size[1:] == (1, 1) and self.margin[1:] == (0, 0):
            # The pixels that count, picked before: for a stride in a 1 x 1 kernel over channels-last memory the
            # weight gradient of torch 2.14 writes beyond its memory on AVX2 processors and ends the process.
            frames, stride = frames[:, :, :: stride[0], :: stride[1]], (1, 1)
        output = F.conv2d(frames, weight, self.bias, stride, self.margin[1:], groups=self.groups)
        return _clips(output, len(clips_BCTHW))

    def _pixel_by_pixel(self, clips_BCTHW: Tensor) -> Tensor:
        weight, stride, margin = self.weight.squeeze(4), (self.stride[0], 1), (self.margin[0], 0)
        output = F.conv2d(clips_BCTHW.flatten(3), weight, self.bias, stride, margin, groups=self.groups)
        return output.reshape(*output.shape[:3], *clips_BCTHW.shape[3:])


# Pictures of one pixel have strides that do not matter, but torch 2.14's batch normalisation chooses its way
# by them and gives wrong gradients where its input's and its gradient's are not of one kind. With the channels
# moved to the end first, a view has the exact strides of channels-last memory, forward and backward.


def _frames(clips_BCTHW: Tensor) -> Tensor:
    """All frames as one batch of pictures; a view in channels-last memory."""
    return clips_BCTHW.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)


def _clips(frames_NCHW: Tensor, clips: int) -> Tensor:
    frames_NHWC = frames_NCHW.permute(0, 2, 3, 1)
    return frames_NHWC.reshape(clips, -1, *frames_NHWC.shape[1:]).permute(0, 4, 1, 2, 3)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution without bias, stride 1 in time, and its gradients."""

    @staticmethod
    def forward(ctx: Any, clips_BCTHW: Tensor, weight: Tensor, stride: Triple, margin: Triple) -> Tensor:
        ctx.save_for_backward(clips_BCTHW, weight)
        ctx.stride, ctx.margin = stride, margin
        return F.conv3d(clips_BCTHW, weight, None, stride, margin, groups=len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_BCTHW: Tensor) -> tuple[Tensor | None, ...]:
        clips_BCTHW, weight = ctx.saved_tensors
        gradient_BCTHW = quick_layout(gradient_BCTHW)
        of_clips = of_weight = None
        if ctx.needs_input_grad[0]:
            of_clips = _gradient_of_clips(gradient_BCTHW, clips_BCTHW, weight, ctx.stride, ctx.margin)
        if ctx.needs_input_grad[1]:
            of_weight = _gradient_of_weight(gradient_BCTHW, clips_BCTHW, weight, ctx.stride, ctx.margin)
        return of_clips, of_weight, None, None


def _gradient_of_clips(
    gradient_BCTHW: Tensor, clips_BCTHW: Tensor, weight: Tensor, stride: Triple, margin: Triple
) -> Tensor:
    if stride != (1, 1, 1):  # zeros where the stride passed over
        spread_BCTHW = torch.zeros_like(clips_BCTHW)
        spread_BCTHW[..., :: stride[1], :: stride[2]] = gradient_BCTHW
        gradient_BCTHW = spread_BCTHW
    return F.conv3d(gradient_BCTHW, weight.flip(2, 3, 4), None, 1, margin, groups=len(weight))


def _gradient_of_weight(
    gradient_BCTHW: Tensor, clips_BCTHW: Tensor, weight: Tensor, stride: Triple, margin: Triple
) -> Tensor:
    """Step k of the kernel joins the frames t + k - margin of the clip to the frames t of the output."""
    gradient, frames = torch.zeros_like(weight), clips_BCTHW.shape[2]
    for k in range(weight.shape[2]):
        shift = k - margin[0]
        first, end = max(0, -shift), min(frames, frames - shift)
        if first < end:
            _, gradient[:, :, k], _ = torch.ops.aten.convolution_backward(
                _frames(gradient_BCTHW[:, :, first:end]),
                _frames(clips_BCTHW[:, :, first + shift : end + shift]),
                weight[:, :, k],
                None,
                stride[1:],
                margin[1:],
                (1, 1),
                False,
                (0, 0),
                len(weight),
                (False, True, False),
            )
    return gradient
