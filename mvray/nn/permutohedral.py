"""The permutohedral lattice: Gaussian filtering of values at scattered places, in time linear in their number.

Adams, Baek and Davis 2010, "Fast high-dimensional filtering using the permutohedral lattice". Places in D dimensions
are laid into the hyperplane of D + 1 coordinates that sum to 0, which simplices of equal form fill. Three sparse
linear maps make the filter:

    splat    each place gives its value to the D + 1 corners of its simplex, by barycentric weights (section 3.1)
    blur     along each of D + 1 axes every corner takes half of its two neighbours; a corner to which
             no place belongs does not exist and counts as 0 (section 3.2)
    slice    each place takes its corners' values, by the same weights (section 3.3)

All three are weighted sums of few rows, each for a row of its own: torch's embedding_bag, which is fast on a
CPU, and on a GPU adds in the same order every time. Pictures of a batch have corners of their own in one lattice.

Shapes: B pictures, N places of each, P = B x N places, D dimensions, V = D + 1 corners of a simplex, S simplices in
use, M points of the lattice in use, K channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mvray.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Sums:
    """A sparse matrix: row r is the sum of ``weights`` x the values' ``rows`` from ``starts`` r on."""

    rows: Tensor
    starts: Tensor
    weights: Tensor

    def __call__(self, values_RK: Tensor) -> Tensor:
        return torch.nn.functional.embedding_bag(
            self.rows, values_RK, self.starts, mode="sum", per_sample_weights=self.weights.to(values_RK.dtype)
        )


@dataclass(frozen=True)
class Lattice:
    """A Gaussian filter of unit width between the places of each picture; ``lattice(...)`` builds it."""

    splat: _Sums
    blur: tuple[_Sums, ...]
    slice: _Sums

    def filter(self, values_PK: Tensor) -> Tensor:
        """About sum_j exp(-|f_i - f_j|^2 / 2) v_j over the places j of i's picture, i itself included: P x K.

        Differentiable in the values as often as wanted; in float32 or float64, as the values are.
        """
        filtered_PK: Tensor = _Filter.apply(values_PK, self, False)
        return filtered_PK

    def normalised(self) -> Lattice:
        """The filter between n_i and n_j, n = 1 / sqrt(filter of ones): symmetric, each row sums to about 1."""
        ones = self.slice.weights.new_ones(len(self.slice.starts), 1)
        norm_P = (self.filter(ones)[:, 0] + 1e-20).rsqrt()
        corners = len(self.blur)
        splat = _Sums(self.splat.rows, self.splat.starts, self.splat.weights * norm_P[self.splat.rows])
        out = _Sums(self.slice.rows, self.slice.starts, self.slice.weights * norm_P.repeat_interleave(corners))
        return Lattice(splat, self.blur, out)

    def run(self, values_PK: Tensor, transposed: bool) -> Tensor:
        rows = self.splat(values_PK)
        for blur in reversed(self.blur) if transposed else self.blur:
            rows = blur(rows)
        return self.slice(rows)


class _Filter(torch.autograd.Function):
    """The filter's transpose is itself with the axes of the blur in the opposite order."""

    @staticmethod
    def forward(ctx: Any, values_PK: Tensor, lattice: Lattice, transposed: bool) -> Tensor:
        ctx.lattice, ctx.transposed = lattice, transposed
        return lattice.run(values_PK.contiguous(), transposed)

    @staticmethod
    def backward(ctx: Any, gradient_PK: Tensor) -> tuple[Tensor, None, None]:
        return _Filter.apply(gradient_PK, ctx.lattice, not ctx.transposed), None, None


@torch.no_grad()
def lattice(features_BND: Tensor) -> Lattice:
    """The lattice of B pictures of N places each; features are in standard deviations of the Gaussian.

    It lies on the features' device, is built in float32, and passes no gradient to the features. Raises SettingError
    where the features spread so far that corners cannot be numbered in 63 bits.
    """
    assert features_BND.ndim == 3, f"{tuple(features_BND.shape)} is not B x N x D"
    assert features_BND.numel(), f"{tuple(features_BND.shape)} holds nothing"
    corner_VP, order_VP, weights_PV = _simplices(features_BND.float().flatten(0, 1).T)
    strides_D, numbers_P = _numbers(corner_VP, len(features_BND))
    keys_SV, which_P = _corners(strides_D, numbers_P, order_VP)
    points_M, at_SV = torch.unique(keys_SV, return_inverse=True)
    corners = len(corner_VP)
    step = sum(strides_D)
    blur = tuple(_blur(points_M, corners * stride - step) for stride in (*strides_D, 0))
    at_PV = at_SV[which_P].flatten()
    sorted_PV, order_PV = at_PV.sort(stable=True)
    starts_M = torch.searchsorted(sorted_PV, torch.arange(len(points_M), device=at_PV.device))
    starts_P = torch.arange(0, len(at_PV), corners, device=at_PV.device)
    weights = weights_PV.flatten()
    gain = 1 / (1 + 2.0 ** (1 - corners))  # of the blur, taken back; the authors' constant
    return Lattice(
        _Sums(order_PV // corners, starts_M, weights[order_PV]), blur, _Sums(at_PV, starts_P, weights * gain)
    )


def _simplices(features_DP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex of each place: its corner of remainder 0 (over V) and its order, V x P; its weights, P x V.

    Section 3.1 and proposition 4.2: the corner is the nearest point whose coordinates are multiples of V, the order
    says which coordinate lies how far beyond it (0 the farthest), and the weights are differences in that order.
    """
    dims = len(features_DP)
    corners = dims + 1
    rest_P = torch.zeros_like(features_DP[0])
    place: list[Tensor] = []
    for j in range(dims, 0, -1):
        # The axes' lengths, and the width of the three steps together, which is sqrt(2/3) V
        part_P = features_DP[j - 1] * (math.sqrt(2 / 3) * corners / math.sqrt(j * (j + 1)))
        place.insert(0, rest_P - j * part_P)
        rest_P = rest_P + part_P
    place_VP = torch.stack([rest_P, *place]) / corners
    corner_VP = place_VP.round()
    beyond_VP = place_VP - corner_VP
    order_VP = torch.zeros_like(corner_VP, dtype=torch.int64)
    for i in range(corners):
        for j in range(i + 1, corners):
            less_P = beyond_VP[i] < beyond_VP[j]
            order_VP[i] += less_P
            order_VP[j] += ~less_P
    order_VP += corner_VP.sum(0).long()  # rounded coordinates may not sum to 0: the outermost ones go a step back
    turn_VP = (order_VP < 0).long() - (order_VP > dims).long()
    order_VP += turn_VP * corners
    corner_VP += turn_VP
    beyond_VP = torch.empty_like(place_VP).scatter_(0, order_VP, place_VP - corner_VP).flip(0)
    weights_VP = torch.diff(beyond_VP, dim=0, prepend=beyond_VP[-1:] - 1)
    return corner_VP.long(), order_VP, weights_VP.T


def _numbers(corner_VP: Tensor, pictures: int) -> tuple[list[int], Tensor]:
    """What a step along each of D coordinates adds to a point's number, and the number of each place's corner.

    A number is one int64: the coordinates (the last one follows from the others) and, above them, the picture. There
    is room for neighbours on all sides, so that adding steps to a number never leads to another point's.
    """
    corners = len(corner_VP)
    least_D = corner_VP[:-1].amin(1) - 2
    extents = ((corner_VP[:-1].amax(1) + 3 - least_D) * corners).tolist()
    strides = [math.prod(extents[:d]) for d in range(corners)]
    if strides[-1] * pictures >= 2**63:
        raise SettingError(
            f"The filter's lattice has {strides[-1] * pictures:.1e} possible points; expected fewer than 2^63. "
            "Ask for greater widths, or give fewer pictures at once."
        )
    places = corner_VP.shape[1] // pictures
    numbers_P = torch.arange(pictures, device=corner_VP.device).repeat_interleave(places) * strides[-1]
    for stride, corner_P, least in zip(strides, corner_VP, least_D, strict=False):
        numbers_P += stride * corners * (corner_P - least)
    return strides[:-1], numbers_P


def _corners(strides_D: list[int], numbers_P: Tensor, order_VP: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the V corners of each simplex in use, and the simplex of each place.

    Corner r is corner 0 moved by r in all coordinates and by -V in the r of them that lie farthest beyond it, which
    are the last by order. Many places share a simplex, so corners are looked up for simplices only.
    """
    corners = len(order_VP)
    simplex_P = numbers_P.clone()
    for stride, order_P in zip(strides_D, order_VP, strict=False):
        simplex_P += stride * order_P
    simplices_S, which_P = torch.unique(simplex_P, return_inverse=True)
    places_P = torch.arange(len(which_P), device=which_P.device)
    any_S = torch.empty_like(simplices_S).scatter_(0, which_P, places_P)  # whichever is last: all are alike
    order_VS = order_VP[:, any_S]
    keys_SV = numbers_P[any_S][:, None] + sum(strides_D) * torch.arange(corners, device=which_P.device)
    for r in range(1, corners):
        for stride, order_S in zip(strides_D, order_VS, strict=False):
            keys_SV[:, r] -= corners * stride * (order_S >= corners - r)
    return keys_SV, which_P


def _blur(points_M: Tensor, step: int) -> _Sums:
    """Each point and half of its two neighbours, ``step`` above and below, where they exist."""
    count = len(points_M)
    up_M = torch.searchsorted(points_M, points_M + step).clamp(max=count - 1)
    there_M = points_M[up_M] == points_M + step
    own_M = torch.arange(count, device=points_M.device)
    rows_M3 = torch.stack([own_M, torch.where(there_M, up_M, -1), torch.full_like(up_M, -1)], 1)
    rows_M3[up_M[there_M], 2] = own_M[there_M]
    used_M3 = rows_M3 >= 0
    counts_M = used_M3.sum(1)
    weights_M3 = torch.tensor([1.0, 0.5, 0.5], device=points_M.device).expand(count, 3)
    return _Sums(rows_M3[used_M3], counts_M.cumsum(0) - counts_M, weights_M3[used_M3])
