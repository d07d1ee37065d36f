"""Mask R-CNN (He et al. 2017, arXiv 1703.06870) by name: torchvision's, and a small one for two CPU cores.

torchvision draws at random which anchors and proposals a loss is made of, and divides by how many the
whole batch has. Here each picture's draw belongs to it, and the loss is the mean over pictures: so a
sample counts alike in any batch and on any rank. Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from mvray.errors import SettingError
from mvray.experiment import Instances
from mvray.nn.small_pyramid import FINE, FINEST, OUT, Anchors, BoxHead, ProposalHead, RoiPool, SmallMaskRcnn, norm

if TYPE_CHECKING:
    from torch import Tensor

SMALL = "maskrcnn-small"
NAMES = (SMALL, "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
LEAST_PX = 2.0
"""Instances whose box is thinner are no targets: nothing of them is left at the features' resolution."""


def check_name(name: str) -> None:
    """Raises SettingError, with the names that there are, where no Mask R-CNN is called ``name``."""
    if name not in NAMES:
        raise SettingError(f"There is no Mask R-CNN {name!r}; expected one of {', '.join(NAMES)}.")


def mask_rcnn(name: str, classes: int) -> Any:
    """The Mask R-CNN called ``name`` for so many classes and the background, random from torch's seed."""
    check_name(name)
    if name == SMALL:
        return _small(classes + 1)
    import torchvision

    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes + 1)


def _small(classes: int) -> Any:
    """Mask R-CNN for frames of about 120 pixels, of about a tenth of ResNet50-FPN's width.

    It also tells each pixel's class from the finest features.
    """
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

    anchors = Anchors()
    return SmallMaskRcnn(
        classes,
        min_size=120,
        max_size=400,
        rpn_anchor_generator=anchors,
        rpn_head=ProposalHead(anchors),
        rpn_pre_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=60,
        rpn_batch_size_per_image=128,
        box_roi_pool=RoiPool(FINE, 7, 1),
        box_head=BoxHead(OUT * 7 * 7, 128),
        box_predictor=FastRCNNPredictor(128, classes),
        box_batch_size_per_image=32,
        box_detections_per_img=20,
        mask_roi_pool=RoiPool(FINEST, 14, 2),
        mask_head=MaskRCNNHeads(OUT, (OUT, OUT), 1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(OUT, OUT, classes),
    )


def target(instances_HW: Tensor, labels_N: Tensor) -> dict[str, Tensor]:
    """torchvision's target of a picture whose pixels have the number of their instance, 0 for none.

    ``labels_N`` are the classes of instances 1, 2 ... from 0 on; -1 for none.
    """
    from torchvision.ops import masks_to_boxes

    numbers = torch.arange(1, len(labels_N) + 1, device=instances_HW.device)
    masks_NHW = instances_HW[None] == numbers[:, None, None]
    labelled_N = masks_NHW.flatten(1).any(1) & (labels_N >= 0)
    masks_NHW, labels = masks_NHW[labelled_N], labels_N[labelled_N]
    boxes_N4 = masks_to_boxes(masks_NHW)
    boxes_N4[:, 2:] += 1  # masks_to_boxes gives the last pixel, not the edge after it
    large = (boxes_N4[:, 2:] - boxes_N4[:, :2]).amin(1) >= LEAST_PX
    return {"boxes": boxes_N4[large], "labels": labels[large] + 1, "masks": masks_NHW[large].to(torch.uint8)}


def losses(
    model: Any, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]], draws: Sequence[int]
) -> dict[str, Tensor]:
    """The losses of section 3 by name, means over the pictures (3 x H x W, 0..1); ``draws`` are their random keys.

    As torchvision's but for whose draw is whose and the mean over pictures, which is taken of the second stage
    here; the first draws as many anchors of each picture.
    """
    resized, resized_targets = model.transform(list(images), [dict(target_of_image) for target_of_image in targets])
    features = model.backbone(resized.tensors)
    with _training(model.rpn, draws), _training(model.roi_heads, draws):
        proposals, parts = model.rpn(resized, features, resized_targets)
        parts |= _second_stage(model.roi_heads, features, proposals, resized.image_sizes, resized_targets)
    if hasattr(model, "semantic"):
        parts["loss_semantic"] = _semantic(model.semantic(features[FINEST]), resized_targets)
    losses: dict[str, Tensor] = parts
    return losses


def pixel_losses(model: Any, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """``loss_semantic`` of `losses` alone, for half of the work; the small Mask R-CNN's only."""
    resized, resized_targets = model.transform(list(images), [dict(target_of_image) for target_of_image in targets])
    return {"loss_semantic": _semantic(model.semantic(model.backbone(resized.tensors)[FINEST]), resized_targets)}


def unseen_by_pixels(model: Any) -> tuple[torch.nn.Module, ...]:
    """The parts of the small Mask R-CNN that `pixel_losses` does not depend on."""
    return model.rpn, model.roi_heads, model.backbone.pyramid.layer_blocks[1:]


def regions(model: Any, images: Sequence[Tensor]) -> list[Instances]:
    """The pixels of each class as one instance, by the likeliest class of every pixel; the small Mask R-CNN's only.

    Pictures are 3 x H x W uint8. The score is the mean probability over the region.
    """
    device = next(model.parameters()).device
    resized, _ = model.transform([image.to(device).float() / 255 for image in images])
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    return [_regions(*share_KHW.max(0)) for share_KHW in model.shares(model.backbone(resized.tensors), resized, sizes)]


def _regions(likely_HW: Tensor, class_HW: Tensor) -> Instances:
    """One instance for each class above 0."""
    from torchvision.ops import masks_to_boxes

    labels_N = class_HW.unique()  # type: ignore[no-untyped-call]
    labels_N = labels_N[labels_N > 0]
    masks_NHW = class_HW == labels_N[:, None, None]
    scores_N = (masks_NHW * likely_HW).sum((1, 2)) / masks_NHW.sum((1, 2))
    boxes_N4 = masks_to_boxes(masks_NHW)
    boxes_N4[:, 2:] += 1  # masks_to_boxes gives the last pixel, not the edge after it
    order_N = scores_N.argsort(descending=True)
    return Instances(masks_NHW[order_N], labels_N[order_N] - 1, scores_N[order_N], boxes_N4[order_N])


def _second_stage(
    heads: Any, features: Any, proposals: Any, sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Classes, boxes and masks of proposals. R: proposals that were drawn, P: those of them with an instance."""
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    proposals, matched, labels, boxes = heads.select_training_samples(proposals, targets)
    share_R, label_R, box_R4 = _share(labels), torch.cat(labels), torch.cat(boxes)
    scores_RK, made_RD = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, sizes)))
    class_loss_R = torch.nn.functional.cross_entropy(scores_RK, label_R, reduction="none")
    positive = (label_R > 0).nonzero()[:, 0]
    made_P4 = made_RD.reshape(len(label_R), -1, 4)[positive, label_R[positive]]
    box_loss_P = torch.nn.functional.smooth_l1_loss(made_P4, box_R4[positive], beta=1 / 9, reduction="none").sum(1)

    chosen = [(of_image > 0).nonzero()[:, 0] for of_image in labels]
    corners = [of_image[kept] for of_image, kept in zip(proposals, chosen, strict=True)]
    masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, corners, sizes)))
    side = masks.shape[-1]
    wanted_Pmm = torch.cat(
        [
            project_masks_on_boxes(target["masks"], corner, match[kept], side)
            for target, corner, match, kept in zip(targets, corners, matched, chosen, strict=True)
        ]
    )
    made_Pmm = masks[torch.arange(len(positive), device=masks.device), label_R[positive]]
    mask_loss_Pmm = torch.nn.functional.binary_cross_entropy_with_logits(made_Pmm, wanted_Pmm, reduction="none")
    return {
        "loss_classifier": (share_R * class_loss_R).sum(),
        "loss_box_reg": (share_R[positive] * box_loss_P).sum(),
        "loss_mask": (_share(chosen) * mask_loss_Pmm.mean((1, 2))).sum(),
    }


def _semantic(scores_BKhw: Tensor, targets: Sequence[dict[str, Tensor]]) -> Tensor:
    """Cross-entropy of each pixel's class, the mean over pictures (Kirillov et al. 2019, arXiv 1901.02446, section 3).

    Every pixel says something, where the second stage learns from a few regions of a picture: from random
    weights the features are learnt in fewer steps.
    """
    scores_BKHW = torch.nn.functional.interpolate(scores_BKhw, scale_factor=2, mode="bilinear")
    losses = []
    for scores_KHW, target in zip(scores_BKHW, targets, strict=True):
        masks_NHW = target["masks"]
        height, width = masks_NHW.shape[1:]
        classes_HW = masks_NHW.new_zeros((height, width), dtype=torch.long)
        for mask_HW, label in zip(masks_NHW.bool(), target["labels"], strict=True):
            classes_HW[mask_HW] = label
        losses.append(torch.nn.functional.cross_entropy(scores_KHW[None, :, :height, :width], classes_HW[None]))
    return torch.stack(losses).mean()


def _share(parts: Sequence[Tensor]) -> Tensor:
    """What each element counts in a mean over pictures of the mean over each one's elements."""
    pictures = len(parts)
    return torch.cat(
        [torch.full((len(part),), 1 / (pictures * max(1, len(part))), device=part.device) for part in parts]
    )


class _SeededSampler:
    """A sampler of torchvision's that draws for each picture by that picture's key."""

    def __init__(self, sampler: Any, draws: Sequence[int]) -> None:
        self._sampler, self._draws = sampler, draws

    def __call__(self, matched: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        samples = []
        for matched_P, draw in zip(matched, self._draws, strict=True):
            with torch.random.fork_rng([matched_P.device] if matched_P.is_cuda else []):
                torch.manual_seed(draw & (2**63 - 1))
                samples.append(self._sampler([matched_P]))
        return [positive for (positive,), _ in samples], [negative for _, (negative,) in samples]


@contextmanager
def _training(stage: Any, draws: Sequence[int]) -> Iterator[None]:
    """``stage`` computes losses also in eval mode and samples by these keys; its submodules keep their mode."""
    mode, sampler = stage.training, stage.fg_bg_sampler
    stage.training, stage.fg_bg_sampler = True, _SeededSampler(sampler, draws)
    try:
        yield
    finally:
        stage.training, stage.fg_bg_sampler = mode, sampler


def instance_iou(predicted: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> tuple[list[float], float]:
    """Of each true instance the IoU with the best found mask of its class (0 for none), and the IoU of the unions.

    ``predicted`` and ``truth`` have ``masks`` (N x H x W bool) and ``labels`` (N). The unions' IoU is NaN
    where neither has any.
    """
    best: list[float] = []
    for mask_HW, label in zip(truth["masks"].bool(), truth["labels"], strict=True):
        same_NHW = predicted["masks"][predicted["labels"] == label]
        both, either = (same_NHW & mask_HW).flatten(1).sum(1), (same_NHW | mask_HW).flatten(1).sum(1)
        best.append(float((both / either).max()) if len(same_NHW) else 0.0)
    one_HW, other_HW = (side["masks"].bool().any(0) for side in (predicted, truth))
    either_all = (one_HW | other_HW).sum()
    return best, float((one_HW & other_HW).sum() / either_all) if either_all else float("nan")
