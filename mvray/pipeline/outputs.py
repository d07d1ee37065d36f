"""What Generate and Measure steps have written, read again as tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvray.data import read_table
from mvray.errors import DataError
from mvray.pipeline.plan import Planned
from mvray.storage import Storage

SAMPLES = "samples.parquet"


def columns_of(folder: Storage) -> pa.Table:
    """All columns that a Generate step made, as one table."""
    shards = [entry.path for entry in folder.list("columns") if entry.path.endswith(".parquet")]
    return pa.concat_tables([read_table(folder, shard) for shard in shards])


def measure_table(planned: Planned) -> pa.Table:
    """The step's index rows with the columns of its inputs; samples that a generator left out are left out."""
    table = planned.rows()
    for generated in planned.inputs.values():
        columns = columns_of(generated.folder)
        at = pc.index_in(table["key"], columns["key"])
        table = table.filter(at.is_valid())
        matched = columns.take(at.drop_null())
        for name in columns.column_names:
            if name != "key":
                table = table.append_column(matched.schema.field(name), matched[name])
    size = planned.data.source.region_size or (0, 0)
    for name, pixels in zip(("height", "width"), size, strict=True):
        table = table.append_column(name, pa.array(np.full(len(table), pixels, np.int32)))
    if not len(table):
        raise DataError(f"Step {planned.name!r}: none of its {len(planned.rows())} samples has generated columns.")
    return table


def samples_of(folder: Storage) -> pa.Table | None:
    """What the metrics of a finished Measure step said of each sample; None where they said nothing."""
    return read_table(folder, SAMPLES) if folder.exists(SAMPLES) else None
