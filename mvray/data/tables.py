"""Parquet files of a storage, and a check that a table has what is expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet

if TYPE_CHECKING:
    from mvray.storage import Storage


def read_table(storage: Storage, path: str) -> pa.Table:
    """The Parquet file ``path``, in one piece per column."""
    return pa.parquet.read_table(pa.BufferReader(storage.read(path))).combine_chunks()


def write_table(storage: Storage, path: str, table: pa.Table) -> None:
    """Write ``table`` as the Parquet file ``path``, whole or not at all."""
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink, compression="zstd")
    storage.write(path, sink.getvalue().to_pybytes())
