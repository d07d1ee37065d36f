"""Semantic segmentation: an encoder, a decoder and a loss, as the papers combine them (nn/encoders.py, nn/decoders.py).

    FCN-32s, -16s, -8s      vgg16, stride 32, fcn32 / fcn16 / fcn8      Long, Shelhamer, Darrell 2015
    DeepLab LargeFOV        vgg16, stride 8, largefov                   Chen et al. 2015
    Dilated context         vgg16, stride 8, context                    Yu, Koltun 2016
    DeepLab v2, v3          resnet101, stride 8, aspp_sum / aspp        Chen et al. 2016, 2017
    PSPNet                  resnet101, stride 8, psp, auxiliary 0.4     Zhao et al. 2017
    U-Net, SegNet, DeconvNet   any / vgg16_bn / vgg16_bn, stride 32, unet / segnet / deconvnet

Places where the target is 255 count for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional

from mvray.errors import DataError, SettingError
from mvray.experiment import ADDED, FILE, IGNORE, Batch, Facts, MethodConfig
from mvray.metrics import accuracy, iou
from mvray.nn import (
    CRF,
    DECODERS,
    CRFLayers,
    Encoder,
    Evaluation,
    Group,
    Method,
    batch_norm,
    enlarged,
    is_vgg,
    mean_over_ranks,
    networks,
    take_fully_connected,
    weights,
)
from mvray.nn import Plain as AuxiliaryHead

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = {"largefov": 1024, "context": 4096, "psp": 512, "deconvnet": 4096}
_WHOLE = ("segnet", "deconvnet", "unet")


@dataclass(frozen=True)
class Config(MethodConfig):
    """``network`` is the encoder by name, dilated to ``stride``; ``decoder`` is one of DECODERS.

    ``target`` names the class map that is learnt: the source's, or a generated column. ``truth`` names the one that
    validation compares with ("" for none: then Train.select must be "last"). ``width``: channels of the decoder's
    fully connected or last layers, None as the paper has them. ``auxiliary`` weighs the loss of a head on level 4.
    ``class_weights``: one for each class, or none. ``hardest``: the share of the pixels, those with the highest loss,
    that count. ``head_lr``: factor on the learning rate of all but the encoder. ``bias_lr``: the same for biases, which
    then do not decay. ``dropout``: its rate in the decoder, None as the paper has it. ``norm``: see nn/batch_norm.py.
    ``scales`` and ``flipped``: probabilities are averaged over these sizes, and mirrored, when it is tested.
    ``weights``: of the encoder as torchvision names them, or of a whole torchvision fcn_* or deeplabv3_*, of which a
    head for other classes is left out. ``frozen``: the encoder keeps its weights and learns nothing. ``confidence``
    names a column with a number for each sample, which weighs its pixels. ``crf``: the CRF as layers behind the
    decoder, trained with it (CRF as RNN, Zheng et al. 2015); a step that starts from one without them begins with these
    settings' weights.
    """

    kind: ClassVar[str] = "segmenter"
    scores: ClassVar[tuple[str, ...]] = ("mean_iou", "pixel_accuracy")
    network: str = "vgg16"
    weights: str = field(default="", metadata=FILE)
    stride: int = 32
    decoder: str = "fcn8"
    width: int | None = None
    target: str = "mask"
    truth: str = "mask"
    auxiliary: float = 0.0
    class_weights: tuple[float, ...] = ()
    hardest: float = 1.0
    head_lr: float = 1.0
    bias_lr: float = 1.0
    dropout: float | None = None
    norm: str = batch_norm.TRAINED
    scales: tuple[float, ...] = (1.0,)
    flipped: bool = False
    frozen: bool = field(default=False, metadata=ADDED)
    confidence: str = field(default="", metadata=ADDED)
    crf: CRF | None = field(default=None, metadata=ADDED)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        batch_norm.check(self.norm)
        if self.decoder not in DECODERS:
            raise SettingError(f"method.decoder is {self.decoder!r}; expected one of {', '.join(DECODERS)}.")
        if self.decoder in _WHOLE and self.stride != 32:
            raise SettingError(f"method.stride is {self.stride}; expected 32 with method.decoder={self.decoder}.")
        for name, number, holds, expected in (
            ("stride", self.stride, self.stride in (8, 16, 32), "8, 16 or 32"),
            ("auxiliary", self.auxiliary, self.auxiliary >= 0, "0 or more"),
            ("hardest", self.hardest, 0 < self.hardest <= 1, "above 0, up to 1"),
            ("head_lr", self.head_lr, self.head_lr > 0, "a value above 0"),
            ("bias_lr", self.bias_lr, self.bias_lr > 0, "a value above 0"),
            ("dropout", self.dropout, self.dropout is None or 0 <= self.dropout < 1, "None, or 0 up to below 1"),
            ("scales", self.scales, self.scales and min(self.scales) > 0, "one or more values above 0"),
            ("std", self.std, min(self.std) > 0, "values above 0"),
        ):
            if not holds:
                raise SettingError(f"method.{name} is {number}; expected {expected}.")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.target, self.confidence) if self.confidence else (self.target,)

    @property
    def predict_uses(self) -> tuple[str, ...]:
        return (self.truth,) if self.truth else ()

    @property
    def least_share(self) -> int:
        # Batch norm behind the mean of whole pictures has one value a channel where there is one picture.
        return 2 if self.decoder == "psp" and self.norm == batch_norm.TRAINED else 1

    def check(self, facts: Facts) -> None:
        networks.check_name(self.network)
        if self.class_weights and len(self.class_weights) != len(facts.classes):
            raise SettingError(
                f"method.class_weights has {len(self.class_weights)} values; expected one for each of the "
                f"{len(facts.classes)} classes."
            )

    def build(self, facts: Facts) -> Method:
        return Segmenter(self, facts)


class Segmenter(Method):
    """A class for each place of a picture."""

    mean: Tensor
    std: Tensor
    class_weights: Tensor

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.config, self.classes = config, len(facts.classes)
        state = weights.read_state(config.weights) if config.weights else {}
        whole = state if any(name.startswith("backbone.") for name in state) else None
        self.encoder = Encoder(
            config.network, config.stride, "" if whole else config.weights, config.decoder in ("segnet", "deconvnet")
        )
        width = config.width if config.width is not None else WIDTHS.get(config.decoder, 0)
        if config.width is None and not is_vgg(config.network):
            width = 0 if config.decoder in ("context",) else width
        elif config.width is None and config.decoder.startswith("fcn"):
            width = 4096
        self.decoder = DECODERS[config.decoder](self.encoder, self.classes, width)
        take_fully_connected(self.decoder, state)
        if config.dropout is not None:
            for layer in self.decoder.modules():
                if isinstance(layer, torch.nn.Dropout):
                    layer.p = config.dropout
        self.auxiliary = AuxiliaryHead(self.encoder, self.classes, level=4) if config.auxiliary else None
        if whole:
            self._take(whole)
        self.crf = CRFLayers(self.classes, config.crf) if config.crf else None
        batch_norm.with_norm(self, config.norm)
        if config.frozen:
            batch_norm.with_norm(self.encoder, batch_norm.FROZEN)
            self.encoder.requires_grad_(False)
        self.attention_layer = "encoder." + networks.last_convolution(self.encoder)
        for name, values in (("mean", config.mean), ("std", config.std)):
            self.register_buffer(name, 255 * torch.tensor(values).reshape(3, 1, 1), persistent=False)
        self.register_buffer("class_weights", torch.tensor(config.class_weights or (1.0,) * self.classes), False)

    def _take(self, whole: Mapping[str, Tensor]) -> None:
        """Fill in the weights of one of torchvision's segmentation networks."""
        heads = {"backbone.": "encoder.network.", "classifier.": "decoder.classifier."}
        if self.auxiliary is not None:
            heads["aux_classifier."] = "auxiliary.classifier."
        own = self.state_dict()
        renamed = {
            new + name.removeprefix(old): values
            for old, new in heads.items()
            for name, values in whole.items()
            if name.startswith(old)
        }
        fits = {name: values for name, values in renamed.items() if name in own and own[name].shape == values.shape}
        missing = [name for name in own if name.startswith("encoder.") and name not in fits]
        if missing:
            raise DataError(
                f"{self.config.weights} does not hold weights of a segmentation network on {self.config.network}: "
                f"{len(missing)} entries are missing, such as {', '.join(missing[:3])}."
            )
        self.load_state_dict(fits, strict=False)

    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Everything, of a segmenter of the same settings (``crf`` apart); else the encoder, as of a tagger."""
        own, all_ = self.state_dict(), {**weights}
        if self.crf is not None:
            all_ = {**{f"crf.{name}": value for name, value in self.crf.state_dict().items()}, **all_}
        if {name: value.shape for name, value in all_.items()} == {name: value.shape for name, value in own.items()}:
            self.load_state_dict(all_)
        else:
            self.encoder.load_state_dict(self.encoder.part_of(weights))

    def groups(self, phase: str) -> Sequence[Group]:
        config = self.config
        chosen: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                is_bias = config.bias_lr != 1 and name.endswith("bias")
                chosen.setdefault((name.startswith("encoder."), is_bias), []).append(parameter)
        return [
            Group(
                parameters,
                lr=(1.0 if of_encoder else config.head_lr) * (config.bias_lr if is_bias else 1.0),
                weight_decay=0.0 if is_bias else 1.0,
            )
            for (of_encoder, is_bias), parameters in chosen.items()
        ]

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        pictures_BCHW, target_BHW = self._normalised(batch["image"]), batch[self.config.target].long()
        confidence_B = batch[self.config.confidence].float() if self.config.confidence else None
        levels, indices = self.encoder.with_indices(pictures_BCHW)
        scores_BKHW = self._with_crf(self.decoder(levels, indices), batch["image"])
        losses = {"cross_entropy": self._loss(scores_BKHW, target_BHW, confidence_B)}
        if self.auxiliary is not None:
            auxiliary_BKhw = self.auxiliary(levels, indices)
            losses["auxiliary"] = self.config.auxiliary * self._loss(auxiliary_BKhw, target_BHW, confidence_B)
        return losses

    def _with_crf(self, scores_BKhw: Tensor, images_BCHW: Tensor) -> Tensor:
        """Scores at the pictures' size, after the CRF where there is one."""
        scores_BKHW = enlarged(scores_BKhw.float(), images_BCHW.shape[2:])
        if self.crf is None:
            return scores_BKHW
        with_crf_BKHW: Tensor = self.crf(scores_BKHW, images_BCHW.expand(-1, 3, -1, -1))
        return with_crf_BKHW

    def _loss(self, scores_BKhw: Tensor, target_BHW: Tensor, confidence_B: Tensor | None = None) -> Tensor:
        """The mean over all ranks' places that count, weighted, of the cross-entropy at the picture's size."""
        scores_BKHW = enlarged(scores_BKhw.float(), target_BHW.shape[1:])
        weights_K = self.class_weights
        loss_N = functional.cross_entropy(
            scores_BKHW, target_BHW, weights_K, ignore_index=IGNORE, reduction="none"
        ).flatten()
        counted_N = target_BHW.flatten() != IGNORE
        weight_N = weights_K[target_BHW.flatten().masked_fill(~counted_N, 0)] * counted_N
        if confidence_B is not None:
            confidence_N = confidence_B[:, None].expand(-1, target_BHW[0].numel()).flatten()
            loss_N, weight_N = loss_N * confidence_N, weight_N * confidence_N
        if self.config.hardest < 1:
            kept = max(1, int(self.config.hardest * int(counted_N.sum())))
            hardest = loss_N.detach().topk(kept).indices
            loss_N, weight_N = loss_N[hardest], weight_N[hardest]
        return mean_over_ranks(loss_N.sum(), weight_N.sum(), len(target_BHW))

    def _normalised(self, images_BCHW: Tensor) -> Tensor:
        three_BCHW = images_BCHW.expand(-1, 3, -1, -1).to(self.mean.dtype, memory_format=torch.channels_last)
        return (three_BCHW - self.mean) / self.std

    def scores(self, images_BCHW: Tensor) -> Tensor:
        """Scores before softmax at the pictures' size, B x K x H x W; pictures have values 0..255."""
        levels, indices = self.encoder.with_indices(self._normalised(images_BCHW))
        return self._with_crf(self.decoder(levels, indices), images_BCHW)

    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        """The mean over a picture's places of their scores, B x K."""
        return self.scores(images_BCHW).mean((2, 3))

    def class_maps(self, images_BCHW: Tensor) -> Tensor:
        """Probabilities of each class at each place, B x K x H x W, averaged over ``scales`` and mirroring."""
        height, width = images_BCHW.shape[2:]
        summed, passes = torch.zeros((), device=images_BCHW.device), 0
        for scale in self.config.scales:
            size = max(1, round(height * scale)), max(1, round(width * scale))
            scaled = images_BCHW if scale == 1 else enlarged(images_BCHW.float(), size)
            for mirrored in (False, True)[: 1 + self.config.flipped]:
                scores = self.scores(scaled.flip(3) if mirrored else scaled)
                probabilities = enlarged(scores.softmax(1), (height, width))
                summed, passes = summed + (probabilities.flip(3) if mirrored else probabilities), passes + 1
        return summed / passes

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``classes``: the likeliest class of each place, B x H x W uint8."""
        return {"classes": self.class_maps(batch["image"]).argmax(1).to(torch.uint8)}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        truth = {"truth": batch[self.config.truth]} if self.config.truth in batch else {}
        return {**truth, "prediction": self.predict(batch)["classes"]}

    def evaluation(self) -> Evaluation:
        return PixelCounts(self.classes, self.config.truth)


class PixelCounts(Evaluation):
    """Counts of pixels by true and predicted class, K x K, whatever the number of pictures."""

    def __init__(self, classes: int, truth: str) -> None:
        self._classes, self._truth = classes, truth
        self._counts: Tensor | None = None

    def update(self, batch: Batch, predicted: Mapping[str, Tensor]) -> None:
        if self._truth not in batch:
            return
        truth, guess = batch[self._truth].flatten().long(), predicted["classes"].flatten().long()
        counted = truth != IGNORE
        pairs = truth[counted] * self._classes + guess[counted]
        counts = torch.bincount(pairs, minlength=self._classes**2)
        self._counts = counts if self._counts is None else self._counts + counts

    def state(self) -> dict[str, Tensor]:
        return {} if self._counts is None else {"counts": self._counts.cpu()}

    def compute(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        """``mean_iou`` and ``pixel_accuracy``; nothing where the method names no truth. Raises DataError without it."""
        if not self._truth:
            return {}
        if not state:
            raise DataError(
                f"The validation samples have no {self._truth!r} to compare with; expected class maps. Use data that "
                "has them, or set method.truth to nothing, with select=last."
            )
        counts = torch.nn.functional.pad(state["counts"].reshape(self._classes, -1), (0, 1)).numpy()
        per_class = iou(counts)
        known = per_class[per_class == per_class]
        return {"mean_iou": float(known.mean()) if len(known) else float("nan"), "pixel_accuracy": accuracy(counts)}
