"""One hash for what a data set holds, for step ids and for MLflow."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mvray.experiment import UNSEEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mvray.experiment import Index

_COLUMNS = ("key", "part", "label", "split", "group", "regions", "bytes")
_IF_THERE = ("labels", "targets")


def fingerprint(index: Index, splits: Sequence[str] = ()) -> str:
    """sha256 over the samples of ``splits`` (all, where none is named) and the class names.

    Over key, part, labels, split, group, regions and file sizes of each sample and its targets, and the settings of
    none; the same wherever the root lies and in whatever order its files were listed. Pixels are
    not read: a picture replaced by another of equal size in bytes is not noticed.
    """
    table = index.rows
    if splits:
        table = table.filter(pc.is_in(table["split"], pa.array(splits, pa.string())))
    table = table.sort_by("key")
    hashed = hashlib.sha256(json.dumps(list(index.classes)).encode())
    if index.unseen and (not splits or UNSEEN in splits):
        hashed.update(json.dumps(list(index.unseen)).encode())
    for name in (*_COLUMNS, *(name for name in _IF_THERE if name in table.column_names)):
        hashed.update(name.encode())
        _add(hashed, pa.concat_arrays(table[name].chunks or [pa.array([], table[name].type)]))
    return hashed.hexdigest()


def _add(hashed: hashlib._Hash, values: pa.Array) -> None:
    """The values as bytes that no other values of this type have; they hold no nulls."""
    if pa.types.is_list(values.type):
        hashed.update(pc.list_value_length(values).to_numpy(zero_copy_only=False).tobytes())
        _add(hashed, values.flatten())
    elif pa.types.is_fixed_size_list(values.type):
        _add(hashed, values.flatten())
    elif pa.types.is_struct(values.type):
        for child in values.flatten():
            _add(hashed, child)
    elif pa.types.is_string(values.type):
        hashed.update(pc.binary_length(values).to_numpy(zero_copy_only=False).tobytes())
        hashed.update("".join(values.to_pylist()).encode())
    else:
        hashed.update(values.to_numpy(zero_copy_only=False).tobytes())
