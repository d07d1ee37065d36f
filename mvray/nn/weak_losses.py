"""What score maps are taught by the labels of whole pictures: the losses of weakly supervised segmentation.

Shapes: B pictures, K classes of which 0 is the background, h x w places, N = h w. ``labels_BK`` are 0 or 1 for each
class; every picture has background, whatever its labels say. Each loss is a mean over the pictures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mvray.nn.dense_crf import CRF, marginals

SHARPNESS = 5.0
"""r of Pinheiro and Collobert 2015."""
FOREGROUND_DECAY, BACKGROUND_DECAY, DECAY_PLACES = 0.996, 0.999, 41 * 41
"""SEC's weights by rank (Kolesnikov, Lampert 2016, section 3.2), which are for maps of 41 x 41 places."""


def present(labels_BK: Tensor) -> Tensor:
    """The classes of each picture, background among them: B x K bool."""
    present_BK = labels_BK > 0
    present_BK[:, 0] = True
    return present_BK


def mil_softmax(scores_BKhw: Tensor, labels_BK: Tensor) -> Tensor:
    """MIL-FCN (Pathak et al. 2015, "Fully convolutional multi-class multiple instance learning").

    The mean over a picture's classes c of -log p_c at the place where p_c is highest.
    """
    log_p_BK = scores_BKhw.log_softmax(1).flatten(2).amax(2)
    return _of_present(-log_p_BK, present(labels_BK))


def log_sum_exp(scores_BKhw: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """Scores pooled by (1/r) log mean exp(r s) (Pinheiro, Collobert 2015): B x K."""
    scores_BKN = scores_BKhw.flatten(2)
    return ((sharpness * scores_BKN).logsumexp(2) - math.log(scores_BKN.shape[2])) / sharpness


def mil_log_sum_exp(scores_BKhw: Tensor, labels_BK: Tensor) -> Tensor:
    """MIL-ILP (Pinheiro, Collobert 2015) for several labels: the mean over a picture's classes."""
    return _of_present(-log_sum_exp(scores_BKhw).log_softmax(1), present(labels_BK))


def sigmoid_pooled(pooled_BK: Tensor, labels_BK: Tensor) -> Tensor:
    """Binary cross-entropy of pooled scores, the mean over the classes but the background."""
    return functional.binary_cross_entropy_with_logits(pooled_BK[:, 1:], (labels_BK[:, 1:] > 0).to(pooled_BK.dtype))


def expand(scores_BKhw: Tensor, labels_BK: Tensor) -> Tensor:
    """SEC's global weighted rank pooling (Kolesnikov, Lampert 2016, equations 3 and 4).

    Places are ranked by p_c and weighted by d^rank. The decay d belongs to 41 x 41 places; on maps of another size it
    falls by the same share of the area.
    """
    ranked_BKN = scores_BKhw.softmax(1).flatten(2).sort(2, descending=True).values
    places = ranked_BKN.shape[2]
    ranks_N = torch.arange(places, device=ranked_BKN.device) * (DECAY_PLACES / places)
    pooled = []
    for decay in (BACKGROUND_DECAY, FOREGROUND_DECAY):
        weights_N = decay**ranks_N
        pooled.append((ranked_BKN * weights_N).sum(2) / weights_N.sum())
    foreground_BK, absent_BK = present(labels_BK), ~present(labels_BK)
    foreground_BK[:, 0] = False
    losses_B = -_log(pooled[0][:, 0]) + _mean_where(-_log(pooled[1]), foreground_BK)
    return (losses_B + _mean_where(-_log(1 - ranked_BKN[:, :, 0]), absent_BK)).mean()


def seed(scores_BKhw: Tensor, cues_Bhw: Tensor) -> Tensor:
    """SEC's first part (equation 2): the mean of -log p at the places whose class is known; 255 is none."""
    log_p_BKhw = scores_BKhw.log_softmax(1)
    loss_Bhw = functional.nll_loss(log_p_BKhw, cues_Bhw.long(), ignore_index=255, reduction="none")
    known_B = (cues_Bhw != 255).flatten(1).sum(1)
    return (loss_Bhw.flatten(1).sum(1) / known_B.clamp_min(1)).mean()


def constrain(scores_BKhw: Tensor, images_B3hw: Tensor, crf: CRF) -> Tensor:
    """SEC's third part (equation 5): KL(Q || p), the mean over the places, where Q is the CRF's answer to p.

    Q is a constant here: no gradient passes through the CRF. ``crf`` has its widths in places of the map, not in pixels
    of the picture; images have the map's size.
    """
    log_p_BKhw = scores_BKhw.float().log_softmax(1)
    with torch.no_grad():
        target_BKhw = marginals(log_p_BKhw, images_B3hw, crf)
    return (target_BKhw * (_log(target_BKhw) - log_p_BKhw)).sum(1).mean()


def em_adapt_targets(
    scores_BKhw: Tensor, labels_BK: Tensor, foreground: float = 0.2, background: float = 0.4, rounds: int = 5
) -> Tensor:
    """EM-Adapt's E-step (Papandreou et al. 2015, section 3.2): a class for each place, B x h x w int64.

    Each present class gets a bias >= 0 on its scores, so that at least the share ``foreground`` of the places, or
    ``background``, goes to it; one class after another, ``rounds`` times. Absent classes get nothing.
    """
    present_BK = present(labels_BK)
    scores_BKN = scores_BKhw.detach().float().flatten(2).masked_fill(~present_BK[:, :, None], -math.inf)
    bias_BK = torch.zeros(present_BK.shape, device=scores_BKN.device)
    for _ in range(rounds):
        for class_ in range(present_BK.shape[1]):
            rivals_BKN = scores_BKN + bias_BK[:, :, None]
            rivals_BKN[:, class_] = -math.inf
            needed_BN = rivals_BKN.amax(1) - scores_BKN[:, class_]
            share = foreground if class_ else background
            bias_B = needed_BN.kthvalue(max(1, math.ceil(share * needed_BN.shape[1])), 1).values + 1e-4
            wanted_B = present_BK[:, class_] & bias_B.isfinite()  # a picture of background alone has no rival
            bias_BK[:, class_] = torch.where(wanted_B, bias_B.clamp_min(0), 0)
    return (scores_BKN + bias_BK[:, :, None]).argmax(1).view(-1, *scores_BKhw.shape[2:])


def ccnn_targets(
    scores_BKhw: Tensor,
    labels_BK: Tensor,
    least: float = 0.05,
    background: tuple[float, float] = (0.3, 0.7),
    rounds: int = 100,
) -> Tensor:
    """CCNN's latent distribution (Pathak, Kraehenbuehl, Darrell 2015): B x K x h x w.

    The Q nearest to p by KL(Q || p) in which each present class has at least the share ``least`` of the places, the
    background a share in its range, absent classes none. Q_c is p_c exp(a_c), normalised at each place; the dual
    variables a rise by log(wanted / share) where too little is there (Darroch, Ratcliff 1972, generalised iterative
    scaling), and fall no further than to 0. A picture without labels is all background.
    """
    present_BK = present(labels_BK)
    scores_BKN = scores_BKhw.detach().float().flatten(2).masked_fill(~present_BK[:, :, None], -math.inf)
    least_BK = torch.full_like(present_BK, least, dtype=torch.float32)
    least_BK[:, 0] = background[0]
    low_BK = torch.zeros_like(least_BK)
    high_B = torch.zeros_like(low_BK[:, 0])
    for _ in range(rounds):
        dual_BK = low_BK.clone()
        dual_BK[:, 0] -= high_B
        share_BK = (scores_BKN + dual_BK[:, :, None]).softmax(1).mean(2).clamp_min(1e-12)
        low_BK = torch.where(present_BK, (low_BK + (least_BK / share_BK).log()).clamp_min(0), 0)
        high_B = (high_B + (share_BK[:, 0] / background[1]).log()).clamp_min(0)
    dual_BK = low_BK.clone()
    dual_BK[:, 0] -= high_B
    return (scores_BKN + dual_BK[:, :, None]).softmax(1).view_as(scores_BKhw)


def cross_entropy(scores_BKhw: Tensor, targets: Tensor) -> Tensor:
    """The mean over the places; targets are classes (B x h x w) or distributions (B x K x h x w)."""
    return functional.cross_entropy(scores_BKhw.float(), targets)


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(1e-5).log()


def _of_present(values_BK: Tensor, present_BK: Tensor) -> Tensor:
    return _mean_where(values_BK, present_BK).mean()


def _mean_where(values_BK: Tensor, chosen_BK: Tensor) -> Tensor:
    """The mean over the chosen classes, 0 where there is none: B."""
    chosen = chosen_BK.to(values_BK.dtype)
    return (values_BK * chosen).sum(1) / chosen.sum(1).clamp_min(1)
