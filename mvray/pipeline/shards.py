"""The shards of a Generate step: how they are cut, and what makes one."""

from __future__ import annotations

import itertools
import json
import math
import socket
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mvray.data import (
    ColumnReader,
    dataset,
    frames,
    loader,
    metadata_of,
    node_cache,
    open_columns,
    read_table,
    readable_samples,
    sampler,
    write_table,
)
from mvray.errors import DataError
from mvray.experiment import Facts, Frame, FrameGenerator, Generate, Generator, Packed
from mvray.pipeline.plan import Planned
from mvray.storage import Storage
from mvray.training import gpu_use, load_method, use_given_threads

SHARD_ROWS = 256
"""Samples in a shard, or frames where every frame is looked at."""


SAMPLES = b"samples"
"""A shard's own metadata: how many samples its rows are of."""


@dataclass(frozen=True)
class GenerateWork:
    """What an actor needs to make any shard of a Generate step."""

    step: Generate
    seed: int
    folder: str
    weights: str | None
    facts: Facts | None
    """What the method was trained for."""
    columns: tuple[str, ...]
    """Folders of the Generate steps that the data is joined with."""
    shards: tuple[int, ...]
    """The first row of each shard, and the number of rows."""


def work_of(planned: Planned) -> GenerateWork:
    """The work of a Generate step, whose index.parquet must be in its folder."""
    step = planned.step
    assert isinstance(step, Generate)
    of = planned.inputs[step.of.name] if step.of else None
    return GenerateWork(
        step=step,
        seed=planned.seed,
        folder=planned.folder.uri,
        weights=of.folder.uri if of else None,
        facts=of.facts if of else None,
        columns=tuple(planned.inputs[generated.name].folder.uri for generated in step.data.columns),
        shards=shards_of(planned.rows()["frames"].to_numpy(), step.generator.frame_step),
    )


class ShardMaker:
    """Makes shards; one in each actor. ``missing`` are the shards that Ray Data counts through."""

    def __init__(self, work: GenerateWork | Packed, missing: list[int]) -> None:
        if isinstance(work, Packed):
            work = work.open()
            assert isinstance(work, GenerateWork)
        self._work, self._missing = work, missing
        self._folder = Storage(work.folder)
        node_cache.begin_task(work.step.scale.cache_gb)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """For Ray Data: takes positions among the missing shards, returns a row about each finished one.

        An error is returned in its row too, because Ray Data keeps only the text of what is raised here.
        """
        columns: dict[str, list[Any]] = {"rows": [], "bad": [], "error": [], "host": [], "gpu_busy": []}
        for position in batch["id"]:
            rows = bad = 0
            error = ""
            try:
                rows, bad = self.make(self._missing[int(position)])
            except Exception as raised:
                error = json.dumps([type(raised).__name__, str(raised), traceback.format_exc()])
            where = (("host", socket.gethostname()), ("gpu_busy", self.gpu_busy()))
            for name, value in (("rows", rows), ("bad", bad), ("error", error), *where):
                columns[name].append(value)
        return columns

    def gpu_busy(self) -> float:
        """How busy this node's GPUs are, in percent; NaN where it has none, or is not asked for any."""
        busy = gpu_use().here if self._work.step.gpus_per_actor and torch.cuda.is_available() else None
        return math.nan if busy is None else busy

    @cached_property
    def _rows(self) -> pa.Table:
        return read_table(self._folder, "index.parquet")

    @cached_property
    def _generator(self) -> Generator | FrameGenerator:
        use_given_threads()
        work, of = self._work, self._work.step.of
        method = load_method(of, work.facts, Storage(work.weights)) if of and work.weights and work.facts else None
        return work.step.generator.build(method, Storage(work.step.data.source.root).read)

    @cached_property
    def _columns(self) -> dict[str, ColumnReader]:
        step = self._work.step
        return open_columns(self._work.columns, (), step.name, step.data, step.generator.needs, step.targets)

    def make(self, shard: int) -> tuple[int, int]:
        """Write one shard; returns how many samples it has and how many could not be read."""
        first, end = self._work.shards[shard : shard + 2]
        rows = self._rows.slice(first, end - first)
        if self._folder.exists(shard_path(shard)):  # made by an actor that died before it could report it
            count = samples_in(self._folder, shard)
            return count, len(rows) - count
        generator = self._generator
        if isinstance(generator, FrameGenerator):
            tables, failures = self._of_frames(generator, rows)
        else:
            tables, failures = self._of_samples(generator, rows)
        if failures:
            locations = rows["location"].to_pylist()
            reasons = {locations[row]: reason for row, reason in sorted(failures.items())}
            self._folder.write(f"unreadable/{shard:05d}.json", json.dumps(reasons).encode())
        samples = len(rows) - len(failures)
        if not tables or not samples:
            return 0, len(rows)  # no shard: without a sample its columns are not known
        table = pa.concat_tables(tables)
        write_table(self._folder, shard_path(shard), table.replace_schema_metadata({SAMPLES: str(samples)}))
        return samples, len(failures)

    def _of_samples(self, generator: Generator, rows: pa.Table) -> tuple[list[pa.Table], dict[int, str]]:
        """The columns of each batch, and the rows that could not be read."""
        step = self._work.step
        samples = dataset(step.data, rows, self._columns, seed=self._work.seed, targets=step.targets)
        size = step.generator.samples_per_batch
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tables: list[pa.Table] = []
        order, pin = sampler.in_order(len(rows), size), device.type == "cuda"
        try:
            for batch in loader(samples, order, 0, step.scale.loader_workers, pin):
                readable = readable_samples(batch)
                if len(readable["index"]):
                    keys = rows["key"].take(pa.array(readable["index"].numpy()))
                    inputs = {name: values.to(device, non_blocking=True) for name, values in readable.items()}
                    tables.append(generator(inputs).append_column("key", keys))
        except DataError:
            if len(samples.failures) < len(rows):
                raise
        return tables, samples.failures

    def _of_frames(self, generator: FrameGenerator, rows: pa.Table) -> tuple[list[pa.Table], dict[int, str]]:
        """As `_of_samples`, for every k-th frame; a video that breaks off in the middle has no rows at all."""
        step = self._work.step
        failures: dict[int, str] = {}

        def readable() -> Iterator[Frame]:
            for result in frames(step.data.source, rows, generator.every, step.scale.loader_workers):
                if isinstance(result, Frame):
                    yield result
                else:
                    failures[result[0]] = result[1]

        tables = []
        stream = readable()
        while batch := list(itertools.islice(stream, generator.batch_size)):
            keys = pa.array([frame.key for frame in batch], pa.string())
            numbers = pa.array([frame.number for frame in batch], pa.int32())
            tables.append(generator(batch).append_column("key", keys).append_column("frame", numbers))
        broken = rows["key"].take(pa.array(list(failures), pa.int64()))
        complete = [table.filter(pc.invert(pc.is_in(table["key"], broken))) for table in tables] if failures else tables
        return complete, failures


def shards_of(frames: np.ndarray, every: int | None) -> tuple[int, ...]:
    """Where each shard begins, and the number of samples at the end.

    Alike in samples, or in the frames that are looked at where ``every`` is given: a last shard of few
    samples could be all unreadable.
    """
    looked_at = np.ones(len(frames), np.int64) if every is None else -(-np.maximum(frames, 1) // every)
    ends = np.cumsum(looked_at)
    shards = -(-int(ends[-1]) // SHARD_ROWS)
    cuts = [shard * int(ends[-1]) // shards for shard in range(1, shards)]
    return (0, *sorted({int(at) for at in np.searchsorted(ends, cuts, side="right")} - {0, len(frames)}), len(frames))


def shard_path(shard: int) -> str:
    return f"columns/{shard:05d}.parquet"


def samples_in(folder: Storage, shard: int) -> int:
    """How many samples a shard that is there has."""
    return int(metadata_of(folder, shard_path(shard))[SAMPLES])
