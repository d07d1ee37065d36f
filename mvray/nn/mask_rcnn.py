"""torchvision's Mask R-CNN: the network by name, and what it finds in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mvray.errors import SettingError
from mvray.experiment import Instances
from mvray.nn.lanes import in_passes

if TYPE_CHECKING:
    from torch import Tensor

NETWORKS = ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
LEAST_IN_MASK = 0.5
"""A pixel belongs to a mask where its probability is at least this (Detectron2's rule too)."""


def network(name: str, classes: int, **settings: Any) -> torch.nn.Module:
    """torchvision's Mask R-CNN, one of NETWORKS, with random weights, for ``classes`` classes besides background.

    ``settings`` are those of torchvision.models.detection.MaskRCNN (min_size, max_size in pixels, ...).
    """
    import torchvision

    if name not in NETWORKS:
        raise SettingError(f"network is {name!r}; expected one of {', '.join(NETWORKS)}.")
    detector: torch.nn.Module = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=classes + 1, **settings
    )
    return detector


def coco_classes() -> tuple[str, ...]:
    """The names that torchvision's own weights count through, without background; those not in use are "N/A"."""
    import torchvision

    names: list[str] = torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(names[1:])


def segment(model: torch.nn.Module, images: Sequence[Tensor]) -> list[Instances]:
    """The instances that a torchvision MaskRCNN in eval mode finds in each image, best score first.

    ``images`` are 3 x H x W uint8 RGB on any device, of any sizes. Masks and boxes are in the image's
    pixels; label 0 is the first class after background. What is less sure than the model's
    ``roi_heads.score_thresh`` is left out.
    """
    device = next(model.parameters()).device

    def run(group: list[Tensor]) -> list[Instances]:
        outputs: list[dict[str, Tensor]] = model([image.to(device).float().div(255) for image in group])
        return [_instances(output) for output in outputs]

    return in_passes(run, images, [image.shape for image in images], device)


def _instances(output: dict[str, Tensor]) -> Instances:
    return Instances(
        masks=output["masks"][:, 0] >= LEAST_IN_MASK,
        labels=output["labels"] - 1,
        scores=output["scores"],
        boxes=output["boxes"],
    )
