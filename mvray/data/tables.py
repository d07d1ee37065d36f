"""Parquet files of a storage, and a check that a table has what is expected."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet

from mvray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mvray.storage import Storage


_SCHEMA, _EXTENSION = b"ARROW:schema", b"ARROW:extension:name"


def read_table(storage: Storage, path: str) -> pa.Table:
    """The Parquet file ``path``, in one piece per column. Raises DataError for one with types beyond Arrow's own."""
    data = pa.BufferReader(storage.read(path))
    _check_plain(pa.parquet.read_metadata(data).metadata or {}, storage.full(path))
    return pa.parquet.read_table(data).combine_chunks()


def _check_plain(metadata: Mapping[bytes, bytes], place: str) -> None:
    """Refuse extension types before Arrow sees them: those of Ray Data unpickle what the file says."""
    try:
        schema = base64.b64decode(metadata.get(_SCHEMA, b""), validate=True)
    except ValueError:
        schema = _EXTENSION
    if _EXTENSION in schema:
        raise DataError(
            f"{place} is refused: it has columns of an extension type, which mvray never writes, and reading one can "
            "run code. Find out who wrote it; remove the step's folder to make it again."
        )


def write_table(storage: Storage, path: str, table: pa.Table) -> None:
    """Write ``table`` as the Parquet file ``path``, whole or not at all."""
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink, compression="zstd")
    storage.write(path, sink.getvalue().to_pybytes())
