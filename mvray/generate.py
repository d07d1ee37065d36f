"""Generate steps on Ray Data: a pool of actors, each holding the model, makes shard after shard.

A shard is a run of the index rows, of about as many samples or frames as the others; its file
columns/NNNNN.parquet appears whole or not at all, and one that exists is not made again. Ray Data hands
the shards that are missing to the actors and replaces actors that die. An actor decodes the next
batches in threads while the model works on this one.
"""

from __future__ import annotations

import itertools
import json
import math
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvray import errors, pool, room
from mvray.board import gpu_use
from mvray.data import node_cache, sampler
from mvray.data.columns import Joined, joined
from mvray.data.dataset import dataset, loader, readable
from mvray.data.frames import frames
from mvray.data.tables import metadata_of, read_table, write_table
from mvray.errors import DataError, Interrupted, StepFailed
from mvray.job import Generate, Train
from mvray.method import Facts, Frame, FrameGenerator, Generator
from mvray.plan import Planned
from mvray.pool import PoolBoard
from mvray.settings import without_files
from mvray.storage import Storage

if TYPE_CHECKING:
    from mvray.cluster import Cluster

T = TypeVar("T")

SHARD_ROWS = 256
"""Samples in a shard, or frames where every frame is looked at."""
POLL_S = 0.2
LEAVE_S = 10.0
SAMPLES = b"samples"
"""A shard's own metadata: how many samples its rows are of."""
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
    columns: tuple[str, ...]
    """Folders of the Generate steps that the data is joined with."""
    shards: tuple[int, ...]
    """The first row of each shard, and the number of rows."""


def work_of(planned: Planned) -> Work:
    """The work of a Generate step, whose index.parquet must be in its folder."""
    step = planned.step
    assert isinstance(step, Generate)
    of = planned.inputs[step.of.name] if step.of else None
    return Work(
        step=step,
        seed=planned.seed,
        folder=planned.folder.uri,
        weights=of.folder.uri if of else None,
        facts=of.facts if of else None,
        columns=tuple(planned.inputs[made.name].folder.uri for made in step.data.columns),
        shards=shards_of(planned.rows()["frames"].to_numpy(), getattr(step.generator, "every", None)),
    )


def load_method(step: Train, facts: Facts, folder: Storage) -> Any:
    """The trained method of a finished Train step, in eval mode on the GPU where there is one."""
    import torch

    from mvray.checkpoint import weights_from_bytes
    from mvray.environment import placed

    method = without_files(step.method).build(facts)
    method.load_state_dict(weights_from_bytes(folder.read("weights.safetensors")))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return placed(method, device, channels_last=True).eval()


class Maker:
    """Makes shards; one in each actor. ``missing`` are the shards that Ray Data counts through."""

    def __init__(self, work: Work, missing: list[int]) -> None:
        self._work, self._missing = work, missing
        self._folder = Storage(work.folder)
        node_cache.begin(work.step.scale.cache_gb)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """For Ray Data: positions among the missing shards in, what was made of each out.

        An error goes the same way: of what is raised here Ray Data hands on the text alone.
        """
        found: dict[str, list[Any]] = {"rows": [], "bad": [], "error": [], "host": [], "gpu_busy": []}
        for position in batch["id"]:
            rows = bad = 0
            error = ""
            try:
                rows, bad = self.make(self._missing[int(position)])
            except Exception as raised:
                error = json.dumps([type(raised).__name__, str(raised), traceback.format_exc()])
            where = (("host", socket.gethostname()), ("gpu_busy", self.gpu_busy()))
            for name, value in (("rows", rows), ("bad", bad), ("error", error), *where):
                found[name].append(value)
        return found

    def gpu_busy(self) -> float:
        """How busy this node's GPUs are, in percent; NaN where it has none, or is not asked for any."""
        import torch

        busy = gpu_use().here if self._work.step.gpus_per_actor and torch.cuda.is_available() else None
        return math.nan if busy is None else busy

    @cached_property
    def _rows(self) -> pa.Table:
        return read_table(self._folder, "index.parquet")

    @cached_property
    def _generator(self) -> Generator | FrameGenerator:
        from mvray.environment import use_given_threads

        use_given_threads()
        work, of = self._work, self._work.step.of
        method = load_method(of, work.facts, Storage(work.weights)) if of and work.weights and work.facts else None
        return work.step.generator.build(method, Storage(work.step.data.source.root).read)

    @cached_property
    def _columns(self) -> dict[str, Joined]:
        step = self._work.step
        return joined(self._work.columns, (), step.name, step.data.masks, step.generator.needs)

    def make(self, shard: int) -> tuple[int, int]:
        """Write one shard; returns how many samples it has and how many could not be read."""
        first, end = self._work.shards[shard : shard + 2]
        rows = self._rows.slice(first, end - first)
        if self._folder.exists(shard_path(shard)):  # by an actor that died before Ray heard of it
            whole = samples_in(self._folder, shard)
            return whole, len(rows) - whole
        generator = self._generator
        if isinstance(generator, FrameGenerator):
            tables, failures = self._of_frames(generator, rows)
        else:
            tables, failures = self._of_samples(generator, rows)
        if failures:
            locations = rows["location"].to_pylist()
            found = {locations[row]: reason for row, reason in sorted(failures.items())}
            self._folder.write(f"unreadable/{shard:05d}.json", json.dumps(found).encode())
        samples = len(rows) - len(failures)
        if not tables or not samples:
            return 0, len(rows)  # no shard: without a sample its columns are not known
        table = pa.concat_tables(tables)
        write_table(self._folder, shard_path(shard), table.replace_schema_metadata({SAMPLES: str(samples)}))
        return samples, len(failures)

    def _of_samples(self, generator: Generator, rows: pa.Table) -> tuple[list[pa.Table], dict[int, str]]:
        """The columns of each batch, and the rows that could not be read."""
        import torch

        step = self._work.step
        samples = dataset(step.data, rows, self._columns, seed=self._work.seed)
        size = getattr(step.generator, "batch_size", BATCH_SIZE)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tables: list[pa.Table] = []
        order, pin = sampler.in_order(len(rows), size), device.type == "cuda"
        try:
            for batch in loader(samples, order, 0, step.scale.loader_workers, pin):
                kept = readable(batch)
                if len(kept["index"]):
                    keys = rows["key"].take(pa.array(kept["index"].numpy()))
                    given = {name: values.to(device, non_blocking=True) for name, values in kept.items()}
                    tables.append(generator(given).append_column("key", keys))
        except DataError:
            if len(samples.failures) < len(rows):
                raise
        return tables, samples.failures

    def _of_frames(self, generator: FrameGenerator, rows: pa.Table) -> tuple[list[pa.Table], dict[int, str]]:
        """As `_of_samples`, for every k-th frame; a video that breaks off in the middle has no rows at all."""
        step = self._work.step
        failures: dict[int, str] = {}

        def readable() -> Iterator[Frame]:
            for found in frames(step.data.source, rows, generator.every, step.scale.loader_workers):
                if isinstance(found, Frame):
                    yield found
                else:
                    failures[found[0]] = found[1]

        tables = []
        given = readable()
        while batch := list(itertools.islice(given, generator.batch_size)):
            keys = pa.array([frame.key for frame in batch], pa.string())
            numbers = pa.array([frame.number for frame in batch], pa.int32())
            tables.append(generator(batch).append_column("key", keys).append_column("frame", numbers))
        broken = rows["key"].take(pa.array(list(failures), pa.int64()))
        kept = [table.filter(pc.invert(pc.is_in(table["key"], broken))) for table in tables] if failures else tables
        return kept, failures


def shards_of(frames: np.ndarray, every: int | None) -> tuple[int, ...]:
    """Where each shard begins, and the number of samples at the end.

    Alike in samples, or in the frames that are looked at where ``every`` is given: a last shard of few
    samples could be all unreadable.
    """
    looked_at = np.ones(len(frames), np.int64) if every is None else -(-np.maximum(frames, 1) // every)
    ends = np.cumsum(looked_at)
    shards = -(-int(ends[-1]) // SHARD_ROWS)
    wanted = [shard * int(ends[-1]) // shards for shard in range(1, shards)]
    return (0, *sorted({int(at) for at in np.searchsorted(ends, wanted, side="right")} - {0, len(frames)}), len(frames))


def shard_path(shard: int) -> str:
    return f"columns/{shard:05d}.parquet"


def samples_in(folder: Storage, shard: int) -> int:
    """How many samples a shard that is there has."""
    return int(metadata_of(folder, shard_path(shard))[SAMPLES])


def run(planned: Planned, cluster: Cluster) -> dict[str, float]:
    """Make what is missing; returns numbers of rows, unreadable samples and shards."""
    work = work_of(planned)
    shards = len(work.shards) - 1
    missing = [shard for shard in range(shards) if not planned.folder.exists(shard_path(shard))]
    started = time.monotonic()
    name = f"{Maker.__name__}_{planned.id}"
    board = PoolBoard(planned.folder, work.step, len(missing), shards, *_pool(name, missing, cluster))
    for made in _until_aborted(_made(work, missing, cluster, name), cluster):
        board.look()
        if made:
            board.made(*made)
    seconds = time.monotonic() - started
    total = _checked(planned, shards)
    metrics = {"rows": float(total), "bad": float(len(planned.rows()) - total), "shards": float(shards)}
    return {**metrics, "samples_per_s": board.rows / seconds} if missing else metrics


def _pool(name: str, missing: list[int], cluster: Cluster) -> tuple[Callable[[], list[str]], bool]:
    """Where the actors are, whose class has ``name``, and whether there are GPUs for them."""
    if not missing:
        return list, False
    if cluster.workers == 0:
        import torch

        return pool.this_process, torch.cuda.is_available()
    return pool.Actors(name).hosts, bool(cluster.gpus())


def _checked(planned: Planned, shards: int) -> int:
    """How many rows there are. Raises DataError where too few of the samples could be read."""
    folder, samples, most = planned.folder, len(planned.rows()), planned.data.max_bad_fraction
    whole = [shard for shard in range(shards) if folder.exists(shard_path(shard))]
    total = sum(samples_in(folder, shard) for shard in whole)
    if total and samples - total <= most * samples:
        return total
    found = [entry.path for entry in folder.list("unreadable")]
    where, why = next(iter(json.loads(folder.read(found[0])).items()))
    for path in found:  # when the files can be read again, these are made again
        folder.delete(f"columns/{Path(path).stem}.parquet")
        folder.delete(path)
    raise DataError(
        f"Step {planned.name!r}: {samples - total} of {samples} samples cannot be read, first {where}: {why}. "
        f"At most {most:.1%} may be bad. Mend or remove them, or set data.max_bad_fraction."
    )


def _until_aborted(made: Iterator[T], cluster: Cluster) -> Iterator[T | None]:
    """What comes from ``made``, which may wait long for room on the cluster; None now and then meanwhile.

    Raises Interrupted on Ctrl-C.
    """
    arrived: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def take() -> None:
        try:
            for each in made:
                arrived.put(("row", each))
                if cluster.aborted.is_set():
                    return
            arrived.put(("end", None))
        except BaseException as error:
            arrived.put(("error", error))

    taking = threading.Thread(target=take, name="generate", daemon=True)
    taking.start()
    while True:
        if cluster.aborted.is_set():
            _end(taking)
            raise Interrupted("The run was interrupted.")
        try:
            kind, value = arrived.get(timeout=POLL_S)
        except queue.Empty:
            yield None
            continue
        if kind == "error":
            raise value
        if kind == "end":
            return
        yield value


def _end(taking: threading.Thread) -> None:
    """End it: a thread that still asks Ray for something when that is left ends the process.

    It waits for Ray Data, whose own threads go on for as long as the cluster has no room, and no public call ends them
    before the first row.
    """
    until = time.monotonic() + LEAVE_S

    def end() -> None:
        from ray.data._internal.execution.streaming_executor import StreamingExecutor

        while taking.is_alive() and time.monotonic() < until:
            for thread in threading.enumerate():
                if isinstance(thread, StreamingExecutor):
                    thread.shutdown(force=True)
            taking.join(POLL_S)

    if "ray.data" in sys.modules:
        # In a thread, as it may wait for a cluster that is gone.
        ending = threading.Thread(target=end, name="generate-end", daemon=True)
        ending.start()
        ending.join(LEAVE_S)
    taking.join(max(0.0, until - time.monotonic()))


def _made(work: Work, missing: list[int], cluster: Cluster, name: str) -> Iterator[tuple[int, str, float]]:
    """Rows of each missing shard as it is finished, where that was, and how busy the GPUs are there.

    The class of the actors has ``name``: Ray knows them by nothing else.
    """
    if not missing:
        return
    if cluster.workers == 0:
        maker = Maker(work, missing)
        for shard in missing:
            yield maker.make(shard)[0], socket.gethostname(), maker.gpu_busy()
        return
    cluster.make_room(work.step)
    import ray.data

    scale, gpus = work.step.scale, cluster.gpus()
    each = {"CPU": scale.cpus_per_worker, "GPU": work.step.gpus_per_actor if gpus else 0.0}
    if not cluster.is_local and not room.slots(each):  # Ray Data waits without a word
        cluster.say(f"{work.step.name}: waits for 1 more worker's room on the cluster")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    actors = max(1, min(len(missing), scale.workers))
    shards = ray.data.range(len(missing), override_num_blocks=len(missing))
    made = shards.map_batches(
        type(name, (Maker,), {}),
        fn_constructor_args=(work, missing),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=scale.cpus_per_worker,
        num_gpus=each["GPU"] or None,
    )
    for row in made.iter_rows():
        if row["error"]:
            _raise(work, *json.loads(row["error"]))
        yield row["rows"], row["host"], row["gpu_busy"]


def _raise(work: Work, kind: str, message: str, text: str) -> NoReturn:
    """Raise an actor's error here: ours as it was, another as StepFailed."""
    own = getattr(errors, kind, None)
    if own is not None:
        raise own(message)
    Storage(work.folder).write("error.txt", text.encode())
    raise StepFailed(
        f"Step {work.step.name!r} ended with {kind}: {message}. The traceback is in {work.folder}/error.txt; "
        "--workers 0 runs the step in this process."
    )
