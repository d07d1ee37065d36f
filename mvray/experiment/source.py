"""Source: what the reader of a data set's layout must say. The readers live in mvray/data/."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mvray.experiment.fields import NOT_IDENTITY
from mvray.experiment.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

UNSEEN = "unseen"
"""The split of the classes that training never sees."""


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be read: ``location`` below the root, and the reason in words."""

    location: str
    reason: str


@dataclass(frozen=True)
class Index:
    """What a data set holds, without decoding a picture.

    ``rows`` has one row per sample: ``key`` (string, unique, stable), ``location`` (string, path
    below the root), ``part`` (string, which piece of that file, "" for all of it), ``label``
    (int32 into ``names``, -1 for none), ``split`` (string), ``group`` (string), ``regions``
    (list of struct {kind: string, id: string, x0, y0, x1, y1: float32}, pixels of the sample as
    ``Source.read`` returns it), ``bytes`` (int64, size of the file) and ``frames`` (int32, how many
    pictures the sample has: 1, or what a video's header says).

    Classes that training must never see, because they are kept for the split "unseen", are in
    ``unseen``; labels count through ``names``, the classes and then these.
    """

    rows: pa.Table
    classes: tuple[str, ...]
    bad: tuple[BadRecord, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What labels count through."""
        return (*self.classes, *self.unseen)


@dataclass(frozen=True)
class Source(Settings, ABC):
    """A data set in one of the public layouts, below ``root``."""

    family: ClassVar[str] = "source"
    root: str = field(default="", metadata=NOT_IDENTITY)

    @abstractmethod
    def index(self) -> Index:
        """List the samples. Raises DataError where ``root`` does not hold the layout that is named."""

    @property
    def region_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of the samples that the regions refer to; None where there are no regions."""
        return None

    @abstractmethod
    def read(self, location: str, part: str) -> np.ndarray:
        """One sample, H x W x C uint8 (C is 1 or 3). Raises mvray.data.Unreadable."""
