"""Action recognition with attention that instance masks make sharp: X3D, ABN, Object-ABN.

    none        X3D alone (Feichtenhofer 2020, arXiv 2004.04730)
    multiply    ABN: an attention branch after the first part, h2 = h1 * M   (Fukui et al. 2019)
    residual    ABN with h2 = h1 * (1 + M)

Object-ABN (Nitta, Hirakawa, Fujiyoshi, Tamaki) is ABN whose map is pulled towards the people and
objects of each frame: L = L_per + lambda_attention L_att + lambda_mask MSE(M, M'), where M' is the
generated instance masks' union at M's size. The three differ in nothing but these settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from mvray.errors import SettingError
from mvray.experiment import FILE, Batch, Facts, MethodConfig
from mvray.nn import AttentionBranch, Method, apply, sharpness, x3d

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MASKS = "masks"
"""The generated column with the instance masks (generators/instance_masks.py)."""


@dataclass(frozen=True)
class Config(MethodConfig):
    """``lambda_mask`` above 0 makes an ABN an Object-ABN; the paper's lambdas are 1 and 10.

    ``network`` is one of x3d.NAMES, ``weights`` a path or URL of its state dict ("": random).
    ``mean`` and ``std`` (of 0..1) are those of pytorchvideo's Kinetics-400 weights.
    """

    kind: ClassVar[str] = "object_abn"
    network: str = "x3d-m"
    weights: str = field(default="", metadata=FILE)
    attention: str = "multiply"
    lambda_attention: float = 1.0
    lambda_mask: float = 0.0
    dropout: float = 0.5
    label_smoothing: float = 0.0
    mean: float = 0.45
    std: float = 0.225

    def __post_init__(self) -> None:
        if self.attention not in ("none", "multiply", "residual"):
            raise SettingError(
                f"method.attention is {self.attention!r}; expected one of none (X3D alone), multiply, residual."
            )
        for name, number, holds, expected in (
            ("lambda_attention", self.lambda_attention, 0 <= self.lambda_attention < float("inf"), "0 or more"),
            ("lambda_mask", self.lambda_mask, 0 <= self.lambda_mask < float("inf"), "0 or more"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "0 up to, not including, 1"),
            ("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "0 up to, not including, 1"),
            ("std", self.std, self.std > 0, "a value above 0"),
        ):
            if not holds:
                raise SettingError(f"method.{name} is {number}; expected {expected}.")
        if self.attention == "none" and self.lambda_mask:
            raise SettingError(
                f"method.lambda_mask is {self.lambda_mask}, but without attention there is no map to pull; expected "
                "method.attention to be multiply or residual."
            )

    @property
    def scores(self) -> tuple[str, ...]:  # type: ignore[override]
        """What ``score`` returns for every data set; with masks also attention_iou and attention_pointing."""
        return ("top1", "top5", "loss", *(() if self.attention == "none" else ("attention_entropy_bits",)))

    @property
    def needs(self) -> tuple[str, ...]:
        return (MASKS,) if self.lambda_mask else ()

    @property
    def predict_uses(self) -> tuple[str, ...]:
        return () if self.attention == "none" else (MASKS,)

    def check(self, facts: Facts) -> None:
        x3d.check_name(self.network)

    def build(self, facts: Facts) -> Method:
        return ObjectAbn(self, facts)


class ObjectAbn(Method):
    """``extractor`` and ``perception`` are the two parts of X3D, ``branch`` the attention branch between them."""

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.config = config
        network = x3d.x3d(config.network, len(facts.classes), config.weights, dropout=config.dropout)
        self.extractor, self.perception = x3d.split(network)
        if config.attention != "none":
            self.branch = AttentionBranch(x3d.split_width(config.network), len(facts.classes))

    def outputs(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scores before softmax of the perception branch (B x K); the map (B x T x h x w) and the attention
        branch's scores (B x K), None for X3D alone."""
        normal_BCTHW = (clips_BCTHW.float() / 255 - self.config.mean) / self.config.std
        features_BCThw = self.extractor(normal_BCTHW)
        if self.config.attention == "none":
            return self.perception(features_BCThw), None, None
        map_BThw, attention_BK = self.branch(features_BCThw)
        return self.perception(apply(features_BCThw, map_BThw, self.config.attention)), map_BThw, attention_BK

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        config, label = self.config, batch["label"]
        scores_BK, map_BThw, attention_BK = self.outputs(batch["clip"])

        def loss(scores_BK: Tensor) -> Tensor:
            return torch.nn.functional.cross_entropy(scores_BK, label, label_smoothing=config.label_smoothing)

        losses = {"perception": loss(scores_BK)}
        if attention_BK is not None:
            losses["attention"] = config.lambda_attention * loss(attention_BK)
        if map_BThw is not None and config.lambda_mask:
            target_BThw = mask_target(batch[MASKS], map_BThw)
            losses["mask"] = config.lambda_mask * torch.nn.functional.mse_loss(map_BThw.float(), target_BThw)
        return losses

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``scores`` (probabilities, B x K float32), ``predicted`` (B int64) and, with attention, ``attention``
        (B x T x h x w float32 in 0..1) and ``attention_entropy_bits`` (B); where the batch has masks, also
        ``attention_iou`` and ``attention_pointing`` (B; see nn/sharpness.py)."""
        scores_BK, map_BThw, _ = self.outputs(batch["clip"])
        columns = {"scores": scores_BK.float().softmax(1), "predicted": scores_BK.argmax(1)}
        if map_BThw is not None:
            columns |= {"attention": map_BThw.float(), "attention_entropy_bits": sharpness.entropy_bits(map_BThw)}
            if MASKS in batch:
                iou_B, pointing_B = sharpness.agreement(map_BThw, batch[MASKS])
                columns |= {"attention_iou": iou_B, "attention_pointing": pointing_B}
        return columns

    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        """``top1``, ``top5`` (0..1), ``loss`` (mean negative log-likelihood, nats), and the means of what `predict`
        says of the attention, over the clips for which it is known."""
        label, scores = columns["label"], columns["scores"].astype(np.float64)
        own = scores[np.arange(len(label)), label]
        numbers = {
            "top1": float((columns["predicted"] == label).mean()),
            "top5": float(((scores > own[:, None]).sum(1) < 5).mean()),
            "loss": float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean()),
        }
        for name in ("attention_entropy_bits", "attention_iou", "attention_pointing"):
            if name in columns and not np.isnan(columns[name]).all():
                numbers[name] = float(np.nanmean(columns[name]))
        return numbers


def mask_target(masks_BTHW: Tensor, map_BThw: Tensor) -> Tensor:
    """M' at M's size: of each cell the share that the mask covers, B x T x h x w float32.

    The paper does not say how the masks are made smaller. The mean is what the MSE against all of a
    cell's pixels asks for. Where the network made fewer frames of the clip's, they are averaged too.
    """
    frames, height, width = map_BThw.shape[1:]
    target: Tensor = torch.nn.functional.adaptive_avg_pool3d(masks_BTHW.float(), (frames, height, width))
    return target
