"""The parts of the small Mask R-CNN of detectors.py that torchvision's lacks. Needs torch while it is imported.

Legend: B pictures, R regions, C channels, H x W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from mvray.nn.roi_align import roi_align

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.models.detection.image_list import ImageList
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


FINEST = "0"  # what the finest features are called, at 1/2 of the picture


WIDTHS = (24, 48, 80, 112)
BLOCKS = (0, 1, 2, 2)
"""Residual blocks of each stage after the convolution that halves the sides."""
OUT = 48
FINE = "1"
"""What the features at 1/4 of the picture are called."""
STRIDES = {FINEST: 2, FINE: 4}


def norm(channels: int) -> torch.nn.GroupNorm:
    """Does not depend on how many pictures or regions come together (Wu and He 2018, arXiv 1803.08494).

    Without any, detectors hardly learn from random weights (He et al. 2018, arXiv 1811.08883, section 3).
    """
    return torch.nn.GroupNorm(8, channels)


class SmallPyramid(torch.nn.Module):
    """B x 3 x H x W to features of `OUT` channels at 1/2, 1/4, 1/8 and 1/16, named "0" to "3"."""

    out_channels = OUT

    def __init__(self) -> None:
        super().__init__()
        sizes = zip((3, *WIDTHS[:-1]), WIDTHS, BLOCKS, strict=True)
        self.stages = torch.nn.ModuleList(_Stage(*size) for size in sizes)
        self.pyramid = FeaturePyramidNetwork(list(WIDTHS), OUT, norm_layer=norm)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        levels = OrderedDict()
        for at, stage in enumerate(self.stages):
            images_BCHW = stage(images_BCHW)
            levels[str(at)] = images_BCHW
        out: dict[str, Tensor] = self.pyramid(levels)
        return out


class SmallMaskRcnn(MaskRCNN):  # type: ignore[misc]
    """A Mask R-CNN that also classifies each pixel from the finest features and uses both for its instances."""

    def __init__(self, classes: int, **settings: Any) -> None:
        super().__init__(SmallPyramid(), **settings)
        self.semantic = torch.nn.Conv2d(OUT, classes, 1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """As torchvision's; the masks of the instances are `agreed` with the pixels' classes."""
        if self.training:
            return super().forward(images, targets)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        resized, _ = self.transform(images)
        features = self.backbone(resized.tensors)
        proposals, _ = self.rpn(resized, features)
        out, _ = self.roi_heads(features, proposals, resized.image_sizes)
        out = self.transform.postprocess(out, resized.image_sizes, sizes)
        for of_image, share_KHW in zip(out, self.shares(features, resized, sizes), strict=True):
            of_image["masks"] = agreed(of_image["masks"], 1 - share_KHW[0])
        return out

    def shares(self, features: Mapping[str, Tensor], resized: ImageList, sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Each class's probability at each pixel of pictures of these sizes, K x H x W; class 0 is none."""
        shape = resized.tensors.shape[2:]
        scores_BKHW = torch.nn.functional.interpolate(self.semantic(features[FINEST]), size=shape, mode="bilinear")
        return [
            torch.nn.functional.interpolate(scores_KHW[None, :, :height, :width].softmax(1), size, mode="bilinear")[0]
            for scores_KHW, (height, width), size in zip(scores_BKHW, resized.image_sizes, sizes, strict=True)
        ]


def agreed(masks_N1HW: Tensor, foreground_HW: Tensor) -> Tensor:
    """Probabilities of two experts with equal priors put together: their log-odds are added (Bordley 1982).

    The one knows instances at 28 x 28 places of a box, the other outlines. It is never surer than 49 to 1.
    """
    sure_HW = foreground_HW.clamp(0.02, 0.98)
    both_N1HW = masks_N1HW * sure_HW
    return both_N1HW / (both_N1HW + (1 - masks_N1HW) * (1 - sure_HW))


class _Stage(torch.nn.Module):
    """Halves the sides, then residual blocks that begin as the identity."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.first = torch.nn.Sequential(*_convolution(inputs, outputs, 2), torch.nn.ReLU(inplace=True))
        self.blocks = torch.nn.ModuleList(_block(outputs) for _ in range(blocks))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        features_BCHW = self.first(features_BCHW)
        for block in self.blocks:
            features_BCHW = torch.relu(features_BCHW + block(features_BCHW))
        return features_BCHW


def _block(channels: int) -> torch.nn.Sequential:
    first, (second, last) = _convolution(channels, channels, 1), _convolution(channels, channels, 1)
    torch.nn.init.zeros_(last.weight)
    return torch.nn.Sequential(*first, torch.nn.ReLU(inplace=True), second, last)


def _convolution(inputs: int, outputs: int, stride: int) -> tuple[torch.nn.Conv2d, torch.nn.BatchNorm2d]:
    layer = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer, torch.nn.BatchNorm2d(outputs)


class RoiPool(MultiScaleRoIAlign):  # type: ignore[misc]
    """R x C x side x side from the features of one level, through our roi_align: 0.42 of the time, there and back,
    on a CPU. The original takes the level at 1/4 for all regions of less than 112 x 112 pixels."""

    def __init__(self, level: str, side: int, samples: int) -> None:
        super().__init__([level], side, samples)

    def forward(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        numbered = [torch.nn.functional.pad(boxes_P4, (1, 0), value=float(at)) for at, boxes_P4 in enumerate(boxes)]
        (level,), side, samples = self.featmap_names, self.output_size[0], self.sampling_ratio
        features_BCHW = features[level].contiguous(memory_format=torch.channels_last)
        return roi_align(features_BCHW, torch.cat(numbered), side, 1 / STRIDES[level], samples, aligned=False)


class Anchors(AnchorGenerator):  # type: ignore[misc]
    """Boxes of three shapes and one size at each place of all features but the finest, which only masks need."""

    def __init__(self) -> None:
        super().__init__(((16,), (36,), (72,)), ((0.5, 1.0, 2.0),) * 3)

    def forward(self, images: Any, features: list[Tensor]) -> list[Tensor]:
        anchors: list[Tensor] = super().forward(images, features[1:])
        return anchors


class ProposalHead(RPNHead):  # type: ignore[misc]
    """Scores and moves them."""

    def __init__(self, anchors: Anchors) -> None:
        super().__init__(OUT, anchors.num_anchors_per_location()[0])

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores_and_offsets: tuple[list[Tensor], list[Tensor]] = super().forward(features[1:])
        return scores_and_offsets


class BoxHead(torch.nn.Sequential):
    """R x C x side x side to R x ``width``."""

    def __init__(self, inputs: int, width: int) -> None:
        layers: list[torch.nn.Module] = [torch.nn.Flatten()]
        for size in (inputs, width):
            layers += [torch.nn.Linear(size, width), torch.nn.LayerNorm(width), torch.nn.ReLU(inplace=True)]
        super().__init__(*layers)
