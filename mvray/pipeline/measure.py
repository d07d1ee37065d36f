"""Measure steps: join generated columns with the index by key, and compute numbers.

They run in this process on a local cluster and without Ray. On a cluster that is joined a Ray task runs them: this
process is on the head there, which is small, and lost with everything when its memory is full.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvray.cluster import Cluster, check_here, placement
from mvray.data import write_table
from mvray.errors import Interrupted, StepFailed
from mvray.experiment import Measure, Packed
from mvray.pipeline.failures import raise_own
from mvray.pipeline.outputs import SAMPLES, measure_table
from mvray.pipeline.plan import Planned
from mvray.training import StepProgress

RETRIES = 5
"""How often Ray begins again where the node or the process of a Measure step was lost."""
POLL_S = 0.2


def run(planned: Planned, cluster: Cluster) -> dict[str, float]:
    """The numbers of `measured`, on whichever node has room. Raises Interrupted when the cluster is aborted."""
    if cluster.workers == 0 or cluster.is_local:
        return measured(planned)
    bundle = {"CPU": planned.step.scale.cpus_per_worker}
    cluster.ready()
    cluster.groups.make_room(bundle["CPU"], 0.0)

    def say(_: int) -> None:
        cluster.say(f"{planned.name}: waits for room on the cluster")

    room = placement.reserve(bundle, 1, 1, say, cluster.aborted.is_set, placement.heads_to_spare(bundle))
    if room is None:
        raise Interrupted("The run was interrupted.")
    try:
        return _as_task(planned, bundle["CPU"], room.group, cluster)
    finally:
        room.release()


def _as_task(planned: Planned, cpus: float, group: Any, cluster: Cluster) -> dict[str, float]:
    import ray
    import ray.exceptions
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    placed = PlacementGroupSchedulingStrategy(placement_group=group)
    options = {"num_cpus": cpus, "max_retries": RETRIES, "scheduling_strategy": placed, "name": planned.label}
    task: Any = ray.remote(_on_node).options(**options)
    numbers = task.remote(Packed.of(planned, ray.cloudpickle.dumps), cpus)
    while not ray.wait([numbers], timeout=POLL_S)[0]:
        if cluster.aborted.is_set():
            ray.cancel(numbers, force=True)
            raise Interrupted("The run was interrupted.")
    try:
        metrics: dict[str, float] = ray.get(numbers)
        return metrics
    except ray.exceptions.RayError as error:
        raise_own(error, planned)
        cause = getattr(error, "cause", None) or error
        raise StepFailed(f"Step {planned.name!r} ended with {type(cause).__name__}: {cause}") from error


def _on_node(packed: Packed, cpus: float) -> dict[str, float]:
    check_here()
    planned: Planned = packed.open()
    StepProgress(f"on {socket.gethostname()}", cpus=cpus).write(planned.folder)
    return measured(planned)


def measured(planned: Planned) -> dict[str, float]:
    """Every metric for each split, as "split/name", with the number of samples.

    Arrays that metrics give go to samples.parquet.
    """
    step = planned.step
    assert isinstance(step, Measure)
    table, names = measure_table(planned), planned.index.names
    tables = {split: table.filter(pc.equal(table["split"], split)) for split in sorted(set(table["split"].to_pylist()))}
    metrics: dict[str, float] = {}
    sample_tables: list[pa.Table] = []
    fitted = [metric.seeded(planned.seed).fitted(tables, names) for metric in step.metrics]
    for split, rows in tables.items():
        metrics[f"{split}/samples"] = float(len(rows))
        columns: dict[str, np.ndarray] = {}
        for metric in fitted:
            for name, value in metric(rows, names).items():
                if isinstance(value, np.ndarray):
                    columns[name] = value
                else:
                    metrics[f"{split}/{name}"] = value
        if columns:
            sample_tables.append(_sample_table(rows, columns))
    if sample_tables:
        write_table(planned.folder, SAMPLES, pa.concat_tables(sample_tables, promote_options="default"))
    return metrics


def _sample_table(rows: pa.Table, columns: Mapping[str, np.ndarray]) -> pa.Table:
    """The rows' keys and splits with the metrics' values for each row; N x d arrays become lists."""
    table = rows.select(["key", "split", "group", "label"])
    for name, values in columns.items():
        column = pa.array(values.reshape(-1))
        if values.ndim > 1:
            size = values.size // max(1, len(values))
            column = pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1) * size, pa.int32()), column)
        table = table.append_column(name, column)
    return table
