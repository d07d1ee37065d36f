"""What a method, a generator and a segmenter must say of themselves, so that a job can name them.

The settings are here; the modules that they build are in mvray/nn/method.py (Method), and below (Generator,
FrameGenerator, Segmenter).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mvray.experiment.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import Tensor
    from torch.nn import Module

    from mvray.experiment.inputs import Clips, Pictures

LABELS = "labels"
"""What a method needs that learns from pictures with several labels: 0 or 1 for each class, B x K float32."""
Read = Callable[[str], bytes]
"""The content of a file, whose path is below the data's root. Raises FileNotFoundError."""
Batch = Mapping[str, "Tensor"]
"""One batch on the device: ``image`` (B x C x H x W uint8) or ``clip`` (B x 3 x T x H x W uint8), ``label``
(B int64), ``index`` (B int64, row of the training index), ``draw`` (B int64, the sample's own random key for
this epoch, see mvray/nn/draws.py), ``labels`` (B x K float32) where samples have several, one entry per target that
is read (images: B x C x H x W uint8; classes: B x H x W uint8, 255 for none; maps: B x H x W float32 in 0..1), and one
per generated column (maps and classes as targets; instance masks: ``masks``, B x T x H x W uint8, T is 1 for pictures,
see job.Masks)."""


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


@dataclass(frozen=True)
class MethodConfig(Settings, ABC):
    """Settings of a training method; the file in mvray/methods/ holds it beside its Method.

    ``version`` grows when the method's results change with equal settings. ``scores`` names what its
    ``Method.score`` returns, so what a step can select by. ``needs`` names the source's targets and the generated
    columns that training reads from the batch (LABELS for several labels); ``predict_uses``, those that
    ``Method.predict`` and its evaluation read too where the data has them.
    """

    family: ClassVar[str] = "method"
    scores: ClassVar[tuple[str, ...]] = ("accuracy",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    @property
    def predict_uses(self) -> tuple[str, ...]:
        return ()

    @property
    def least_share(self) -> int:
        """Samples that each worker must have at least of a batch, or of each accumulation of it."""
        return 1

    def check(self, facts: Facts) -> None:
        """Raise UserError for what cannot be trained on such data. Called before anything is started: be quick."""

    @abstractmethod
    def build(self, facts: Facts) -> Module:
        """The Method for data with these facts, randomly initialised from torch's global seed."""


@dataclass(frozen=True)
class GeneratorConfig(Settings, ABC):
    """Settings of something that is made once per sample by Ray Data (mvray/generators/).

    ``looks_through`` is the trained step whose method it gets, if any. ``frame_step`` is k where it looks at every
    k-th frame (FrameGenerator), None where it gets batches of ``samples_per_batch`` samples. ``reads`` names files
    below the data's root that it reads; they count by their content. ``needs`` names the generated columns that it
    gets in the batch where the data is joined with them. Where ``uses_gpu`` is False its actors ask for none.
    """

    family: ClassVar[str] = "generator"

    @property
    def looks_through(self) -> Any:
        return None

    @property
    def frame_step(self) -> int | None:
        return None

    @property
    def samples_per_batch(self) -> int:
        return 64

    @property
    def uses_gpu(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def check(self) -> None:
        """Raise UserError where this cannot be made here. Called before anything is started."""

    @abstractmethod
    def build(self, method: Any, read: Read) -> Generator | FrameGenerator:
        """The generator; ``method`` is that of ``looks_through``, trained, in eval mode, on its device."""


@dataclass(frozen=True)
class SegmenterConfig(Settings, ABC):
    """Settings of what finds instances in a frame; a file of generators/segmenters/ holds it beside its Segmenter.

    ``looks_through``, ``reads`` and ``uses_gpu`` are as in GeneratorConfig.
    """

    family: ClassVar[str] = "segmenter"

    @property
    def looks_through(self) -> Any:
        return None

    @property
    def uses_gpu(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    def check(self) -> None:
        """Raise UserError where it cannot be built here. Called before anything is started."""

    @abstractmethod
    def build(self, method: Any, read: Read) -> Segmenter:
        """The segmenter, on the GPU where there is one."""


class Metric(Settings, ABC):
    """Numbers out of columns; a frozen dataclass.

    It gets the joined table (index columns and generated columns of a split's samples) and the names of the classes,
    and returns named numbers, and arrays with one value per row, which are kept beside the numbers.
    """

    family: ClassVar[str] = "metric"

    @abstractmethod
    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> Mapping[str, float | np.ndarray]:
        """The numbers of one split."""

    def check(self, rows: pa.Table) -> None:
        """Raise UserError where it cannot work with these rows of an index. Called before anything is started."""

    def seeded(self, seed: int) -> Metric:
        """Itself under the step's seed; another one where it draws random numbers."""
        return self

    def fitted(self, tables: Mapping[str, pa.Table], names: tuple[str, ...]) -> Metric:
        """What is called for each split, given the tables of all: a threshold may come from validation."""
        return self


@dataclass(frozen=True)
class FunctionMetric(Metric):
    """A function of a job file as a metric; a changed function gives the step another id."""

    kind: ClassVar[str] = "function"
    function: Callable[[pa.Table, tuple[str, ...]], Mapping[str, float | np.ndarray]]

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> Mapping[str, float | np.ndarray]:
        return self.function(table, names)

    def __str__(self) -> str:
        return self.function.__name__


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
