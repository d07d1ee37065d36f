"""Optimisers, learning-rate schedules and precision, as `Optim` names them."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from mvray.experiment import Optim
    from mvray.nn import Method

POLY_POWER = 0.9  # Liu et al., ParseNet (arXiv 1506.04579); Chen et al., DeepLab (arXiv 1606.00915, section 4.1)


def optimiser(optim: Optim, method: Method, phase: str) -> torch.optim.Optimizer:
    """The optimiser of what ``phase`` trains."""
    groups = [
        {
            "params": [p for p in group.parameters if p.requires_grad],
            "factor": group.lr,
            "weight_decay": optim.weight_decay * group.weight_decay,
        }
        for group in method.groups(phase)
    ]
    if optim.name == "sgd":
        return torch.optim.SGD(groups, optim.lr, optim.momentum)
    kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return kind(groups, optim.lr, optim.betas)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Give each group its learning rate where it is ``lr`` for a factor of 1."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)


def lr_factor(optim: Optim, epoch: float, epochs: float, batches: int) -> float:
    """What the learning rate is multiplied with at this (fractional) epoch of ``epochs``, of ``batches`` steps each."""
    if epoch < optim.warmup_epochs:
        return (epoch + 1e-8) / optim.warmup_epochs
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))
    if optim.schedule == "step":
        at = epoch if optim.steps is None else round(epoch * batches)
        return optim.decay ** sum(at >= milestone for milestone in optim.milestones)
    if optim.schedule == "poly":
        return math.pow(1 - min(1.0, epoch / epochs), POLY_POWER)
    return 1.0


def precision(optim: Optim, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context for the forward pass: bf16 where it is asked for or, with "auto", where a GPU has it."""
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if optim.precision == "bf16" or (optim.precision == "auto" and on_gpu):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
