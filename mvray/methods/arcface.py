"""Metric learning: an embedding in which pictures of one character lie close, of characters never seen too.

    arcface      additive angular margin (Deng et al. 2019, arXiv 1801.07698)
    subcenter    the same with several centres for each class, for noisy labels (Deng et al. 2020, ECCV)
    cosface      margin on the cosine (Wang et al. 2018, arXiv 1801.09414)
    contrastive  pairs: the same class close, others at least ``margin`` apart (Hadsell et al. 2006)
    triplet      a picture closer to its class than to others, by ``margin`` (Schroff et al. 2015, arXiv 1503.03832)

The network's last layer makes the embedding. The first three train class centres beside it, which are not
used afterwards: the embeddings' distances are (mvray/metrics/retrieval.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mvray.errors import DataError, SettingError
from mvray.experiment import FILE, Batch, Facts, MethodConfig
from mvray.metrics import retrieval
from mvray.nn import EpochWork, Method, balanced, margins, networks

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

CENTRED = ("arcface", "subcenter", "cosface")
PAIRED = ("contrastive", "triplet")
MINERS = ("all", "semihard", "hard")
MARGINS = {"cosface": 0.35, "contrastive": 1.0, "triplet": 0.2}
"""CosFace's own; pytorch-metric-learning's; FaceNet's."""


@dataclass(frozen=True)
class Config(MethodConfig):
    """``loss`` is one of the above; the embedding has ``dimensions``.

    ``margin_rad`` is the angle of "arcface" and "subcenter" (with ``centres`` of each class), ``margin``
    that of the others: of the cosine for "cosface" (0.35 where None), of distances between
    unit vectors for "contrastive" (1.0) and "triplet" (0.2). ``scale`` multiplies cosines. ``miner``
    says which pairs of a batch the last two compare: "all", "semihard" (the other is further than the same,
    but within the margin) or "hard" (each picture's furthest of its class and nearest of another); these
    compare the pictures that one worker has. ``per_class`` makes batches of as many samples of each class as
    it says (nn/balanced.py); 0 shuffles all. ``dropout``, ``mean``, ``std`` are as in classifier.Config;
    ``weights``: see networks.network, its last layer stays random unless it has ``dimensions`` outputs.
    """

    kind: ClassVar[str] = "arcface"
    scores: ClassVar[tuple[str, ...]] = ("recall_at_1", "f1", "map_at_r", "threshold")
    network: str = "resnet34"
    weights: str = field(default="", metadata=FILE)
    dimensions: int = 512
    loss: str = "arcface"
    margin_rad: float = 0.5
    scale: float = 64.0
    margin: float | None = None
    centres: int = 3
    miner: str = "all"
    per_class: int = 0
    dropout: float | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("loss", self.loss, (*CENTRED, *PAIRED)),
            ("miner", self.miner, MINERS),
        ):
            if value not in allowed:
                raise SettingError(f"method.{name} is {value!r}; expected one of {', '.join(allowed)}.")
        for name, number, holds, expected in (
            ("dimensions", self.dimensions, self.dimensions >= 1, "at least 1"),
            ("margin_rad", self.margin_rad, 0 <= self.margin_rad <= math.pi / 2, "radians, 0 to 1.57 (0.5 is 28.6°)"),
            ("scale", self.scale, self.scale > 0, "above 0"),
            ("margin", self.margin, self.margin is None or 0 <= self.margin <= 2, "None, or 0 to 2"),
            ("centres", self.centres, self.centres >= 1, "at least 1"),
            ("per_class", self.per_class, self.per_class >= 0, "at least 0"),
            ("dropout", self.dropout, self.dropout is None or 0 <= self.dropout < 1, "None, or 0 up to below 1"),
            ("std", self.std, min(self.std) > 0, "values above 0"),
        ):
            if not holds:
                raise SettingError(f"method.{name} is {number}; expected {expected}.")
        if self.loss in PAIRED and self.per_class < 2:
            raise SettingError(
                f"method.per_class is {self.per_class}; the loss {self.loss!r} compares pictures of the same class in "
                "a batch. Set it to 2 or more, such as 4."
            )

    @property
    def margin_or_own(self) -> float:
        return MARGINS[self.loss] if self.margin is None else self.margin

    def check(self, facts: Facts) -> None:
        networks.check_name(self.network)
        if len(facts.classes) < 2:
            raise DataError(
                f"The data has {len(facts.classes)} class to train with ({', '.join(facts.classes)}); "
                "telling characters apart needs at least 2. Give a folder for each."
            )

    def build(self, facts: Facts) -> Method:
        return ArcFace(self, facts)


class ArcFace(Method):
    """Embeddings of pictures. Grey pictures are repeated to the three channels of the network.

    Shapes: B pictures, C classes, E dimensions of the embedding.
    """

    mean: Tensor
    std: Tensor
    centres: torch.nn.Parameter

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.network = networks.network(config.network, config.dimensions, config.weights)
        if config.dropout is not None:
            for layer in self.network.modules():
                if isinstance(layer, torch.nn.Dropout):
                    layer.p = config.dropout
        self.attention_layer = "network." + networks.last_convolution(self.network)
        if config.loss in CENTRED:
            self.centres = margins.centres(len(facts.classes), config.dimensions, self.per_class)
        for name, values in (("mean", config.mean), ("std", config.std)):
            self.register_buffer(name, 255 * torch.tensor(values).reshape(3, 1, 1), persistent=False)

    @property
    def per_class(self) -> int:
        """Centres of each class."""
        return self.config.centres if self.config.loss == "subcenter" else 1

    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the network of another step, whatever its head and its method were.

        What fits by name and shape is taken; centres, and the last layer where it has other outputs,
        stay random. Raises DataError where another entry is missing.
        """
        own = self.state_dict()
        fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
        last = [name for name, layer in self.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
        missing = [name for name in own if name not in fitting and name.rpartition(".")[0] not in ("", last[-1])]
        if missing:
            raise DataError(
                f"The step that training starts from has no weights for {len(missing)} of {len(own)} entries of "
                f"{self.config.network}, such as {missing[0]}. Start from a step with the same network."
            )
        self.load_state_dict(fitting, strict=False)

    def embedding(self, images_BCHW: Tensor) -> Tensor:
        """B x E, not normalised, of pictures with values 0..255."""
        three_BCHW = images_BCHW.expand(-1, 3, -1, -1).to(self.mean.dtype, memory_format=torch.channels_last)
        embedding_BE: Tensor = self.network((three_BCHW - self.mean) / self.std)
        return embedding_BE

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        embedding_BE, label_B = self.embedding(batch["image"]), batch["label"]
        compute = self._centre_loss if self.config.loss in CENTRED else self._pair_loss
        return {self.config.loss: compute(embedding_BE, label_B)}

    def _centre_loss(self, embedding_BE: Tensor, label_B: Tensor) -> Tensor:
        config, cosine_BC = self.config, self._cosines(embedding_BE)
        if config.loss == "cosface":
            logits_BC = margins.cosface(cosine_BC, label_B, config.margin_or_own, config.scale)
        else:
            logits_BC = margins.arcface(cosine_BC, label_B, config.margin_rad, config.scale)
        return torch.nn.functional.cross_entropy(logits_BC, label_B)

    def _pair_loss(self, embedding_BE: Tensor, label_B: Tensor) -> Tensor:
        """Zero where the batch has nothing to compare. In float32: distances are small differences."""
        from pytorch_metric_learning import losses, miners

        margin, way = self.config.margin_or_own, self.config.miner
        miner: Any = {
            "all": None,
            "semihard": miners.TripletMarginMiner(margin, type_of_triplets="semihard"),
            "hard": miners.BatchHardMiner(),
        }[way]
        loss = losses.TripletMarginLoss(margin) if self.config.loss == "triplet" else losses.ContrastiveLoss(0, margin)
        with torch.autocast(embedding_BE.device.type, enabled=False):
            embedding_BE = embedding_BE.float()
            loss_value: Tensor = loss(embedding_BE, label_B, miner(embedding_BE, label_B) if miner else None)
        return loss_value

    def _cosines(self, embedding_BE: Tensor) -> Tensor:
        return margins.cosines(embedding_BE, self.centres, self.per_class)

    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        """Scaled cosines to the class centres, B x C, without margin. Raises SettingError where there are none."""
        if self.config.loss not in CENTRED:
            return super().class_scores(images_BCHW)
        return self.config.scale * self._cosines(self.embedding(images_BCHW))

    def before_epoch(self, work: EpochWork) -> Mapping[str, Tensor]:
        """Balanced batches, where they are asked for."""
        if not self.config.per_class:
            return {}
        label_N, rank = work.labels.numpy(), {"seed": work.seed, "epoch": work.epoch, "world": work.world}
        return {"order": torch.from_numpy(balanced.order(label_N, work.batch_size, self.config.per_class, **rank))}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``embedding``: unit vectors, B x E float32; ``predicted``: the class with the nearest centre, B int64, -1
        where the loss has no centres."""
        embedding_BE = self.embedding(batch["image"]).float()
        if self.config.loss in CENTRED:
            predicted_B = self._cosines(embedding_BE).argmax(1)
        else:
            predicted_B = torch.full_like(batch["label"], -1)
        return {"embedding": torch.nn.functional.normalize(embedding_BE), "predicted": predicted_B}

    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        """``recall_at_1``, ``map_at_r`` and the best ``f1`` over thresholds, with that ``threshold``
        (metrics/retrieval.py): each picture is looked for among the others of the split. NaN where no two are of
        the same class."""
        numbers = retrieval.scores(retrieval.search(columns["embedding"], columns["label"]))
        return {name: numbers.get(name, math.nan) for name in self.config.scores}
