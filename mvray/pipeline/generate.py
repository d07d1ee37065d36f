"""Generate steps on Ray Data: a pool of actors, each holding the model, makes shard after shard.

A shard is a run of the index rows, of about as many samples or frames as the others; its file
columns/NNNNN.parquet appears whole or not at all, and one that exists is not made again. Ray Data hands
the shards that are missing to the actors and replaces actors that die. An actor decodes the next
batches in threads while the model works on this one.
"""

from __future__ import annotations

import json
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from mvray import errors
from mvray.cluster import Cluster, placement, ray_internals
from mvray.errors import DataError, Interrupted, StepFailed
from mvray.experiment import Packed
from mvray.pipeline import actor_progress
from mvray.pipeline.actor_progress import ActorProgress
from mvray.pipeline.plan import Planned
from mvray.pipeline.shards import GenerateWork, ShardMaker, samples_in, shard_path, work_of
from mvray.storage import Storage

T = TypeVar("T")

POLL_S = 0.2
LEAVE_S = 10.0


def run(planned: Planned, cluster: Cluster) -> dict[str, float]:
    """Make what is missing; returns numbers of rows, unreadable samples and shards."""
    work = work_of(planned)
    shards = len(work.shards) - 1
    missing = [shard for shard in range(shards) if not planned.folder.exists(shard_path(shard))]
    started = time.monotonic()
    name = f"{planned.label}-{planned.id}"
    progress = ActorProgress(planned.folder, work.step, len(missing), shards, *_pool(name, missing, cluster))
    for shard in _until_aborted(_generated_shards(work, missing, cluster, name), cluster):
        progress.look()
        if shard:
            progress.add_shard(*shard)
    seconds = time.monotonic() - started
    total = _checked(planned, shards)
    metrics = {"rows": float(total), "bad": float(len(planned.rows()) - total), "shards": float(shards)}
    return {**metrics, "samples_per_s": progress.rows / seconds} if missing else metrics


def _pool(name: str, missing: list[int], cluster: Cluster) -> tuple[Callable[[], list[str]], bool]:
    """Where the actors are, whose class has ``name``, and whether there are GPUs for them."""
    if not missing:
        return list, False
    if cluster.workers == 0:
        return actor_progress.this_process, torch.cuda.is_available()
    return actor_progress.Actors(name).hosts, bool(cluster.gpus())


def _checked(planned: Planned, shards: int) -> int:
    """How many rows there are. Raises DataError where too few of the samples could be read."""
    folder, samples, most = planned.folder, len(planned.rows()), planned.data.max_bad_fraction
    finished = [shard for shard in range(shards) if folder.exists(shard_path(shard))]
    total = sum(samples_in(folder, shard) for shard in finished)
    if total and samples - total <= most * samples:
        return total
    reports = [entry.path for entry in folder.list("unreadable")]
    where, why = next(iter(json.loads(folder.read(reports[0])).items()))
    for path in reports:  # when the files can be read again, these are made again
        folder.delete(f"columns/{Path(path).stem}.parquet")
        folder.delete(path)
    raise DataError(
        f"Step {planned.name!r}: {samples - total} of {samples} samples cannot be read, first {where}: {why}. "
        f"At most {most:.1%} may be bad. Mend or remove them, or set data.max_bad_fraction."
    )


def _until_aborted(items: Iterator[T], cluster: Cluster) -> Iterator[T | None]:
    """The ``items``, which may wait long for room on the cluster; None at intervals while they wait.

    Raises Interrupted on Ctrl-C.
    """
    arrived: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def take() -> None:
        try:
            for item in items:
                arrived.put(("row", item))
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
    """End the thread: one that still asks Ray for something when this process leaves Ray ends the process.

    It waits for Ray Data, whose own threads go on for as long as the cluster has no room, and no public call ends them
    before the first row.
    """
    until = time.monotonic() + LEAVE_S

    def end() -> None:
        while taking.is_alive() and time.monotonic() < until:
            ray_internals.end_data_executions()
            taking.join(POLL_S)

    if "ray.data" in sys.modules:
        # In a thread, as it may wait for a cluster that is gone.
        ending = threading.Thread(target=end, name="generate-end", daemon=True)
        ending.start()
        ending.join(LEAVE_S)
    taking.join(max(0.0, until - time.monotonic()))


def _generated_shards(
    work: GenerateWork, missing: list[int], cluster: Cluster, name: str
) -> Iterator[tuple[int, str, float]]:
    """Rows of each missing shard as it is finished, where that was, and how busy the GPUs are there.

    The class of the actors has ``name``: Ray knows them by nothing else.
    """
    if not missing:
        return
    if cluster.workers == 0:
        maker = ShardMaker(work, missing)
        for shard in missing:
            yield maker.make(shard)[0], socket.gethostname(), maker.gpu_busy()
        return
    cluster.make_room(work.step)
    import ray.data

    scale, gpus = work.step.scale, cluster.gpus()
    bundle = {"CPU": scale.cpus_per_worker, "GPU": work.step.gpus_per_actor if gpus else 0.0}
    if not cluster.is_local and not placement.slots(bundle):  # Ray Data waits without a word
        cluster.say(f"{work.step.name}: waits for 1 more worker's room on the cluster")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    actors = max(1, min(len(missing), scale.workers))
    # Not ray.data.range, whose tasks want a CPU of their own: where the actors have the last one they wait for ever.
    shards = ray.data.from_items([{"id": at} for at in range(len(missing))], override_num_blocks=len(missing))
    results = shards.map_batches(
        type(name, (ShardMaker,), {}),
        fn_constructor_args=(Packed.of(work, ray.cloudpickle.dumps), missing),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=scale.cpus_per_worker,
        num_gpus=bundle["GPU"] or None,
    )
    for row in results.iter_rows():
        if row["error"]:
            _raise(work, *json.loads(row["error"]))
        yield row["rows"], row["host"], row["gpu_busy"]


def _raise(work: GenerateWork, kind: str, message: str, text: str) -> NoReturn:
    """Raise an actor's error here: ours as it was, another as StepFailed."""
    own = getattr(errors, kind, None)
    if own is not None:
        raise own(message)
    Storage(work.folder).write("error.txt", text.encode())
    raise StepFailed(
        f"Step {work.step.name!r} ended with {kind}: {message}. The traceback is in {work.folder}/error.txt; "
        "--workers 0 runs the step in this process."
    )
