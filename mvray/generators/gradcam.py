"""Grad-CAM maps of a trained network for every sample (nn/cam.py), at the resolution of its feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import torch

from mvray.errors import DataError, SettingError
from mvray.experiment import Batch, Generator, Read, Train
from mvray.generators.columns import as_lists, as_table
from mvray.generators.through import ThroughConfig
from mvray.nn import Method, cam, networks


@dataclass(frozen=True, kw_only=True)
class Config(ThroughConfig):
    """Maps of the network that ``of`` trained.

    ``layer`` is a dotted name in the method, "" its own choice, or its last convolution. ``target`` is the class
    whose score is explained: "predicted" (what the network relies on for its own decision, with or without labels)
    or "label". Takeuchi does not say which; on training pages they are nearly always one.
    """

    kind: ClassVar[str] = "gradcam"
    of: Train
    layer: str = ""
    target: str = "predicted"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target not in ("label", "predicted"):
            raise SettingError(f"generator.target is {self.target!r}; expected label or predicted.")

    def build(self, method: Method | None, read: Read) -> Generator:
        assert method is not None, "Grad-CAM looks through a trained method"
        return GradCam(self, method)


class GradCam(Generator):
    """Columns: ``map`` (0..1, fixed-size list of float16 with its shape in the field's metadata), ``peak``
    (float32, the map's greatest value before it was scaled), ``predicted`` (int32) and ``scores``
    (float16, the probabilities of the K classes)."""

    def __init__(self, config: Config, method: Method) -> None:
        self._target, self._method = config.target, method
        self._layer = config.layer or method.attention_layer or networks.last_convolution(method)

    def __call__(self, batch: Batch) -> pa.Table:
        """Raises DataError for a sample without a label where labels are explained."""
        classes_B = batch["label"] if self._target == "label" else None
        if classes_B is not None and bool((classes_B < 0).any()):
            raise DataError("Some samples have no label; expected one for each. Set generator.target to predicted.")
        maps_BHW, scores_BK = cam.grad_cam(
            self._method.class_scores, self._method, self._layer, batch["image"], classes_B
        )
        predicted_B, probabilities_BK = scores_BK.argmax(1), scores_BK.float().softmax(1)
        columns = {
            "map": as_lists(cam.normalise(maps_BHW)),
            "peak": pa.array(maps_BHW.amax((1, 2)).float().cpu().numpy()),
            "predicted": pa.array(predicted_B.to(torch.int32).cpu().numpy()),
            "scores": as_lists(probabilities_BK),
        }
        return as_table(columns, {"map": maps_BHW})
