"""Class maps out of pictures' labels alone: a segmentation network whose scores are judged by the picture's labels.

    MIL-FCN     loss=mil         Pathak, Shelhamer, Long, Darrell 2015
    MIL-ILP     loss=ilp         Pinheiro, Collobert 2015
    DCSM's FCN  loss=max         Shimoda, Yanai 2016 (generators/saliency.py looks through it)
    CAM         loss=mean        Zhou et al. 2016
    EM-Adapt    loss=em_adapt    Papandreou et al. 2015
    CCNN        loss=ccnn        Pathak, Kraehenbuehl, Darrell 2015
    SEC         loss=sec         Kolesnikov, Lampert 2016; "ranked" is its second part alone

The losses are in nn/weak_losses.py. No class map is opened, of training samples or of validation's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch.nn import functional

from mvray.errors import SettingError
from mvray.experiment import FILE, LABELS, Batch, Facts, MethodConfig
from mvray.nn import (
    CRF,
    DECODERS,
    Encoder,
    Evaluation,
    Gathered,
    Method,
    batch_norm,
    enlarged,
    networks,
    take_fully_connected,
    weak_losses,
    weights,
)

if TYPE_CHECKING:
    from torch import Tensor

SIGMOID = ("max", "mean")
LOSSES = ("mil", "ilp", *SIGMOID, "ranked", "em_adapt", "ccnn", "sec")
SEC_CRF = CRF(10, 3.0, 3 / 12, 10.0, 80 / 12, 13.0)
"""The authors' weights and widths, for maps of 41 x 41 places: widths in pixels are divided by 12."""


@dataclass(frozen=True)
class Config(MethodConfig):
    """``network`` is the encoder by name, dilated to ``stride``; ``decoder`` is one of DECODERS, ``loss`` of LOSSES.

    ``frozen``: the encoder keeps its weights and learns nothing. ``width``: channels of the decoder's fully connected
    or last layers, 0 for none. ``cues`` names the class map that SEC's first part learns from, 255 where nothing is
    known; ``crf`` is that of its last part, with widths in places of the score map. The losses max and mean know no
    background: probabilities at a place are then softmax(M / ``softness``), M being each class's score over its highest
    one in the picture, and ``background`` for the background. ``weights``: of the encoder as torchvision names them.
    """

    kind: ClassVar[str] = "tagger"
    scores: ClassVar[tuple[str, ...]] = ("mean_ap",)
    network: str = "vgg16"
    weights: str = field(default="", metadata=FILE)
    stride: int = 32
    decoder: str = "fcn32"
    width: int = 0
    loss: str = "max"
    cues: str = "label_map"
    crf: CRF = SEC_CRF
    frozen: bool = False
    background: float = 0.3
    softness: float = 0.12
    norm: str = batch_norm.TRAINED
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        batch_norm.check(self.norm)
        for name, value, allowed in (("decoder", self.decoder, tuple(DECODERS)), ("loss", self.loss, LOSSES)):
            if value not in allowed:
                raise SettingError(f"method.{name} is {value!r}; expected one of {', '.join(allowed)}.")
        for name, number, holds, expected in (
            ("stride", self.stride, self.stride in (8, 16, 32), "8, 16 or 32"),
            ("width", self.width, self.width >= 0, "0 or more"),
            ("background", self.background, 0 < self.background < 1, "above 0, below 1"),
            ("softness", self.softness, self.softness > 0, "a value above 0"),
            ("std", self.std, min(self.std) > 0, "values above 0"),
        ):
            if not holds:
                raise SettingError(f"method.{name} is {number}; expected {expected}.")

    @property
    def needs(self) -> tuple[str, ...]:
        return (LABELS, self.cues) if self.loss == "sec" else (LABELS,)

    def check(self, facts: Facts) -> None:
        networks.check_name(self.network)

    def build(self, facts: Facts) -> Method:
        return Tagger(self, facts)


class Tagger(Method):
    """Which classes a picture has, and where."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.config, self.classes = config, facts.classes
        self.encoder = Encoder(config.network, config.stride, config.weights, config.decoder in ("segnet", "deconvnet"))
        self.decoder = DECODERS[config.decoder](self.encoder, len(facts.classes), config.width)
        take_fully_connected(self.decoder, weights.read_state(config.weights) if config.weights else {})
        batch_norm.with_norm(self, config.norm)
        if config.frozen:
            batch_norm.with_norm(self.encoder, batch_norm.FROZEN)
            self.encoder.requires_grad_(False)
        self.attention_layer = "encoder." + networks.last_convolution(self.encoder)
        self.saliency_layers = self.encoder.deep_layers("encoder.")
        for name, values in (("mean", config.mean), ("std", config.std)):
            self.register_buffer(name, 255 * torch.tensor(values).reshape(3, 1, 1), persistent=False)

    def start(self, weights: Mapping[str, Tensor]) -> None:
        """The encoder alone, as of a tagger with another loss."""
        self.encoder.load_state_dict(self.encoder.part_of(weights))

    def _scores(self, images_BCHW: Tensor) -> Tensor:
        """Scores at the decoder's resolution, B x K x h x w."""
        three_BCHW = images_BCHW.expand(-1, 3, -1, -1).to(self.mean.dtype, memory_format=torch.channels_last)
        levels, indices = self.encoder.with_indices((three_BCHW - self.mean) / self.std)
        scores_BKhw: Tensor = self.decoder(levels, indices).float()
        return scores_BKhw

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        scores_BKhw, labels_BK = self._scores(batch["image"]), batch[LABELS]
        loss = self.config.loss
        if loss == "sec":
            return self._sec(scores_BKhw, batch)
        if loss in SIGMOID:
            return {loss: weak_losses.sigmoid_pooled(self._pooled(scores_BKhw), labels_BK)}
        if loss in ("em_adapt", "ccnn"):
            targets = weak_losses.em_adapt_targets if loss == "em_adapt" else weak_losses.ccnn_targets
            return {loss: weak_losses.cross_entropy(scores_BKhw, targets(scores_BKhw, labels_BK))}
        losses = {"mil": weak_losses.mil_softmax, "ilp": weak_losses.mil_log_sum_exp, "ranked": weak_losses.expand}
        return {loss: losses[loss](scores_BKhw, labels_BK)}

    def _sec(self, scores_BKhw: Tensor, batch: Batch) -> dict[str, Tensor]:
        size = scores_BKhw.shape[2:]
        cues_Bhw = functional.interpolate(batch[self.config.cues][:, None].float(), size, mode="nearest-exact")[:, 0]
        images_B3hw = functional.interpolate(batch["image"].expand(-1, 3, -1, -1).float(), size, mode="area")
        return {
            "seed": weak_losses.seed(scores_BKhw, cues_Bhw),
            "expand": weak_losses.expand(scores_BKhw, batch[LABELS]),
            "constrain": weak_losses.constrain(scores_BKhw, images_B3hw, self.config.crf),
        }

    def _pooled(self, scores_BKhw: Tensor) -> Tensor:
        """A score of each class for the whole picture, B x K."""
        if self.config.loss == "mean":
            return scores_BKhw.mean((2, 3))
        return weak_losses.log_sum_exp(scores_BKhw) if self.config.loss == "ilp" else scores_BKhw.amax((2, 3))

    def _tags(self, scores_BKhw: Tensor) -> Tensor:
        """How likely each class is in the picture, B x K; the background always is."""
        if self.config.loss in SIGMOID:
            tags_BK = self._pooled(scores_BKhw).sigmoid()
        elif self.config.loss == "ilp":
            tags_BK = self._pooled(scores_BKhw).softmax(1)
        else:
            tags_BK = scores_BKhw.softmax(1).amax((2, 3))
        return torch.cat([torch.ones_like(tags_BK[:, :1]), tags_BK[:, 1:]], 1)

    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        return self._pooled(self._scores(images_BCHW))

    def score_maps(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        scores_BKhw = self._scores(images_BCHW)
        return scores_BKhw, self._tags(scores_BKhw)

    def class_maps(self, images_BCHW: Tensor) -> Tensor:
        """Probabilities at the pictures' size, B x K x H x W.

        MIL-ILP's are weighted by the picture's own, as its authors do at test; for max and mean see Config.
        """
        scores_BKhw = self._scores(images_BCHW)
        scores_BKHW = enlarged(scores_BKhw, images_BCHW.shape[2:])
        if self.config.loss not in SIGMOID:
            probabilities_BKHW = scores_BKHW.softmax(1)
            if self.config.loss == "ilp":
                probabilities_BKHW = probabilities_BKHW * self._pooled(scores_BKhw).softmax(1)[:, :, None, None]
                probabilities_BKHW = probabilities_BKHW / probabilities_BKHW.sum(1, keepdim=True)
            return probabilities_BKHW
        positive_BKHW = scores_BKHW.relu()
        highest_BK11 = positive_BKHW.amax((2, 3), keepdim=True).clamp_min(1e-12)
        shares_BKHW = positive_BKHW / highest_BK11 * (self._tags(scores_BKhw) > 0.5)[:, :, None, None]
        shares_BKHW[:, 0] = self.config.background
        return (shares_BKHW / self.config.softness).softmax(1)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``tags``: how likely each class is in the picture, B x K float32."""
        return {"tags": self._tags(self._scores(batch["image"]))}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        return {"class map": self.class_maps(batch["image"]).argmax(1).to(torch.uint8)}

    def evaluation(self) -> Evaluation:
        return Tags(self.score)

    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        """``mean_ap``: the mean over the classes, but the background, of average precision; absent classes are out."""
        from sklearn.metrics import average_precision_score  # a second that training alone needs

        truth_NK, tags_NK = columns["label"][:, 1:] > 0, columns["tags"][:, 1:]
        some = truth_NK.any(0)
        values = [average_precision_score(truth_NK[:, k], tags_NK[:, k]) for k in np.flatnonzero(some)]
        return {"mean_ap": float(np.mean(values)) if values else float("nan")}


class Tags(Gathered):
    """Predictions with the pictures' labels, B x K, in the place of one label."""

    def update(self, batch: Batch, predicted: Mapping[str, Tensor]) -> None:
        super().update({**batch, "label": batch[LABELS]}, predicted)
