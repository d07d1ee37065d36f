"""Source: what the reader of a data set's layout must say. The readers live in mvray/data/."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mvray.experiment.fields import NOT_IDENTITY
from mvray.experiment.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

UNSEEN = "unseen"
"""The split of the classes that training never sees."""
IMAGE, CLASSES, MAP = "image", "classes", "map"
"""Kinds of targets: pixels; a class for each pixel, IGNORE for none; values from 0 to 1."""
IGNORE = 255
"""The class of a pixel that counts for nothing: boundaries, and what a view pads."""


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
    pictures the sample has: 1, or what a video's header says). Where samples have several labels, ``labels``
    (fixed-size list of uint8, 1 for each class that is there); where the source has targets, ``targets`` (struct
    with a struct {location: string, bytes: int64} for each, "" for a sample that has none).

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

    @property
    def targets(self) -> Mapping[str, str]:
        """The kind (IMAGE, CLASSES or MAP) of each further picture that belongs to a sample, by its name."""
        return {}

    @abstractmethod
    def read(self, location: str, part: str) -> np.ndarray:
        """One sample, H x W x C uint8 (C is 1 or 3). Raises mvray.data.Unreadable."""

    def read_target(self, location: str, name: str) -> np.ndarray:
        """The target ``name`` of a sample, as large as the sample itself. Raises mvray.data.Unreadable.

        H x W x C uint8 for an image, H x W uint8 for classes, H x W float32 in 0..1 for a map.
        """
        raise NotImplementedError(f"{type(self).__name__} names no targets")
