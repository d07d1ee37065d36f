"""What one rank of a Train step works on: the task, its samples, and what the ranks exchange about them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import torch

from mvray.data import (
    SampleDataset,
    dataset,
    loader,
    node_cache,
    open_columns,
    read_table,
    readable_samples,
    sampler,
)
from mvray.nn import Method
from mvray.storage import Storage
from mvray.training.optim import precision
from mvray.training.ranks import gathered
from mvray.training.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from mvray.training.environment import Environment

SHOWN = 4
"""Validation samples of which there are pictures after each epoch."""
Batches = Generator[dict[str, "Tensor"], None, None]
"""Closing it ends the threads that decode ahead."""


class Samples:
    """The training and validation samples of a task, as this rank reads them."""

    def __init__(self, task: Task, here: Environment) -> None:
        step = task.step
        node_cache.begin_task(step.scale.cache_gb)
        rows = read_table(Storage(task.folder), "index.parquet")
        needs, uses = step.method.needs, step.method.predict_uses
        columns = open_columns(task.columns, needs, step.name, step.data, uses, step.targets)
        self._task, self._here = task, here

        def of(split: str, names: tuple[str, ...], augmented: bool = False) -> SampleDataset:
            split_rows = rows.filter(pc.equal(rows["split"], split))
            joined = {name: column for name, column in columns.items() if name in names}
            targets = [name for name in step.targets if name in names]
            return dataset(step.data, split_rows, joined, seed=task.seed, train=augmented, targets=targets)

        self._sets = {"train": of("train", needs, augmented=True), "validation": of("validation", uses)}
        # Training samples as evaluation sees them: unaugmented, without columns and targets.
        self._plain = of("train", ())
        self.samples, self.total = len(self._plain), len(rows)
        self.labels = torch.from_numpy(rows["label"].to_numpy()[pc.equal(rows["split"], "train").to_numpy()]).long()
        self.batch_size = min(step.optim.batch_size, self.samples)
        """Samples of one step over all ranks; an incomplete last batch of an epoch is left out."""
        self.batches = sampler.batches(self.samples, self.batch_size)

    def train_batches(self, epoch: int, position: int, values: Mapping[str, Tensor]) -> Batches:
        """This rank's part of each global batch of ``epoch`` from ``position`` on, on the device."""
        values = dict(values)
        weights, rows = values.pop("weight", None), values.pop("order", None)
        order = sampler.order(
            self.samples,
            self.batch_size,
            rank=self._here.rank,
            world=self._here.world,
            seed=self._task.seed,
            epoch=epoch,
            position=position,
            weights=None if weights is None else weights.double().cpu().numpy(),
            rows=None if rows is None else rows.cpu().numpy(),
        )
        on_device = {name: value.to(self._here.device) for name, value in values.items()}
        with contextlib.closing(self._loaded(self._sets["train"], order, epoch)) as batches:
            for batch in batches:
                placed = self._placed(batch)
                yield placed | {name: value[placed["index"]] for name, value in on_device.items()}

    @property
    def epochs(self) -> float:
        """Passes over the training samples; the last one may be a part."""
        steps = self._task.step.optim.steps
        return self._task.epochs if steps is None else steps / self.batches

    def batches_of(self, epoch: int) -> int:
        """Global batches of an epoch."""
        steps = self._task.step.optim.steps
        return self.batches if steps is None else min(self.batches, steps - epoch * self.batches)

    def scores(self, method: Method, split: str) -> dict[str, float]:
        """What ``method.evaluation`` says of its predictions over a whole split, on every rank."""
        evaluation = method.evaluation()
        for batch, predicted in self._predicted(method, self._sets[split]):
            evaluation.update(batch, predicted)
        return evaluation.compute(evaluation.joined(gathered(evaluation.state(), self._here)))

    def train_predictions(self, method: Method) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """(index_B, columns) over this rank's share of the training samples, in order."""
        for batch, predicted in self._predicted(method, self._plain):
            yield batch["index"], predicted

    def pictures(self, method: Method) -> tuple[list[str], dict[str, Tensor]]:
        """What ``method`` shows of a few validation samples beside their pictures, and where those lie.

        The same samples each time; nothing where it shows nothing. Draws no random number of this rank's.
        """
        if type(method).pictures is Method.pictures:
            return [], {}
        samples, training = self._sets["validation"], method.training
        rows = np.unique(np.linspace(0, len(samples) - 1, SHOWN).round().astype(int))
        with contextlib.closing(self._loaded(samples, [rows], 0)) as batches:
            inputs = self._placed(readable_samples(next(batches)))
        device = self._here.device
        method.eval()
        try:
            numbers = torch.random.fork_rng([device] if device.type == "cuda" else [])
            with numbers, torch.no_grad(), precision(self._task.step.optim, device):
                shown = method.pictures(inputs) if len(inputs["index"]) else {}
        finally:
            method.train(training)
        beside = {"picture": inputs["image"]} if shown and "image" in inputs else {}
        return [samples.location(row) for row in inputs["index"].tolist()], {**beside, **shown}

    def failures(self) -> dict[str, str]:
        """Samples that this rank could not decode, by location, with the reason."""
        return {
            samples.location(row): reason
            for samples in (*self._sets.values(), self._plain)
            for row, reason in samples.failures.items()
        }

    def _predicted(
        self, method: Method, samples: SampleDataset
    ) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
        """Batches and what ``method`` predicts for them; samples that cannot be decoded are left out."""
        training = method.training
        method.eval()
        order = sampler.in_order(len(samples), self.batch_size, rank=self._here.rank, world=self._here.world)
        try:
            with contextlib.closing(self._loaded(samples, order, 0)) as batches:
                for batch in batches:
                    inputs = self._placed(readable_samples(batch))
                    with torch.no_grad(), precision(self._task.step.optim, self._here.device):
                        outputs = method.predict(inputs)
                    yield inputs, outputs
        finally:
            method.train(training)

    def _loaded(self, samples: SampleDataset, order: Iterable[np.ndarray], epoch: int) -> Batches:
        """Batches on the CPU, in page-locked memory where a GPU takes them."""
        pin = self._here.device.type == "cuda"
        return loader(samples, order, epoch, self._task.step.scale.loader_workers, pin)

    def _placed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values.to(self._here.device, non_blocking=True) for name, values in batch.items()}
