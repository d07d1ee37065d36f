"""Reads and writes Parquet files of a storage."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet

from mvray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mvray.storage import Storage


_SCHEMA, _EXTENSION, _MAGIC = b"ARROW:schema", b"ARROW:extension:name", b"PAR1"
_VALUE_FOLLOWS = 0x18
"""In Thrift's compact protocol: the next field, a string; its length and its bytes come then."""


def read_table(storage: Storage, path: str) -> pa.Table:
    """The Parquet file ``path``, in one piece per column. Raises DataError for one with types beyond Arrow's own."""
    return pa.parquet.read_table(_plain(storage, path)).combine_chunks()


def metadata_of(storage: Storage, path: str) -> Mapping[bytes, bytes]:
    """The file's own metadata. Raises DataError as `read_table`."""
    return pa.parquet.read_metadata(_plain(storage, path)).metadata or {}


def _plain(storage: Storage, path: str) -> pa.BufferReader:
    """The content of a file without extension types: those of Ray Data unpickle what the file says.

    Arrow makes them while it opens a file, so the footer is looked at before, as bytes.
    """
    data = storage.read(path)
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    if not data.endswith(_MAGIC):
        raise DataError(f"{storage.full(path)} is not a whole Parquet file. Remove the step's folder to make it again.")
    at = footer.find(_SCHEMA)
    while at >= 0:
        if _EXTENSION in _schema_after(footer, at + len(_SCHEMA)):
            raise DataError(
                f"{storage.full(path)} is refused: it has columns of an extension type, which mvray never writes, and "
                "reading one can run code. Find out who wrote it; remove the step's folder to make it again."
            )
        at = footer.find(_SCHEMA, at + 1)
    return pa.BufferReader(data)


def _schema_after(footer: bytes, at: int) -> bytes:
    """Arrow's schema, which is the value of the key that ends at ``at``; one that is not as Arrow writes it counts
    as having an extension type."""
    length = shift = 0
    value = at + 1
    for byte in footer[value : value + 5]:
        value, length, shift = value + 1, length | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            break
    try:
        schema = base64.b64decode(footer[value : value + length], validate=True)
    except ValueError:
        return _EXTENSION
    return schema if schema and footer[at : at + 1] == bytes((_VALUE_FOLLOWS,)) else _EXTENSION


def write_table(storage: Storage, path: str, table: pa.Table) -> None:
    """Write ``table`` as the Parquet file ``path``, whole or not at all."""
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink, compression="zstd")
    storage.write(path, sink.getvalue().to_pybytes())
