"""Generated columns: written as a Generate step writes them, joined by key from one mapped file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from mvray.data import node_cache
from mvray.data.columns import Columns, map_field
from mvray.data.node_cache import KEPT_S
from mvray.data.tables import read_table, write_table
from mvray.errors import DataError
from mvray.storage.storage import Storage

PAGES = 23


def values() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "map": draw.random((PAGES, 3, 4)).astype(np.float16),
        "mask": draw.integers(0, 256, (PAGES, 2, 2)).astype(np.uint8),
        "feature": draw.random((PAGES, 5)).astype(np.float32),
        "cluster": draw.integers(0, 9, PAGES),
        "inside": draw.random(PAGES) < 0.5,
    }


def step(tmp_path: Path, rows_per_shard: int = 10) -> str:
    """A finished Generate step's folder."""
    storage, made = Storage(str(tmp_path / "cams-0123")), values()
    schema = pa.schema(
        [
            pa.field("key", pa.string()),
            map_field("map", 3, 4),
            map_field("mask", 2, 2, "uint8"),
            pa.field("feature", pa.list_(pa.float32(), 5)),
            pa.field("cluster", pa.int64()),
            pa.field("inside", pa.bool_()),
        ]
    )
    for start in range(0, PAGES, rows_per_shard):
        part = slice(start, min(start + rows_per_shard, PAGES))
        keys = [f"page/{i}" for i in range(PAGES)[part]]
        flat = {name: list(array[part].reshape(len(keys), -1)) for name, array in made.items() if array.ndim > 1}
        numbers = {name: array[part] for name, array in made.items() if array.ndim == 1}
        write_table(storage, f"columns/{start:05d}.parquet", pa.table({"key": keys, **flat, **numbers}, schema=schema))
    storage.write("step.json", json.dumps({"seconds": 1.0}).encode())
    return storage.uri


@pytest.mark.parametrize("rows_per_shard", [1, 10, 100])
def test_values_are_found_by_key(tmp_path: Path, rows_per_shard: int) -> None:
    columns = Columns.open(step(tmp_path, rows_per_shard), tmp_path / "cache")
    expected = values()
    assert list(columns) == list(expected)
    keys = [f"page/{i}" for i in (7, 0, 22, 7)]
    for name, column in columns.items():
        assert len(column) == PAGES
        assert column.shape == expected[name].shape[1:]
        found = column.lookup(pa.array(keys))
        for key, position in zip(keys, found, strict=True):
            assert np.array_equal(column[position], expected[name][int(key.rpartition("/")[2])])
    assert [name for name, column in columns.items() if column.is_map] == ["map", "mask"]
    assert columns["map"][0].dtype == np.float16


def test_the_file_is_mapped_and_made_once(tmp_path: Path) -> None:
    uri, cache = step(tmp_path), tmp_path / "cache"
    before = pa.total_allocated_bytes()
    column = Columns.open(uri, cache)["map"]
    (file,) = cache.iterdir()
    assert str(file) in Path("/proc/self/maps").read_text()
    assert pa.total_allocated_bytes() - before < 2000  # nothing was copied
    made = file.stat().st_ino
    assert np.array_equal(Columns.open(uri, cache)["map"][3], column[3])
    assert file.stat().st_ino == made
    assert not column[0].flags.writeable


def test_without_room_the_columns_are_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, cache = step(tmp_path), tmp_path / "cache"
    mapped = Columns.open(uri, cache)["map"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mvray.data.columns._convert", full)
    there = Columns.open(uri, tmp_path / "full")["map"]
    assert len(there) == len(mapped) > 0
    assert all(np.array_equal(there[i], mapped[i]) for i in range(len(mapped)))


def test_another_execution_of_the_step_is_another_file(tmp_path: Path) -> None:
    uri, cache = step(tmp_path), tmp_path / "cache"
    Columns.open(uri, cache)
    Storage(uri).write("step.json", json.dumps({"seconds": 2.0}).encode())
    Columns.open(uri, cache)
    assert len(list(cache.iterdir())) == 2


def test_copies_that_nobody_opens_are_removed(tmp_path: Path) -> None:
    uri, cache = step(tmp_path), tmp_path / "cache"
    column = Columns.open(uri, cache)["map"]
    (first,) = cache.iterdir()
    long_ago = time.time() - KEPT_S - 60
    os.utime(first, (long_ago, long_ago))
    Columns.open(uri, cache)  # opened: young again
    Storage(uri).write("step.json", json.dumps({"seconds": 3.0}).encode())
    Columns.open(uri, cache)
    assert first.exists()
    node_cache.begin_task(20)  # this process uses it no more
    os.utime(first, (long_ago, long_ago))
    Storage(uri).write("step.json", json.dumps({"seconds": 4.0}).encode())
    Columns.open(uri, cache)
    assert not first.exists()
    assert np.isfinite(column[0]).all()  # still mapped here


def test_missing_keys_are_counted(tmp_path: Path) -> None:
    column = Columns.open(step(tmp_path), tmp_path / "cache")["map"]
    with pytest.raises(DataError, match=r"Found no 'map' for 2 of 3 samples, first 'page/99'"):
        column.lookup(pa.chunked_array([["page/1", "page/99"], ["page/100"]]))
    assert column.lookup(pa.array(["page/1", "page/99"]), max_missing=0.5).tolist() == [1, -1]


def test_a_step_without_columns_and_a_payload_that_cannot_be_joined(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Found no columns/\*.parquet"):
        Columns.open(str(tmp_path / "nothing"), tmp_path / "cache")
    storage = Storage(str(tmp_path / "boxes"))
    write_table(storage, "columns/0.parquet", pa.table({"key": ["a"], "boxes": [[1.0, 2.0]]}))
    with pytest.raises(DataError, match=r"'boxes' is of type list<.*numbers and fixed-size lists"):
        Columns.open(storage.uri, tmp_path / "cache")


def test_tables_survive_the_way(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    table = pa.table({"a": pa.chunked_array([[1, 2], [3]]), "b": [["x"], [], ["y", "z"]]})
    write_table(storage, "t.parquet", table)
    assert read_table(storage, "t.parquet").equals(table)
    assert read_table(storage, "t.parquet")["a"].num_chunks == 1


class Trap(pa.ExtensionType):
    """As Ray Data's own: what the file says of the type is unpickled."""

    ran: ClassVar[list[bytes]] = []

    def __init__(self) -> None:
        super().__init__(pa.int64(), "mvray.tests.trap")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Trap:
        cls.ran.append(serialized)
        return cls()


def test_extension_types_are_refused_before_they_are_made(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    column = pa.ExtensionArray.from_storage(Trap(), pa.array([1, 2]))
    pa.register_extension_type(Trap())
    try:
        write_table(storage, "x.parquet", pa.table({"key": column}))
        write_table(storage, "inner.parquet", pa.table({"key": pa.StructArray.from_arrays([column], ["a"])}))
        Trap.ran.clear()  # of our own types Arrow makes copies
        for name in ("x.parquet", "inner.parquet"):
            with pytest.raises(DataError, match=rf"{name} is refused: it has columns of an extension type"):
                read_table(storage, name)
        assert Trap.ran == []
    finally:
        pa.unregister_extension_type("mvray.tests.trap")
