"""What a job shows to people: its table, and its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mvray.experiment.settings import Settings

if TYPE_CHECKING:
    from mvray.experiment.steps import Data, Generate, Measure, Train


@dataclass(frozen=True)
class Column(Settings):
    """A column of the table: the metric's key, a title with unit, and a factor for print."""

    kind: ClassVar[str] = "column"
    metric: str
    title: str
    factor: float = 1.0
    digits: int = 1


@dataclass(frozen=True)
class Row(Settings):
    """A row of the table: the Measure that it shows, and the paper's figures by metric key."""

    kind: ClassVar[str] = "row"
    name: str
    measure: Measure
    paper: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Table(Settings):
    """What the job reports: one row per compared thing, mean and 95 % interval over the seeds."""

    kind: ClassVar[str] = "table"
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    note: str = ""


@dataclass(frozen=True)
class Sheet(Settings):
    """A sheet of pictures for people: the same samples, one column per entry of ``maps``.

    ``maps`` pairs a title with the Generate step whose maps are drawn over the pictures; the step
    of ``masked``, if given, also shows what training saw hidden.
    """

    kind: ClassVar[str] = "sheet"
    title: str
    data: Data
    maps: tuple[tuple[str, Generate], ...]
    masked: Train | None = None
    samples: int = 8


@dataclass(frozen=True)
class Groups(Settings):
    """Pictures of how samples were grouped: maps of each row's groups, and a bar for each work.

    ``rows`` pairs a title with the Measure whose clustering metric is called ``metric`` (metrics/clustering.py).
    """

    kind: ClassVar[str] = "groups"
    title: str
    data: Data
    rows: tuple[tuple[str, Measure], ...]
    metric: str


@dataclass(frozen=True)
class Matches(Settings):
    """A sheet of examples, each with the pictures nearest to it by the vectors in ``column`` of ``embeddings``."""

    kind: ClassVar[str] = "matches"
    title: str
    data: Data
    embeddings: Generate
    column: str = "embedding"
    samples: int = 8


@dataclass(frozen=True)
class ClassMaps(Settings):
    """Pictures of class maps: samples with the truth and each row's map; the best and the worst; confusion; bars.

    ``rows`` pairs a title with the Measure whose data has the counts of generators/map_scores.py, made of class maps.
    """

    kind: ClassVar[str] = "class_maps"
    title: str
    data: Data
    rows: tuple[tuple[str, Measure], ...]
    samples: int = 4


Exhibit = Sheet | Groups | Matches | ClassMaps
