"""Generate steps on Ray Data: a pool of actors, each holding the model, makes shard after shard.

A shard is a run of the index rows; its file columns/NNNNN.parquet appears whole or not at all, and one
that exists is not made again. Ray Data hands the shards that are missing to the actors and replaces
actors that die. An actor decodes the next batches in threads while the model works on this one.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mvray.data import sampler
from mvray.data.pictures import PictureDataset, loader
from mvray.data.tables import read_table, write_table
from mvray.errors import DataError, StepFailed
from mvray.job import Generate, Train
from mvray.method import Facts
from mvray.plan import Planned
from mvray.progress import duration
from mvray.settings import without_files
from mvray.storage import Storage
from mvray.train import facts_of

if TYPE_CHECKING:
    import numpy as np

    from mvray.cluster import Cluster

SHARD_ROWS = 256
BATCH_SIZE = 64
"""For generators that name no batch_size of their own."""


@dataclass(frozen=True)
class Work:
    """What an actor needs to make any shard of a Generate step."""

    step: Generate
    seed: int
    folder: str
    weights: str | None
    facts: Facts | None
    """What the method was trained for."""


def work_of(planned: Planned) -> Work:
    """The work of a Generate step, whose index.parquet must be in its folder."""
    step = planned.step
    assert isinstance(step, Generate)
    of = planned.inputs[step.of.name] if step.of else None
    return Work(step, planned.seed, planned.folder.uri, of.folder.uri if of else None, facts_of(of) if of else None)


def load_method(step: Train, facts: Facts, folder: Storage) -> Any:
    """The trained method of a finished Train step, in eval mode on the GPU where there is one."""
    import torch

    from mvray.checkpoint import weights_from_bytes

    method = without_files(step.method).build(facts)
    method.load_state_dict(weights_from_bytes(folder.read("weights.safetensors")))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method.eval()


class Maker:
    """Makes shards; one in each actor. ``missing`` are the shards that Ray Data counts through."""

    def __init__(self, work: Work, missing: list[int]) -> None:
        from mvray.environment import use_given_threads

        use_given_threads()
        self._work, self._missing = work, missing
        self._folder = Storage(work.folder)
        self._rows = read_table(self._folder, "index.parquet")
        of = work.step.of
        method = load_method(of, work.facts, Storage(work.weights)) if of and work.weights and work.facts else None
        self._generator = work.step.generator.build(method)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[int]]:
        """For Ray Data: positions among the missing shards in, numbers of rows and of unreadable samples out."""
        shards = [self._missing[int(i)] for i in batch["id"]]
        made = [self.make(shard) for shard in shards]
        return {"shard": shards, "rows": [rows for rows, _ in made], "bad": [bad for _, bad in made]}

    def make(self, shard: int) -> tuple[int, int]:
        """Write one shard; returns how many rows it has and how many samples could not be read."""
        import torch

        samples, shards = len(self._rows), shards_of(len(self._rows))
        first, end = shard * samples // shards, (shard + 1) * samples // shards
        rows = self._rows.slice(first, end - first)
        data, scale = self._work.step.data, self._work.step.scale
        dataset = PictureDataset(data.source, rows, data.pictures, seed=self._work.seed)
        size = getattr(self._work.step.generator, "batch_size", BATCH_SIZE)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tables: list[pa.Table] = []
        for batch in loader(dataset, sampler.in_order(len(rows), size), 0, scale.loader_workers):
            kept = batch["bad"] < 0
            if bool(kept.any()):
                given = {name: values[kept].to(device) for name, values in batch.items()}
                keys = rows["key"].take(pa.array(given["index"].cpu().numpy()))
                tables.append(self._generator(given).append_column("key", keys))
        if dataset.failures:
            found = {dataset.location(row): reason for row, reason in dataset.failures.items()}
            self._folder.write(f"unreadable/{shard:05d}.json", json.dumps(found).encode())
        if not tables:
            raise DataError(f"None of the {len(rows)} samples of shard {shard} can be decoded.")
        table = pa.concat_tables(tables)
        write_table(self._folder, shard_path(shard), table)
        return len(table), len(rows) - len(table)


def shards_of(samples: int) -> int:
    """How many shards there are. They differ by one sample at most: a last one of few could be all unreadable."""
    return -(-samples // SHARD_ROWS)


def shard_path(shard: int) -> str:
    return f"columns/{shard:05d}.parquet"


def run(planned: Planned, cluster: Cluster) -> dict[str, float]:
    """Make what is missing; returns numbers of rows, unreadable samples and shards."""
    work = work_of(planned)
    shards = shards_of(len(planned.rows()))
    missing = [shard for shard in range(shards) if not planned.folder.exists(shard_path(shard))]
    started = time.monotonic()
    rows = bad = 0
    for done, (new_rows, new_bad) in enumerate(_made(work, missing, cluster), start=1):
        if cluster.aborted.is_set():
            raise StepFailed("The run was interrupted.")
        rows, bad = rows + new_rows, bad + new_bad
        rate = rows / (time.monotonic() - started)
        left_s = (len(missing) - done) * SHARD_ROWS / rate if rate else 0.0
        text = f"{shards - len(missing) + done}/{shards} shards, {rate:.0f} samples/s, {duration(left_s)} left"
        planned.folder.write("progress.json", json.dumps({"text": text}).encode())
    seconds = time.monotonic() - started
    total = sum(pq.read_metadata(pa.BufferReader(planned.folder.read(shard_path(s)))).num_rows for s in range(shards))
    metrics = {"rows": float(total), "bad": float(len(planned.rows()) - total), "shards": float(shards)}
    return {**metrics, "samples_per_s": rows / seconds} if missing else metrics


def _made(work: Work, missing: list[int], cluster: Cluster) -> Any:
    """Rows and unreadable samples of each missing shard as it is finished."""
    if not missing:
        return
    if cluster.workers == 0:
        maker = Maker(work, missing)
        for shard in missing:
            yield maker.make(shard)
        return
    cluster.make_room(work.step)
    import ray.data

    scale, gpus = work.step.scale, cluster.gpus()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    actors = max(1, min(len(missing), scale.workers))
    shards = ray.data.range(len(missing), override_num_blocks=len(missing))
    made = shards.map_batches(
        Maker,
        fn_constructor_args=(work, missing),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=scale.cpus_per_worker,
        num_gpus=1 if gpus else None,
    )
    for row in made.iter_rows():
        yield row["rows"], row["bad"]
