"""The rows of an index: the columns that every reader fills, and those that some have (`Index.rows`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

REGION = pa.struct(
    [("kind", pa.string()), ("id", pa.string())] + [(side, pa.float32()) for side in ("x0", "y0", "x1", "y1")]
)
ROWS = pa.schema(
    {
        "key": pa.string(),
        "location": pa.string(),
        "part": pa.string(),
        "label": pa.int32(),
        "split": pa.string(),
        "group": pa.string(),
        "regions": pa.list_(REGION),
        "bytes": pa.int64(),
        "frames": pa.int32(),
    }
)
TARGET = pa.struct([("location", pa.string()), ("bytes", pa.int64())])


def rows(
    columns: dict[str, Iterable[Any]],
    labels: np.ndarray | None = None,
    targets: Mapping[str, tuple[Sequence[str], Sequence[int]]] | None = None,
) -> pa.Table:
    """Index rows from columns; Arrow arrays are taken as they are. Without ``frames``, each sample is one picture.

    ``labels`` (N x K, 0 or 1) are those of samples with several; ``targets`` has locations and sizes in bytes.
    """
    columns = {"frames": np.ones(len(list(columns["key"])), np.int32), **columns}
    table = pa.table(
        [
            values if isinstance(values, pa.Array) else pa.array(list(values), field.type)
            for field, values in ((field, columns[field.name]) for field in ROWS)
        ],
        schema=ROWS,
    )
    if labels is not None:
        flat = pa.array(np.ascontiguousarray(labels, np.uint8).reshape(-1))
        table = table.append_column("labels", pa.FixedSizeListArray.from_arrays(flat, labels.shape[1]))
    if targets is not None:
        structs = [
            pa.StructArray.from_arrays([pa.array(locations, pa.string()), pa.array(sizes, pa.int64())], fields=TARGET)
            for locations, sizes in targets.values()
        ]
        table = table.append_column("targets", pa.StructArray.from_arrays(structs, list(targets)))
    return table


def target_locations(rows: pa.Table, name: str) -> list[str]:
    """Where the target ``name`` of each sample lies, "" where it has none."""
    locations: list[str] = pc.struct_field(rows["targets"], [name, "location"]).to_pylist()
    return locations


def target_names(rows: pa.Table) -> tuple[str, ...]:
    """The targets that samples of these rows may have."""
    return tuple(field.name for field in rows.schema.field("targets").type) if "targets" in rows.column_names else ()


def labels_of(rows: pa.Table) -> np.ndarray | None:
    """The labels of samples with several, N x K uint8; None where samples have one."""
    if "labels" not in rows.column_names:
        return None
    column = rows["labels"].combine_chunks()
    return np.asarray(column.flatten().to_numpy()).reshape(len(rows), column.type.list_size)
