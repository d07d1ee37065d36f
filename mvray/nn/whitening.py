"""PCA, whitening and L2 normalisation of features that are shared out over ranks.

As DeepCluster prepares features for k-means (Caron et al. 2018, arXiv 1807.05520, section 3.4: "PCA-reduced to 256
dimensions, whitened and l2-normalized").

Shapes: N points of this rank, D features, C components, B points of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 4096
LEAST = 1e-9
"""Directions with less than this share of the greatest variance are rounding, which must not be whitened."""


@dataclass(frozen=True)
class Whitening:
    """``mean`` (D) and ``axes`` (D x C, each column a principal direction over its standard deviation), float32."""

    mean: Tensor
    axes: Tensor

    def __call__(self, points_ND: Tensor) -> Tensor:
        """N x C float32, each row of length 1 (of length 0 where it is the mean itself)."""
        blocks = [(block.float() - self.mean) @ self.axes for block in torch.split(points_ND, _BLOCK)]
        return torch.nn.functional.normalize(torch.cat(blocks))


def fit(points_ND: Tensor, components: int, *, rank: int, sum_over_ranks: Callable[[Tensor], Tensor]) -> Whitening:
    """The whitening of the points of all ranks, equal bit for bit on all ranks.

    It has ``components`` columns, or fewer: as many as the points have directions with variance (at least one column,
    which is zero where all points are the same). Variances are those of the sample, divided by the number of points
    less one. The largest entry of each direction is positive. Mean and covariance are made in float64.
    """
    blocks = torch.split(points_ND, _BLOCK)
    ones = torch.tensor([len(points_ND)], dtype=torch.float64, device=points_ND.device)
    sums = sum_over_ranks(
        torch.cat([torch.stack([block.sum(0, dtype=torch.float64) for block in blocks]).sum(0), ones])
    )
    count, mean_D = sums[-1], sums[:-1] / sums[-1]
    scatter_DD = torch.zeros(len(mean_D), len(mean_D), dtype=torch.float64, device=points_ND.device)
    for block in blocks:
        centred = block.double() - mean_D
        scatter_DD.addmm_(centred.T, centred)
    covariance_DD = sum_over_ranks(scatter_DD) / (count - 1).clamp(min=1)
    # Eigenvectors may differ between machines, and one rank's are enough.
    scaled_DD = _scaled_directions(covariance_DD) if rank == 0 else torch.zeros_like(covariance_DD)
    axes_DC = sum_over_ranks(scaled_DD.contiguous())[:, :components]  # LAPACK's columns lie the other way in memory
    used = int((axes_DC != 0).any(0).sum())
    return Whitening(mean_D.float(), axes_DC[:, : max(used, 1)].float())


def _scaled_directions(covariance_DD: Tensor) -> Tensor:
    """Principal directions in columns, greatest variance first, over their standard deviations; 0 without variance."""
    variance_D, directions_DD = torch.linalg.eigh(covariance_DD)
    variance_D, directions_DD = variance_D.flip(0), directions_DD.flip(1)
    largest_D = directions_DD.gather(0, directions_DD.abs().argmax(0, keepdim=True))[0]
    kept_D = variance_D > LEAST * variance_D[0]
    scale_D = torch.where(kept_D, largest_D.sign() / variance_D.clamp(min=0).sqrt(), 0)
    scaled_DD: Tensor = directions_DD * scale_D
    return scaled_DD
