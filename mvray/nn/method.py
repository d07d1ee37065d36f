"""Method: what a training method must say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch

from mvray.errors import SettingError
from mvray.experiment import Batch, Facts, MethodConfig
from mvray.nn.evaluation import Evaluation, Gathered

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def build_method(config: MethodConfig, facts: Facts) -> Method:
    """The method that ``config`` builds for data with these ``facts``. Raises SettingError where it is none."""
    method = config.build(facts)
    if not isinstance(method, Method):
        raise SettingError(
            f"{type(config).__module__}.{type(config).__qualname__}.build returned {type(method).__name__}; expected a "
            "subclass of mvray.nn.Method."
        )
    return method


class EpochWork(Protocol):
    """What ``Method.before_epoch`` may use. Every rank calls the same things in the same order."""

    @property
    def epoch(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def batch_size(self) -> int:
        """Training samples of one step over all ranks."""
        ...

    @property
    def labels(self) -> Tensor:
        """The class of each training sample, N int64 on the CPU, -1 where it is not known."""
        ...

    def predictions(self) -> Iterable[tuple[Tensor, Mapping[str, Tensor]]]:
        """(index_B, Method.predict of the batch) over this rank's share of the training samples, unaugmented."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, on every rank."""

    def note(self, name: str, value: float) -> None:
        """Log a number of the coming epoch as "epoch/NAME", equal on all ranks."""

    def fresh(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Forget what the optimisers remember of these parameters, which were set anew."""


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike: factors on the learning rate and the weight decay of `Optim`."""

    parameters: Sequence[torch.nn.Parameter]
    lr: float = 1.0
    weight_decay: float = 1.0


class Method(torch.nn.Module, ABC):
    """A training method: losses in ``forward``, columns in ``predict``, numbers in ``score`` or ``evaluation``.

    DDP synchronises gradients of what happens inside ``forward`` only, so every loss is computed
    there. Randomness inside ``forward`` comes from ``batch["draw"]`` wherever it can, so that a
    sample is treated alike on any rank and after any restart.
    """

    phases: ClassVar[tuple[str, ...]] = ("train",)
    attention_layer: str = ""
    """Name of the layer that Grad-CAM looks at unless told otherwise, "" for the last convolution."""
    saliency_layers: tuple[str, ...] = ()
    """Names of the layers at whose inputs saliency looks unless told otherwise."""

    @abstractmethod
    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; their sum is minimised."""

    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of the step that training starts from. Raises where they do not fit.

        That step may be another method's, and may have a head for other classes.
        """
        self.load_state_dict(weights)

    def groups(self, phase: str) -> Sequence[Group]:
        """The parameters that ``phase`` updates."""
        return (Group(tuple(self.parameters())),)

    @abstractmethod
    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample columns, first dimension B in the batch's order. Called in eval mode, without gradients."""

    def evaluation(self) -> Evaluation:
        """What makes numbers out of predictions; the default gathers all columns and calls `score`."""
        return Gathered(self.score)

    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Numbers out of ``predict``'s columns and ``label`` over a whole split; the config's ``scores`` names them."""
        raise NotImplementedError(f"{type(self).__name__} has neither score nor evaluation")

    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        """Scores before softmax, B x K, differentiable: what Grad-CAM and saliency explain."""
        raise SettingError(f"{type(self).__name__} has no class scores; look through another step.")

    def score_maps(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Scores before softmax at each place of the network's map (B x K x h x w, differentiable), and how likely each
        class is in the picture (B x K): what saliency explains."""
        raise SettingError(f"{type(self).__name__} has no scores of places; look through a tagger.")

    def class_maps(self, images_BCHW: Tensor) -> Tensor:
        """Probabilities of each class at each place, B x K x H x W: what label maps are made of."""
        raise SettingError(f"{type(self).__name__} says nothing of places; make label maps of another step.")

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """What to show of a few validation samples after each epoch, beside their pictures, by name.

        Pictures, B x 3 x H x W uint8, or classes, B x H x W uint8 (255 for none), which are drawn in their colours. As
        `predict`, called in eval mode, without gradients, and on one rank alone.
        """
        return {}

    def before_epoch(self, work: EpochWork) -> Mapping[str, Tensor]:
        """Per-sample values for the coming epoch, each with ``work.samples`` rows, equal on all ranks.

        They enter each batch under their name (replacing what the batch has), except ``weight``,
        by which samples are then drawn with replacement, and ``order``: the rows of the whole epoch, one
        global batch after another. Called before every epoch; the values are part of the checkpoint.
        DeepCluster returns its pseudo-labels here.
        """
        return {}
