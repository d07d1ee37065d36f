"""Image classification, with parts of the training pictures hidden.

    nothing     cross-entropy on the pictures as they are
    random      Random Erasing (Zhong et al. 2017, arXiv 1708.04896, Algorithm 1)
    attention   what an earlier network attends to is hidden: its Grad-CAM maps (Selvaraju et al. 2017)
                are a generated column, and where they reach ``threshold`` the picture is erased
                (Takeuchi, Kuroki, Numa: control of where a CNN looks, phase 3)

The three differ in nothing but the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from mvray.errors import SettingError
from mvray.experiment import FILE, Batch, Facts, MethodConfig
from mvray.nn import Method, hiding, networks

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MAP = "map"
"""The generated column with the attention maps (generators/gradcam.py)."""


@dataclass(frozen=True)
class Config(MethodConfig):
    """``hide`` is "nothing", "random" or "attention"; each training picture is hidden with ``probability``.

    ``threshold`` is the share of a map's own maximum (after scaling to 0..1) from which on a place
    counts as looked at. The paper shows "the red region" and gives no number; 0.5 is our choice.
    ``fill`` (mean, constant, noise, blur; see hiding.fill) and ``constant`` say what is put there.
    ``area`` and ``aspect`` belong to "random" and are that paper's values. ``dropout`` is the rate
    of the network's dropout layers, None as the network has it. ``mean`` and ``std`` (of 0..1, per
    channel) are ImageNet's, which torchvision's weights expect. ``weights``: see networks.network.
    """

    kind: ClassVar[str] = "classifier"
    scores: ClassVar[tuple[str, ...]] = ("accuracy", "accuracy_per_class_mean", "loss")
    network: str = "alexnet"
    weights: str = field(default="", metadata=FILE)
    hide: str = "nothing"
    probability: float = 0.5
    threshold: float = 0.5
    fill: str = "mean"
    constant: int = 0
    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 3.3)
    label_smoothing: float = 0.0
    dropout: float | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("hide", self.hide, ("nothing", "random", "attention")),
            ("fill", self.fill, hiding.FILLS),
        ):
            if value not in allowed:
                raise SettingError(f"method.{name} is {value!r}; expected one of {', '.join(allowed)}.")
        for name, number, holds, expected in (
            ("probability", self.probability, 0 <= self.probability <= 1, "0 to 1"),
            ("threshold", self.threshold, 0 < self.threshold <= 1, "above 0, up to 1"),
            ("constant", self.constant, 0 <= self.constant <= 255, "0 to 255"),
            ("area", self.area, 0 < self.area[0] <= self.area[1] < 1, "0 < least <= most < 1"),
            ("aspect", self.aspect, 0 < self.aspect[0] <= self.aspect[1], "0 < least <= most"),
            ("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "0 up to, not including, 1"),
            ("dropout", self.dropout, self.dropout is None or 0 <= self.dropout < 1, "None, or 0 up to below 1"),
            ("std", self.std, min(self.std) > 0, "values above 0"),
        ):
            if not holds:
                raise SettingError(f"method.{name} is {number}; expected {expected}.")

    @property
    def needs(self) -> tuple[str, ...]:
        return (MAP,) if self.hide == "attention" else ()

    def check(self, facts: Facts) -> None:
        networks.check_name(self.network)

    def build(self, facts: Facts) -> Method:
        return Classifier(self, facts)

    def hidden(self, batch: Batch, probability: float = 1.0) -> Tensor:
        """The pictures of ``batch`` as training sees them when they are hidden, B x C x H x W uint8."""
        images_BCHW, draw_B = batch["image"], batch["draw"]
        height, width = images_BCHW.shape[2:]
        if self.hide == "nothing":
            return images_BCHW
        if self.hide == "random":
            mask_BHW = hiding.rectangle_mask(draw_B, height, width, self.area, self.aspect)
        else:
            mask_BHW = hiding.attention_mask(batch[MAP], self.threshold, height, width)
        mask_BHW = mask_BHW & hiding.is_hidden(draw_B, probability)[:, None, None]
        return hiding.fill(images_BCHW, mask_BHW, self.fill, draw_B, self.constant)


class Classifier(Method):
    """Softmax classification of pictures. Grey pictures are repeated to the three channels of the network."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.network = networks.network(config.network, len(facts.classes), config.weights)
        if config.dropout is not None:
            for layer in self.network.modules():
                if isinstance(layer, torch.nn.Dropout):
                    layer.p = config.dropout
        self.attention_layer = "network." + networks.last_convolution(self.network)
        for name, values in (("mean", config.mean), ("std", config.std)):
            self.register_buffer(name, 255 * torch.tensor(values).reshape(3, 1, 1), persistent=False)

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        images_BCHW = self.config.hidden(batch, self.config.probability) if self.training else batch["image"]
        scores_BK = self.class_scores(images_BCHW)
        smoothing = self.config.label_smoothing
        loss = torch.nn.functional.cross_entropy(scores_BK, batch["label"], label_smoothing=smoothing)
        return {"cross_entropy": loss}

    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        """Scores before softmax, B x K, of pictures with values 0..255 (uint8, or float where gradients are wanted)."""
        three_BCHW = images_BCHW.expand(-1, 3, -1, -1).to(self.mean.dtype, memory_format=torch.channels_last)
        scores_BK: Tensor = self.network((three_BCHW - self.mean) / self.std)
        return scores_BK

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``scores``: probabilities, B x K float32; ``predicted``: the class with the highest, B int64."""
        scores_BK = self.class_scores(batch["image"]).float()
        return {"scores": scores_BK.softmax(1), "predicted": scores_BK.argmax(1)}

    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        """``accuracy``, ``accuracy_per_class_mean`` (over the classes that occur) and ``loss``, the mean
        negative log-likelihood in nats. Shares are 0..1."""
        label, scores = columns["label"], columns["scores"]
        right = columns["predicted"] == label
        likelihood = scores[np.arange(len(label)), label].astype(np.float64)
        return {
            "accuracy": float(right.mean()),
            "accuracy_per_class_mean": float(np.mean([right[label == class_].mean() for class_ in np.unique(label)])),
            "loss": float(-np.log(np.maximum(likelihood, np.finfo(np.float32).tiny)).mean()),
        }
