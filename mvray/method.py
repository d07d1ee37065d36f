"""Method: what a training method must say. Generator: what is made once per sample.

torch takes seconds to import, and a job names methods long before anything is trained. So this file
and the files of methods/ and generators/ do not touch torch while they are imported: ``import torch``
at the top is lazy under the command line (cli/), and Method becomes an ``nn.Module`` when it is
first built.
"""

from __future__ import annotations

from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from mvray.errors import SettingError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import Tensor

    from mvray.inputs import Clips, Pictures

    _Module = torch.nn.Module
else:
    _Module = object

Batch = Mapping[str, "Tensor"]
"""One batch on the device: ``image`` (B x C x H x W uint8) or ``clip`` (B x 3 x T x H x W uint8), ``label``
(B int64), ``index`` (B int64, row of the training index), ``draw`` (B int64, the sample's own random key for
this epoch, see mvray/nn/draws.py), and one entry per generated column (maps: B x H x W float32 in 0..1;
instance masks: ``masks``, B x T x H x W uint8, T is 1 for pictures, see job.Masks)."""


@dataclass(frozen=True)
class Facts:
    """What a method may know of the data that it is built for."""

    classes: tuple[str, ...]
    height: int
    width: int
    channels: int
    samples: int
    frames: int = 1

    @classmethod
    def of(cls, classes: tuple[str, ...], pictures: Pictures | Clips, samples: int) -> Facts:
        """The facts of ``samples`` training samples that are made as ``pictures`` says."""
        return cls(classes, pictures.height, pictures.width, pictures.channels, samples, pictures.frames)


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


@cache
def _as_module(cls: type) -> type:
    return type(cls)(
        cls.__name__, (cls, torch.nn.Module), {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    )


class Method(_Module, metaclass=ABCMeta):
    """A training method: losses in ``forward``, columns in ``predict``, numbers in ``score``.

    DDP synchronises gradients of what happens inside ``forward`` only, so every loss is computed
    there. Randomness inside ``forward`` comes from ``batch["draw"]`` wherever it can, so that a
    sample is treated alike on any rank and after any restart.
    """

    phases: ClassVar[tuple[str, ...]] = ("train",)
    attention_layer: str = ""
    """Name of the layer that Grad-CAM looks at unless told otherwise ("" where there is none)."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
        return object.__new__(cls if issubclass(cls, torch.nn.Module) else _as_module(cls))

    @abstractmethod
    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; their sum is minimised."""

    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of the step that training starts from. Raises where they do not fit.

        That step may be another method's, and may have a head for other classes.
        """
        self.load_state_dict(weights)

    def trained_in(self, phase: str) -> Iterable[torch.nn.Parameter]:
        """Parameters that ``phase`` updates."""
        return self.parameters()

    @abstractmethod
    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample columns, first dimension B in the batch's order. Called in eval mode, without gradients."""

    @abstractmethod
    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Numbers out of ``predict``'s columns and ``label`` over a whole split; the config's ``scores`` names them."""

    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        """Scores before softmax, B x K, differentiable: what Grad-CAM and saliency explain."""
        raise SettingError(f"{type(self).__name__} has no class scores; look through another step.")

    def before_epoch(self, work: EpochWork) -> Mapping[str, Tensor]:
        """Per-sample values for the coming epoch, each with ``work.samples`` rows, equal on all ranks.

        They enter each batch under their name (replacing what the batch has), except ``weight``,
        by which samples are then drawn with replacement, and ``order``: the rows of the whole epoch, one
        global batch after another. Called before every epoch; the values are part of the checkpoint.
        DeepCluster returns its pseudo-labels here.
        """
        return {}


class Generator(ABC):
    """Made once per actor by GeneratorConfig.build; turns batches into columns."""

    @abstractmethod
    def __call__(self, batch: Batch) -> pa.Table:
        """Compact columns, never pictures, rows in the batch's order; every batch has the same schema.

        The schema comes with the columns because it depends on the trained method and the size of
        the pictures (a map's size, the number of classes). A column of maps or matrices is a
        fixed-size list, and its field's metadata holds the shape: {b"shape": b"height,width"}.
        """


@dataclass(frozen=True)
class Frame:
    """A frame of a video, or a picture: the sample's key, the frame's number from 0, H x W x 3 uint8 RGB."""

    key: str
    number: int
    pixels: np.ndarray


class FrameGenerator(ABC):
    """As Generator, for every ``every``-th frame of the samples as they are, of any sizes.

    Frames of several samples come together; those of a sample come in order.
    """

    every: int = 1
    batch_size: int = 8

    @abstractmethod
    def __call__(self, frames: Sequence[Frame]) -> pa.Table:
        """Columns, a row for each frame in their order."""


@dataclass(frozen=True)
class Instances:
    """What was found in a frame: N masks (H x W bool, on any device), classes (int64), scores and boxes
    (N x 4, x0 y0 x1 y1 in pixels), best score first."""

    masks: Tensor
    labels: Tensor
    scores: Tensor
    boxes: Tensor


class Segmenter(ABC):
    """Finds instances. ``classes`` are the names that labels count through."""

    classes: tuple[str, ...]

    @abstractmethod
    def __call__(self, frames: Sequence[Frame]) -> list[Instances]:
        """The instances of each frame, which may differ in size."""
