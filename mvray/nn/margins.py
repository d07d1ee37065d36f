"""Classification by angles, with a margin: the losses of ArcFace, CosFace and sub-centre ArcFace as logits.

Deng et al. 2019, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", arXiv 1801.07698
Wang et al. 2018, "CosFace: Large Margin Cosine Loss for Deep Face Recognition", arXiv 1801.09414
Deng et al. 2020, "Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web Faces", ECCV

A class is a direction, its centre; how well an embedding fits is the cosine of the angle between
the two. Cross-entropy of the logits is the loss. All is computed in float32 or better, also where
autocast is on: at a scale of 64, bfloat16 would round a cosine by a quarter of a logit. Nothing of B x C
is made but what cross-entropy needs: no one-hot rows, and no second copy of the centres.

Shapes: B embeddings, C classes, E dimensions, S centres of each class. This file needs torch while it
is imported.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_LEAST_NORM = 1e-6


def centres(classes: int, dimensions: int, per_class: int = 1) -> torch.nn.Parameter:
    """Random centres, C x E, or C S x E where a class has several; those of a class follow each other.

    Normal with deviation 0.01, as in the code of the ArcFace paper's authors. From torch's seed.
    """
    return torch.nn.Parameter(0.01 * torch.randn(classes * per_class, dimensions))


def cosines(embeddings_BE: Tensor, centres_CE: Tensor, per_class: int = 1) -> Tensor:
    """The cosine of each embedding's angle to each class, B x C, differentiable in both.

    Neither needs unit length. With ``per_class`` centres of a class the nearest counts (Deng et al.
    2020, equation 3), and only that one gets a gradient.
    """
    with torch.autocast(embeddings_BE.device.type, enabled=False):
        unit_BE = torch.nn.functional.normalize(_float(embeddings_BE), eps=_LEAST_NORM)
        cosine_BC: Tensor = _Cosines.apply(unit_BE, _float(centres_CE))
        return cosine_BC if per_class == 1 else cosine_BC.view(len(unit_BE), -1, per_class).max(2).values


class _Cosines(torch.autograd.Function):
    """u w / |w| for unit vectors u and centres w, without a normalised copy of the centres.

    With 100,000 classes the centres are far larger than the batch's product, so the product is divided.
    Autograd would make the centres' gradient in three pieces of their size; here it is one: a sum over the
    batch, from which the part along w is taken away in place.
    """

    @staticmethod
    def forward(ctx: Any, unit_BE: Tensor, centres_CE: Tensor) -> Tensor:
        norm_C = torch.linalg.vector_norm(centres_CE, dim=1).clamp_min(_LEAST_NORM)
        cosine_BC = (unit_BE @ centres_CE.T).div_(norm_C)
        ctx.save_for_backward(unit_BE, centres_CE, norm_C, cosine_BC)
        return cosine_BC

    @staticmethod
    def backward(ctx: Any, *given_BC: Tensor) -> tuple[Tensor, Tensor]:
        unit_BE, centres_CE, norm_C, cosine_BC = ctx.saved_tensors
        along_C = (given_BC[0] * cosine_BC).sum(0) / norm_C.square()
        scaled_BC = given_BC[0] / norm_C
        to_centres_CE = (scaled_BC.T @ unit_BE).addcmul_(centres_CE, along_C[:, None], value=-1)
        return scaled_BC @ centres_CE, to_centres_CE


def arcface(cosine_BC: Tensor, label_B: Tensor, margin_rad: float, scale: float) -> Tensor:
    """Logits with an additive angular margin, B x C: s cos(theta + m) for the label, s cos(theta) for the others
    (Deng et al. 2019, equation 3; ``margin_rad`` is m in radians, 0 to pi / 2, ``scale`` is s).

    Beyond theta = pi - m, where cos(theta + m) would rise again, it is s (cos(theta) - m sin(m)), as in
    the authors' code: further away is always worse, with a jump down at that angle. The gradient is finite
    everywhere, at cosines of 1 and -1 too: it does not go through arccos.
    """
    cosine_B1 = _of_label(cosine_BC, label_B)
    # In floats 1 - cos^2 near cos = 1 is a multiple of eps; at 0 the root's gradient would be infinite.
    sine_B1 = ((1 - cosine_B1) * (1 + cosine_B1)).clamp_min(torch.finfo(cosine_B1.dtype).eps).sqrt()
    moved_B1 = cosine_B1 * math.cos(margin_rad) - sine_B1 * math.sin(margin_rad)
    beyond_B1 = cosine_B1 - margin_rad * math.sin(margin_rad)
    within_B1 = cosine_B1 >= -math.cos(margin_rad)
    return scale * _with_label(cosine_BC, label_B, torch.where(within_B1, moved_B1, beyond_B1))


def cosface(cosine_BC: Tensor, label_B: Tensor, margin: float, scale: float) -> Tensor:
    """Logits with a margin on the cosine, B x C: s (cos(theta) - m) for the label, s cos(theta) for the others
    (Wang et al. 2018, equation 4)."""
    return scale * _with_label(cosine_BC, label_B, _of_label(cosine_BC, label_B) - margin)


def _of_label(cosine_BC: Tensor, label_B: Tensor) -> Tensor:
    return cosine_BC.gather(1, label_B[:, None])


def _with_label(cosine_BC: Tensor, label_B: Tensor, value_B1: Tensor) -> Tensor:
    return cosine_BC.scatter(1, label_B[:, None], value_B1)


def _float(tensor: Tensor) -> Tensor:
    """float32, unless it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
