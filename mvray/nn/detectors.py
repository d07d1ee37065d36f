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
    """Mask R-CNN for frames of about 120 pixels: four convolutional stages, features at 1/4, 1/8 and 1/16.

    Widths are about a tenth of ResNet50-FPN's.
    """
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    from mvray.nn.small_pyramid import OUT, SmallPyramid

    levels = ["0", "1", "2"]
    return MaskRCNN(
        SmallPyramid(),
        min_size=120,
        max_size=400,
        rpn_anchor_generator=AnchorGenerator(((16,), (36,), (72,)), ((0.5, 1.0, 2.0),) * 3),
        rpn_pre_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=60,
        rpn_batch_size_per_image=128,
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2),
        box_head=TwoMLPHead(OUT * 7 * 7, 128),
        box_predictor=FastRCNNPredictor(128, classes),
        box_batch_size_per_image=48,
        box_detections_per_img=20,
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2),
        mask_head=MaskRCNNHeads(OUT, (OUT, OUT), 1),
        mask_predictor=MaskRCNNPredictor(OUT, OUT, classes),
    )


def target(instances_HW: Tensor, labels_N: Tensor) -> dict[str, Tensor]:
    """torchvision's target of a picture whose pixels have the number of their instance, 0 for none.

    ``labels_N`` are the classes of instances 1, 2 ... from 0 on; -1 for none.
    """
    from torchvision.ops import masks_to_boxes

    numbers = torch.arange(1, len(labels_N) + 1, device=instances_HW.device)
    masks_NHW = instances_HW[None] == numbers[:, None, None]
    there = masks_NHW.flatten(1).any(1) & (labels_N >= 0)
    masks_NHW, labels = masks_NHW[there], labels_N[there]
    boxes_N4 = masks_to_boxes(masks_NHW)
    boxes_N4[:, 2:] += 1  # masks_to_boxes gives the last pixel, not the edge after it
    large = (boxes_N4[:, 2:] - boxes_N4[:, :2]).amin(1) >= LEAST_PX
    return {"boxes": boxes_N4[large], "labels": labels[large] + 1, "masks": masks_NHW[large].to(torch.uint8)}


def losses(
    model: Any, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]], draws: Sequence[int]
) -> dict[str, Tensor]:
    """The losses of section 3 by name, means over the pictures (3 x H x W, 0..1); ``draws`` are their random keys."""
    made, wanted = model.transform(list(images), [dict(each) for each in targets])
    features = model.backbone(made.tensors)
    sums: dict[str, Tensor] = {}
    with _training(model.rpn, model.roi_heads):
        for i, draw in enumerate(draws):
            one = _One(made.tensors[i : i + 1], [made.image_sizes[i]])
            mine = {name: level[i : i + 1] for name, level in features.items()}
            with torch.random.fork_rng():
                torch.manual_seed(draw & (2**63 - 1))
                proposals, found = model.rpn(one, mine, [wanted[i]])
                _, more = model.roi_heads(mine, proposals, one.image_sizes, [wanted[i]])
            for name, loss in {**found, **more}.items():
                sums[name] = sums.get(name, 0.0) + loss
    return {name: total / len(draws) for name, total in sums.items()}


class _One:
    """torchvision's ImageList of one picture."""

    def __init__(self, tensors: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensors, self.image_sizes = tensors, image_sizes


@contextmanager
def _training(*modules: torch.nn.Module) -> Iterator[None]:
    """These modules give losses, in eval mode too; what is inside them keeps its mode."""
    before = [module.training for module in modules]
    for module in modules:
        module.training = True
    try:
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.training = mode


def instance_iou(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> tuple[list[float], float]:
    """Of each true instance the IoU with the best found mask of its class (0 for none), and the IoU of the unions.

    ``found`` and ``truth`` have ``masks`` (N x H x W bool) and ``labels`` (N). The unions' IoU is NaN
    where neither has any.
    """
    each: list[float] = []
    for mask_HW, label in zip(truth["masks"].bool(), truth["labels"], strict=True):
        same_NHW = found["masks"][found["labels"] == label]
        both, either = (same_NHW & mask_HW).flatten(1).sum(1), (same_NHW | mask_HW).flatten(1).sum(1)
        each.append(float((both / either).max()) if len(same_NHW) else 0.0)
    one_HW, other_HW = (side["masks"].bool().any(0) for side in (found, truth))
    either_all = (one_HW | other_HW).sum()
    return each, float((one_HW & other_HW).sum() / either_all) if either_all else float("nan")
