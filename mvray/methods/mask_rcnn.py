"""Instance segmentation: Mask R-CNN (He et al. 2017, arXiv 1703.06870) on frames with instance masks.

The masks are a generated column (generators/instance_masks.py), used without union: data joined by
``with_masks(step, Masks(union=False))``. Trained on the frames of clips, or on pictures. A trained step
finds instances for others through segmenters/mask_rcnn.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from mvray.errors import DataError, SettingError
from mvray.experiment import FILE, Batch, Facts, Instances, MethodConfig
from mvray.nn import CopyPaste, Group, Method, detectors, draws, segment, weights

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MASKS, LABELS = "masks", "mask_labels"
INSTANCES, PIXELS = "instances", "pixels"
_COLOUR = 104  # the stream of a sample's draw (nn/draws.py)


@dataclass(frozen=True)
class Config(MethodConfig):
    """``network`` is one of detectors.NAMES; ``classes`` name the labels of the masks that are learnt from.

    ``weights``: a state dict of the same network, classes included ("": random). ``least_score``: from
    which score on an instance counts in ``predict``. ``distort``: in training, each sample's channels are
    shuffled and each is multiplied by 1 - distort .. 1 + distort and shifted by half as much of the whole
    range, after Liu et al. 2016 (SSD, arXiv 1512.02325, section 2.2): outlines must tell, not colours.
    ``paste``: the share of the batch's next sample's instances that are pasted into each in training
    (nn/copy_paste.py).

    ``learns`` PIXELS is a first step for the small network: it learns what class each pixel has, and no more,
    for half of the work; a step that learns INSTANCES begins with its weights (``Train.start_from``). What
    such a step finds is one region for each class.
    """

    kind: ClassVar[str] = "mask_rcnn"
    scores: ClassVar[tuple[str, ...]] = ("mask_iou", "union_iou")
    network: str = detectors.SMALL
    classes: tuple[str, ...] = ("person", "object")
    weights: str = field(default="", metadata=FILE)
    least_score: float = 0.5
    distort: float = 0.0
    paste: float = 0.0
    learns: str = INSTANCES

    def __post_init__(self) -> None:
        if not 0 <= self.least_score <= 1:
            raise SettingError(f"method.least_score is {self.least_score}; expected 0 to 1.")
        if not 0 <= self.distort < 1:
            raise SettingError(f"method.distort is {self.distort}; expected 0 up to, not including, 1.")
        if not 0 <= self.paste <= 1:
            raise SettingError(f"method.paste is {self.paste}; expected a share, 0 to 1.")
        if self.learns not in (INSTANCES, PIXELS):
            raise SettingError(f"method.learns is {self.learns!r}; expected {INSTANCES!r} or {PIXELS!r}.")

    @property
    def needs(self) -> tuple[str, ...]:
        return (MASKS,)

    @property
    def predict_uses(self) -> tuple[str, ...]:
        return (MASKS,)

    def check(self, facts: Facts) -> None:
        detectors.check_name(self.network)
        if self.learns == PIXELS and self.network != detectors.SMALL:
            raise SettingError(
                f"{self.network} does not tell pixels' classes; expected {detectors.SMALL} to learn pixels."
            )

    def build(self, facts: Facts) -> Method:
        return MaskRcnn(self)


class MaskRcnn(Method):
    """A Mask R-CNN on every frame of the batch."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.classes = config, config.classes
        self.model = detectors.mask_rcnn(config.network, len(config.classes))
        self.paste = CopyPaste(config.paste)
        if config.weights:
            weights.load(self.model, config.network, config.weights, "")
        if config.learns == PIXELS:
            for waiting in detectors.unseen_by_pixels(self.model):
                waiting.requires_grad_(False)

    def groups(self, phase: str) -> Sequence[Group]:
        return (Group([parameter for parameter in self.parameters() if parameter.requires_grad]),)

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        frames_NCHW = _frames(batch).float() / 255
        if self.training and self.config.distort:
            frames_NCHW = distort_colours(frames_NCHW, batch["draw"], self.config.distort)
        frames_NCHW, *instances = self.paste(frames_NCHW, *_instances(batch), batch["draw"])
        targets = _targets(*instances)
        if self.config.learns == PIXELS:
            return detectors.pixel_losses(self.model, list(frames_NCHW), targets)
        frames = len(frames_NCHW) // len(batch["draw"])
        keys = [draw + t for draw in batch["draw"].tolist() for t in range(frames)]
        return detectors.losses(self.model, list(frames_NCHW), targets, keys)

    def segment(self, images: Sequence[Tensor]) -> list[Instances]:
        """The instances of pictures, 3 x H x W uint8 of any sizes, with any score."""
        if self.config.learns == PIXELS:
            return detectors.regions(self.model, images)
        return segment(self.model, images)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``instances``: how many were found per frame (B float32). Where the batch has masks, per sample
        ``mask_iou``, the mean over its true instances of the IoU with the best found mask of their class (0
        where there is none); ``CLASS_iou``, the same over those of each class; and ``union_iou``, the mean
        over its frames of the IoU of all found with all true masks (B float32; NaN without any instance)."""
        frames_NCHW = _frames(batch)
        samples = len(batch["label"])
        instances = [self._sure(of_frame) for of_frame in self.segment(list(frames_NCHW))]
        counts = torch.tensor([float(len(of_frame["labels"])) for of_frame in instances], device=frames_NCHW.device)
        columns = {"instances": counts.reshape(samples, -1).mean(1)}
        if MASKS in batch:
            columns |= self._agreement(instances, _targets(*_instances(batch)), samples)
        return columns

    def _agreement(
        self, predicted: list[dict[str, Tensor]], truth: list[dict[str, Tensor]], samples: int
    ) -> dict[str, Tensor]:
        """Means of IoUs over each sample's frames, by column."""
        frames = len(truth) // samples
        columns: dict[str, list[Tensor]] = {}
        for at in range(0, len(truth), frames):
            pairs = list(zip(predicted[at : at + frames], truth[at : at + frames], strict=True))
            ious, unions = zip(*(detectors.instance_iou(one, other) for one, other in pairs), strict=True)
            iou_N, labels = (
                torch.tensor([iou for frame in ious for iou in frame]),
                torch.cat([other["labels"].cpu() for _, other in pairs]),
            )
            columns.setdefault("mask_iou", []).append(iou_N.nanmean())
            columns.setdefault("union_iou", []).append(torch.tensor(unions).nanmean())
            for label, name in enumerate(self.classes, start=1):
                columns.setdefault(f"{name}_iou", []).append(iou_N[labels == label].nanmean())
        return {name: torch.stack(values) for name, values in columns.items()}

    def _sure(self, instances: Instances) -> dict[str, Tensor]:
        sure = instances.scores >= self.config.least_score
        return {"masks": instances.masks[sure], "labels": instances.labels[sure] + 1}

    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        """``mask_iou`` and ``union_iou``, means over the samples with instances. Raises DataError without masks."""
        if "mask_iou" not in columns:
            raise DataError(
                "The validation samples have no instance masks to be compared with; expected the masks' Generate step "
                "to run over them too. Let it run over all splits."
            )
        return {name: float(np.nanmean(columns[name])) for name in ("mask_iou", "union_iou")}


def distort_colours(frames_NCHW: Tensor, draw_B: Tensor, strength: float) -> Tensor:
    """Pictures (0..1) with channels shuffled, stretched and shifted, all frames of a sample alike."""
    order_B3, gain_B3, shift_B3 = draws.uniform(draw_B, _COLOUR, (3, 3)).unbind(1)
    order_B3, gain_B3, shift_B3 = order_B3.argsort(1), 1 + strength * (2 * gain_B3 - 1), strength * (shift_B3 - 0.5)
    frames = len(frames_NCHW) // len(draw_B)
    order_N3, gain_N3, shift_N3 = (per_clip.repeat_interleave(frames, 0) for per_clip in (order_B3, gain_B3, shift_B3))
    shuffled_NCHW = frames_NCHW.gather(1, order_N3[..., None, None].expand_as(frames_NCHW))
    return (shuffled_NCHW * gain_N3[..., None, None] + shift_N3[..., None, None]).clamp(0, 1)


def _frames(batch: Batch) -> Tensor:
    """All frames of the batch, sample by sample, N x 3 x H x W uint8."""
    if "clip" in batch:
        frames: Tensor = batch["clip"].transpose(1, 2).flatten(0, 1)
        return frames
    return batch["image"].expand(-1, 3, -1, -1)


def _instances(batch: Batch) -> tuple[Tensor, Tensor]:
    """Of all frames, the pixels' instances, N x H x W, and these ones' classes, N x K."""
    return batch[MASKS].flatten(0, 1), batch[LABELS].flatten(0, 1)


def _targets(masks_NHW: Tensor, labels_NK: Tensor) -> list[dict[str, Tensor]]:
    return [detectors.target(masks_HW, labels_K) for masks_HW, labels_K in zip(masks_NHW, labels_NK, strict=True)]
