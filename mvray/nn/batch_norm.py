"""Batch normalisation (Ioffe, Szegedy 2015) that is trained as it is, frozen, or synchronised over ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mvray.errors import SettingError

TRAINED, FROZEN, SYNCHRONISED = "trained", "frozen", "synchronised"
NORMS = (TRAINED, FROZEN, SYNCHRONISED)


def check(norm: str) -> None:
    """Raises SettingError for what is none of NORMS."""
    if norm not in NORMS:
        raise SettingError(f"method.norm is {norm!r}; expected one of {', '.join(NORMS)}.")


def with_norm(module: torch.nn.Module, norm: str) -> torch.nn.Module:
    """``module`` with every BatchNorm2d in it as ``norm`` says, under the same names, so that weights load as before.

    Frozen layers use the statistics, scales and shifts that were loaded and learn nothing (DeepLab, FCN fine-tuning).
    """
    kinds = {FROZEN: FrozenBatchNorm2d, SYNCHRONISED: SynchronisedBatchNorm2d}
    if norm in kinds:
        for name, layer in list(module.named_modules()):
            if type(layer) is torch.nn.BatchNorm2d:
                layer.__class__ = kinds[norm]
                if norm == FROZEN:
                    layer.requires_grad_(False)
                if not name:
                    return layer
    return module


class FrozenBatchNorm2d(torch.nn.BatchNorm2d):
    """Normalises by its running statistics in training, too, and leaves them as they are."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as torch names it
        return torch.nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class SynchronisedBatchNorm2d(torch.nn.BatchNorm2d):
    """In training the mean and variance are those of all ranks' shares together, on CPUs as on GPUs.

    torch's SyncBatchNorm refuses tensors on CPUs. Ranks may have shares of different sizes.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as torch names it
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        count = input.numel() / input.shape[1]
        values = input.float()
        sums_3C = torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), values.new_tensor([count])])
        sums_3C = _AllReduced.apply(sums_3C)
        total = sums_3C[-1]
        mean_C, square_C = sums_3C[:-1].reshape(2, -1) / total
        var_C = (square_C - mean_C.square()).clamp_min(0)
        if self.track_running_stats:
            self._track(mean_C.detach(), var_C.detach() * (total / (total - 1)))
        scale_C = torch.rsqrt(var_C + self.eps) * self.weight
        shift_C = self.bias - mean_C * scale_C
        normalised: Tensor = (values * scale_C[:, None, None] + shift_C[:, None, None]).to(input.dtype)
        return normalised

    def _track(self, mean_C: Tensor, var_C: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean += momentum * (mean_C - self.running_mean)
        self.running_var += momentum * (var_C - self.running_var)


class _AllReduced(torch.autograd.Function):
    """The sum over ranks. Every rank's loss depends on every rank's values, so gradients are summed, too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed
