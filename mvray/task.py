"""What one rank of a Train step works on: the task, its samples, and words between the ranks."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mvray.data import sampler
from mvray.data.columns import Columns
from mvray.data.pictures import PictureDataset, loader
from mvray.data.tables import read_table
from mvray.storage import Storage

if TYPE_CHECKING:
    from mvray.environment import Environment
    from mvray.job import Train
    from mvray.method import Facts, Method

T = TypeVar("T")

SHOW_EVERY_S = 1.0
SHOW_EVERY_REMOTE_S = 15.0


@dataclass(frozen=True)
class Task:
    """A Train step, ready to be executed: sent to every rank.

    ``folder`` is the step's folder; its index.parquet holds the rows of both splits. ``columns``
    are the folders of the Generate steps that are joined; ``start_weights`` is the URI of the
    weights to begin with; ``epochs`` is what is left to train.
    """

    step: Train
    seed: int
    folder: str
    facts: Facts
    epochs: int
    columns: tuple[str, ...] = ()
    start_weights: str | None = None

    @property
    def samples_train(self) -> int:
        return self.facts.samples


class Board:
    """Where rank 0 says how far it is (progress.json), now and then; the driver reads it."""

    def __init__(self, folder: Storage) -> None:
        self._folder, self._shown_at = folder, 0.0
        self._every_s = SHOW_EVERY_S if folder.is_local else SHOW_EVERY_REMOTE_S

    def show(self, content: dict[str, Any], now: bool = False) -> None:
        if now or time.monotonic() - self._shown_at > self._every_s:
            self._shown_at = time.monotonic()
            self._folder.write("progress.json", json.dumps(content).encode())


@functools.cache
def _host_group() -> Any:
    """A group for Python objects: gloo, also where gradients go over NCCL."""
    return torch.distributed.new_group(backend="gloo")


def gathered(thing: T, here: Environment) -> list[T]:
    """Every rank's ``thing``, in the order of ranks, on every rank."""
    if here.world == 1:
        return [thing]
    things: list[Any] = [None] * here.world
    torch.distributed.all_gather_object(things, thing, group=_host_group())
    return things


class Samples:
    """The training and validation samples of a task, as this rank reads them."""

    def __init__(self, task: Task, here: Environment, rows: pa.Table) -> None:
        self._task, self._here = task, here
        self._columns = {name: reader for uri in task.columns for name, reader in Columns.open(uri).items()}
        self._rows = {split: rows.filter(pc.equal(rows["split"], split)) for split in ("train", "validation")}
        self.samples = len(self._rows["train"])
        self.batch_size = min(task.step.optim.batch_size, self.samples)
        """Samples of one step over all ranks; an incomplete last batch of an epoch is left out."""
        self.batches = self.samples // self.batch_size
        self.bad: dict[str, str] = {}

    @classmethod
    def open(cls, task: Task, here: Environment) -> Samples:
        return cls(task, here, read_table(Storage(task.folder), "index.parquet"))

    def train_batches(self, epoch: int, position: int, values: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """This rank's part of each global batch of ``epoch`` from ``position`` on, on the device."""
        raise SystemExit

    def predictions(self, method: Method, split: str) -> dict[str, np.ndarray]:
        """``method.predict`` and ``label`` over a whole split, in its order, on every rank."""
        raise SystemExit
