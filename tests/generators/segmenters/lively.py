"""A Detectron2 Mask R-CNN that finds things without trained weights, and frames for it to look at."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from mvray.data.synthetic import drawings

CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


def frame(seed: int, height: int, width: int, things: int = 4) -> np.ndarray:
    """H x W x 3 uint8 RGB: real drawings over soft colours."""
    draw = np.random.default_rng(seed)
    colours = Image.fromarray(draw.integers(60, 220, (6, 8, 3), dtype=np.uint8))
    picture = colours.resize((width, height), Image.Resampling.BICUBIC)
    artist = drawings.artists()[0]
    names = sorted(drawings.names(artist))
    for _ in range(things):
        side = int(draw.integers(min(height, width) // 5, min(height, width) * 2 // 3))
        thing = drawings.drawing(artist, names[draw.integers(len(names))]).image.resize((side, side))
        picture.paste(thing, (int(draw.integers(0, width - side)), int(draw.integers(0, height - side))), thing)
    return np.asarray(picture)


@torch.no_grad()
def make_lively(predictor, pixels: np.ndarray) -> None:
    """Give the random network of a DefaultPredictor outputs that differ from place to place.

    While it looks at a frame, each frozen batch norm takes the mean and variance of what it gets, and the
    outputs of the last layers get mean 0 and a spread of their own, so that many boxes with varied classes,
    scores and masks come out. Each block of the ResNet adds little to what goes past it, as in trained
    ones: else rounding errors grow from block to block until Detectron2 on one thread and on two find
    masks with an IoU of 0.98.
    """
    from detectron2.layers import FrozenBatchNorm2d
    from detectron2.modeling.backbone.resnet import BottleneckBlock

    heads, proposals = predictor.model.roi_heads, predictor.model.proposal_generator.rpn_head
    spreads = {
        proposals.objectness_logits: 2.0,
        proposals.anchor_deltas: 0.2,
        heads.box_predictor.cls_score: 2.0,
        heads.box_predictor.bbox_pred: 0.5,
        heads.mask_head.predictor: 3.0,
    }
    done = set()

    def set_norm(norm, given):
        norm.running_mean.copy_(given[0].mean((0, 2, 3)))
        norm.running_var.copy_(given[0].var((0, 2, 3)))

    def set_spread(layer, given, out):
        if layer in done or not len(out):
            return None
        done.add(layer)
        others = [0, *range(2, out.dim())]
        factor = spreads[layer] / out.std(others).clamp(min=1e-6)
        layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.copy_((layer.bias - out.mean(others)) * factor)
        return layer.forward(*given)

    layers = list(predictor.model.modules())
    for block in (each for each in layers if isinstance(each, BottleneckBlock)):
        block.conv3.norm.weight.fill_(0.2)
    hooks = [each.register_forward_pre_hook(set_norm) for each in layers if isinstance(each, FrozenBatchNorm2d)]
    hooks += [layer.register_forward_hook(set_spread) for layer in spreads]
    predictor(pixels)
    for hook in hooks:
        hook.remove()
    assert done == set(spreads)
