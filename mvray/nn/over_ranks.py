"""A mean that is the same on one rank and on many: ranks may have other numbers of things that count."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(total: Tensor, weight: Tensor, samples: int) -> Tensor:
    """``total`` / ``weight``, both summed over the ranks, as a loss of a rank that has ``samples`` of the batch.

    The loop takes the mean of ranks' losses by their samples; this makes that the mean over all that counts (the
    pixels that are not 255, say). 0 where nothing counts. Every rank must call it alike.
    """
    sums = torch.stack([weight.detach().double(), weight.new_tensor(samples, dtype=torch.float64)])
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(sums)
    everything, all_samples = sums.unbind()
    factor = all_samples / samples / everything.clamp_min(1e-12)
    return total * factor.to(total.dtype)
