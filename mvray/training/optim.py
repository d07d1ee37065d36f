"""Optimisers, learning-rate schedules and precision, as `Optim` names them."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from mvray.experiment import Optim
    from mvray.nn import Method


def optimiser(optim: Optim, method: Method, phase: str) -> torch.optim.Optimizer:
    """The optimiser of what ``phase`` trains."""
    parameters = [p for p in method.trained_in(phase) if p.requires_grad]
    if optim.name == "sgd":
        return torch.optim.SGD(parameters, optim.lr, optim.momentum, weight_decay=optim.weight_decay)
    kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return kind(parameters, optim.lr, weight_decay=optim.weight_decay)


def lr_factor(optim: Optim, epoch: float, epochs: int) -> float:
    """What the learning rate is multiplied with at this (fractional) epoch."""
    if epoch < optim.warmup_epochs:
        return (epoch + 1e-8) / optim.warmup_epochs
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))
    if optim.schedule == "step":
        return optim.decay ** sum(epoch >= milestone for milestone in optim.milestones)
    return 1.0


def precision(optim: Optim, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context for the forward pass: bf16 where it is asked for or, with "auto", where a GPU has it."""
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if optim.precision == "bf16" or (optim.precision == "auto" and on_gpu):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
