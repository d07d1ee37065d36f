"""torchvision's Mask R-CNN (He et al. 2017): with weights from a file, or trained by a step of the job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, cast

import torch

from mvray.errors import SettingError
from mvray.experiment import FILE, Frame, Instances, Read, Segmenter, SegmenterConfig, Train
from mvray.nn import Method, mask_rcnn, weights


@dataclass(frozen=True)
class Config(SegmenterConfig):
    """Either ``of``, a step that trained a segmenter, or ``weights``, a state dict of ``network``.

    What follows is for ``weights``, a .pth or .safetensors file. ``classes`` are the names of its classes
    without background, () those of COCO as torchvision's own weights have them. The shorter side of a
    frame is brought to ``min_size`` pixels, the longer to at most ``max_size``; at most ``detections``
    instances with a score above ``least_score`` are found in a frame.
    """

    kind: ClassVar[str] = "mask_rcnn"
    of: Train | None = None
    network: str = "maskrcnn_resnet50_fpn"
    weights: str = field(default="", metadata=FILE)
    classes: tuple[str, ...] = ()
    min_size: int = 800
    max_size: int = 1333
    detections: int = 100
    least_score: float = 0.05

    def __post_init__(self) -> None:
        if self.network not in mask_rcnn.NETWORKS:
            raise SettingError(
                f"segmenter.network is {self.network!r}; expected one of {', '.join(mask_rcnn.NETWORKS)}."
            )
        if not (1 <= self.min_size <= self.max_size and self.detections >= 1 and 0 <= self.least_score < 1):
            raise SettingError(
                f"segmenter: min_size {self.min_size}, max_size {self.max_size}, detections {self.detections}, "
                f"least_score {self.least_score}; expected 1 <= min_size <= max_size, at least 1, 0 to less than 1."
            )

    @property
    def looks_through(self) -> Train | None:
        return self.of

    def check(self) -> None:
        """Raises SettingError unless there are weights from exactly one place."""
        if bool(self.weights) == (self.of is not None):
            stated = "both segmenter.of and segmenter.weights" if self.weights else "no weights"
            raise SettingError(
                f"The segmenter mask_rcnn has {stated}; expected either of, a Train step of the job, or weights, "
                "the path of a state dict of torchvision's Mask R-CNN (--set STEP.generator.segmenter.weights=FILE)."
            )

    def build(self, method: Method | None, read: Read) -> Segmenter:
        self.check()
        if self.of is not None:
            return TrainedSegmenter(method)
        return MaskRcnnSegmenter(self)


class Segments(Protocol):
    """What a Method must offer for ``of`` to name its step."""

    classes: tuple[str, ...]

    def segment(self, images: list[torch.Tensor]) -> list[Instances]: ...


class TrainedSegmenter(Segmenter):
    """Looks through a Method that has ``segment(images)`` and ``classes``. Raises SettingError for another."""

    def __init__(self, method: Method | None) -> None:
        if not hasattr(method, "segment"):
            raise SettingError(
                f"segmenter.of names a step that trained {type(method).__name__}, which finds no instances; "
                "expected a step with a method such as mask_rcnn."
            )
        self._method = cast(Segments, method)
        self.classes = tuple(self._method.classes)

    def __call__(self, frames: Sequence[Frame]) -> list[Instances]:
        return self._method.segment(_images(frames))


class MaskRcnnSegmenter(Segmenter):
    """torchvision's network. Raises DataError for weights of another network or number of classes."""

    def __init__(self, config: Config) -> None:
        self.classes = config.classes or mask_rcnn.coco_classes()
        network = mask_rcnn.network(
            config.network,
            len(self.classes),
            min_size=config.min_size,
            max_size=config.max_size,
            box_detections_per_img=config.detections,
            box_score_thresh=config.least_score,
        )
        weights.load(network, f"{config.network} with {len(self.classes)} classes", config.weights, head="")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def __call__(self, frames: Sequence[Frame]) -> list[Instances]:
        return mask_rcnn.segment(self._network, _images(frames))


def _images(frames: Sequence[Frame]) -> list[torch.Tensor]:
    """3 x H x W uint8 RGB."""
    return [torch.tensor(frame.pixels).permute(2, 0, 1) for frame in frames]
