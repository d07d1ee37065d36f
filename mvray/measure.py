"""Measure steps: join generated columns with the index by key, and compute numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvray.data.tables import read_table, write_table
from mvray.errors import DataError
from mvray.job import Measure
from mvray.plan import Planned
from mvray.storage import Storage

if TYPE_CHECKING:
    from mvray.cluster import Cluster

SAMPLES = "samples.parquet"


def columns_of(folder: Storage) -> pa.Table:
    """All columns that a Generate step made, as one table."""
    shards = [entry.path for entry in folder.list("columns") if entry.path.endswith(".parquet")]
    return pa.concat_tables([read_table(folder, shard) for shard in shards])


def joined(planned: Planned) -> pa.Table:
    """The step's index rows with the columns of its inputs; samples that a generator left out are left out."""
    table = planned.rows()
    for made in planned.inputs.values():
        columns = columns_of(made.folder)
        at = pc.index_in(table["key"], columns["key"])
        table = table.filter(at.is_valid())
        found = columns.take(at.drop_null())
        for name in columns.column_names:
            if name != "key":
                table = table.append_column(found.schema.field(name), found[name])
    size = planned.data.source.region_size or (0, 0)
    for name, pixels in zip(("height", "width"), size, strict=True):
        table = table.append_column(name, pa.array(np.full(len(table), pixels, np.int32)))
    if not len(table):
        raise DataError(f"Step {planned.name!r}: none of its {len(planned.rows())} samples has generated columns.")
    return table


def run(planned: Planned, cluster: Cluster) -> dict[str, float]:
    """Every metric for each split, as "split/name", with the number of samples.

    A metric with a field ``seed`` gets the step's. One with a method ``fit(tables, names)`` is replaced by
    what that returns, given the tables of all splits. Arrays that metrics give go to samples.parquet.
    """
    step = planned.step
    assert isinstance(step, Measure)
    table, names = joined(planned), planned.index.names
    tables = {split: table.filter(pc.equal(table["split"], split)) for split in sorted(set(table["split"].to_pylist()))}
    metrics: dict[str, float] = {}
    kept: list[pa.Table] = []
    fitted = [_fitted(metric, planned.seed, tables, names) for metric in step.metrics]
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
            kept.append(_kept(rows, columns))
    if kept:
        write_table(planned.folder, SAMPLES, pa.concat_tables(kept, promote_options="default"))
    return metrics


def _fitted(metric: Any, seed: int, tables: Mapping[str, pa.Table], names: tuple[str, ...]) -> Any:
    if is_dataclass(metric) and "seed" in {f.name for f in fields(metric)}:
        metric = replace(metric, seed=seed)  # type: ignore[type-var]
    return metric.fit(tables, names) if hasattr(metric, "fit") else metric


def _kept(rows: pa.Table, columns: Mapping[str, np.ndarray]) -> pa.Table:
    """The rows' keys and splits with what metrics said of each; N x d arrays become lists."""
    table = rows.select(["key", "split", "group", "label"])
    for name, values in columns.items():
        column = pa.array(values.reshape(-1))
        if values.ndim > 1:
            size = values.size // max(1, len(values))
            column = pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1) * size, pa.int32()), column)
        table = table.append_column(name, column)
    return table


def samples_of(folder: Storage) -> pa.Table | None:
    """What the metrics of a finished Measure step said of each sample; None where they said nothing."""
    return read_table(folder, SAMPLES) if folder.exists(SAMPLES) else None
