"""The fully connected CRF: labels that agree among pixels that are near each other and alike in colour.

Kraehenbuehl and Koltun 2011, "Efficient inference in fully connected CRFs with Gaussian edge potentials". With p_i
the position and I_i the colour of pixel i, two pixels of different labels cost (equation 3)

    k(i, j) = w2 exp(-|p_i - p_j|^2 / 2 s_g^2) + w1 exp(-|p_i - p_j|^2 / 2 s_a^2 - |I_i - I_j|^2 / 2 s_b^2)

and mean field inference repeats Q_i(l) ~ exp(u_i(l) + sum_j k(i, j) Q_j(l)) (algorithm 1, Potts model). As in the
authors' later code (Kraehenbuehl and Koltun 2013) and its Python form pydensecrf, each Gaussian is normalised
symmetrically, k(i, j) / sqrt(sum_j k(i, j) sum_i k(i, j)), and j may be i.

Shapes: B pictures, K classes, H x W pixels, P = B x H x W pixels of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from mvray.errors import SettingError
from mvray.experiment import Settings, check_above_0
from mvray.nn.permutohedral import Lattice, lattice

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CRF(Settings):
    """What the CRF weighs: widths are standard deviations, in pixels for positions and in 255ths for colours.

    The weights and widths of the bilateral Gaussian are DeepLab v2's (Chen et al. 2017), which has a ``gaussian_width``
    of 1; SEC (Kolesnikov and Lampert 2016) takes bilateral_weight=10, position_width=80, colour_width=13. Widths in
    pixels belong to a resolution: for maps an eighth of the picture's size they are an eighth.
    """

    kind: ClassVar[str] = "crf"
    iterations: int = 10
    gaussian_weight: float = 3.0
    gaussian_width: float = 3.0
    bilateral_weight: float = 4.0
    position_width: float = 67.0
    colour_width: float = 3.0

    def __post_init__(self) -> None:
        check_above_0(self, "crf", "gaussian_width", "position_width", "colour_width")
        check_above_0(self, "crf", "iterations", "gaussian_weight", "bilateral_weight", or_0=True)
        if self.iterations != int(self.iterations):
            raise SettingError(f"crf.iterations is {self.iterations}; expected a whole number.")


def marginals(scores_BKHW: Tensor, images_B3HW: Tensor, settings: CRF) -> Tensor:
    """The probability of each class at each pixel after mean field inference: B x K x H x W float32.

    Scores are log-probabilities or scores before softmax: both give the same. Images (uint8, or float from 0 to 255)
    have the scores' size and device. Each picture has kernels of its own, so results do not depend on the rest of
    the batch. Differentiable in the scores. Raises SettingError where widths are far too small for the pictures.
    """
    near, alike = _kernels(images_B3HW, scores_BKHW, settings)
    scores_PK = _rows(scores_BKHW)
    probabilities_PK = scores_PK.softmax(1)
    for _ in range(settings.iterations):
        total_PK = torch.add(scores_PK, near.filter(probabilities_PK), alpha=settings.gaussian_weight)
        total_PK = torch.add(total_PK, alike.filter(probabilities_PK), alpha=settings.bilateral_weight)
        probabilities_PK = total_PK.softmax(1)
    return _maps(probabilities_PK, scores_BKHW).float()


class CRFLayers(torch.nn.Module):
    """Mean field inference as layers that are trained (Zheng et al. 2015, "CRF as RNN", section 4).

    ``weights_2K`` weigh each class's messages through the position kernel and the bilateral one; ``costs_KK[l, m]`` is
    what label l pays for m around it. They begin as the Potts model of ``settings``, with which the layers compute what
    ``marginals`` does. ``training_iterations`` are the iterations in training, ``settings.iterations`` those at test.
    """

    def __init__(self, classes: int, settings: CRF | None = None, training_iterations: int = 5) -> None:
        super().__init__()
        assert training_iterations > 0, training_iterations
        self.settings = settings or CRF()
        self.training_iterations = training_iterations
        weights_2 = torch.tensor([float(self.settings.gaussian_weight), float(self.settings.bilateral_weight)])
        self.weights_2K = torch.nn.Parameter(weights_2[:, None].repeat(1, classes))
        self.costs_KK = torch.nn.Parameter(1 - torch.eye(classes))

    def forward(self, scores_BKHW: Tensor, images_B3HW: Tensor) -> Tensor:
        """Scores before softmax after inference, B x K x H x W, to be given to a cross entropy.

        In float32 also where autocast is on; in float64 where scores and parameters are. Images are as for
        ``marginals``.
        """
        assert scores_BKHW.shape[1] == len(self.costs_KK), f"{scores_BKHW.shape[1]} classes of {len(self.costs_KK)}"
        near, alike = _kernels(images_B3HW, scores_BKHW, self.settings)
        iterations = self.training_iterations if self.training else self.settings.iterations
        with torch.autocast(scores_BKHW.device.type, enabled=False):
            scores_PK = total_PK = _rows(scores_BKHW)
            for _ in range(iterations):
                probabilities_PK = total_PK.softmax(1)
                messages_PK = self.weights_2K[0] * near.filter(probabilities_PK)
                messages_PK = messages_PK + self.weights_2K[1] * alike.filter(probabilities_PK)
                total_PK = scores_PK - messages_PK @ self.costs_KK.T
        return _maps(total_PK, scores_BKHW)


def _kernels(images_B3HW: Tensor, scores_BKHW: Tensor, settings: CRF) -> tuple[Lattice, Lattice]:
    """The normalised Gaussians over positions, and over positions and colours."""
    batch, _, height, width = scores_BKHW.shape
    assert images_B3HW.shape == (batch, 3, height, width), f"{images_B3HW.shape} for {scores_BKHW.shape}"
    on = images_B3HW.device
    y_HW, x_HW = torch.meshgrid(torch.arange(height, device=on), torch.arange(width, device=on), indexing="ij")
    places_BN2 = torch.stack([x_HW, y_HW], 2).view(1, height * width, 2).expand(batch, -1, -1).float()
    colours_BN3 = images_B3HW.detach().float().flatten(2).transpose(1, 2)
    near = lattice(places_BN2 / settings.gaussian_width)
    alike = lattice(torch.cat([places_BN2 / settings.position_width, colours_BN3 / settings.colour_width], 2))
    return near.normalised(), alike.normalised()


def _rows(scores_BKHW: Tensor) -> Tensor:
    """P x K, in float32 at least: all classes of a pixel side by side, which is what the lattice adds fastest."""
    dtype = torch.promote_types(scores_BKHW.dtype, torch.float32)
    return scores_BKHW.to(dtype).permute(0, 2, 3, 1).reshape(-1, scores_BKHW.shape[1]).contiguous()


def _maps(rows_PK: Tensor, like_BKHW: Tensor) -> Tensor:
    batch, classes, height, width = like_BKHW.shape
    return rows_PK.view(batch, height, width, classes).permute(0, 3, 1, 2).contiguous()
