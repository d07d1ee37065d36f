"""Generated columns, joined to samples by key.

A Generate step leaves ``columns/*.parquet``: ``key`` and payload columns. The first process of a node
that opens them writes one uncompressed Arrow file into a cache folder of the node; every process
maps it into memory, so they share one copy.

Payload types: a number per sample; a fixed-size list (a vector); a fixed-size list of float16, float32 or uint8 whose
field has the metadata ``shape`` = "h,w" or "m,h,w" (maps, see `map_field`); PNG files whose pixels are classes
(`classes_field`); and, where a column ``frame`` makes the rows those of frames, instance masks (masks.py).
"""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from mvray.data.geometry import View, cut_view
from mvray.data.masks import MaskColumn, positions_of
from mvray.data.node_cache import build_once, node_folder
from mvray.data.tables import read_table
from mvray.errors import DataError, SettingError
from mvray.experiment import CLASSES, IGNORE, LABELS, PAD, Masks, Pictures
from mvray.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mvray.experiment import Data


def map_field(name: str, height: int, width: int, kind: str = "float16", maps: int = 0) -> pa.Field:
    """The field of a column of maps, values in 0..1 (uint8: in 0..255), height x width each.

    With ``maps`` each sample has so many of them, maps x height x width.
    """
    type_ = pa.list_(pa.type_for_alias(kind), max(1, maps) * height * width)
    return pa.field(name, type_, metadata={"shape": f"{maps},{height},{width}" if maps else f"{height},{width}"})


def classes_field(name: str) -> pa.Field:
    """The field of a column of class maps: grey PNG files, a class for each pixel, IGNORE for none."""
    return pa.field(name, pa.binary(), metadata={"kind": CLASSES})


def as_png(classes_HW: np.ndarray) -> bytes:
    """A class map (uint8) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(classes_HW).save(file, "PNG")
    return file.getvalue()


class ColumnReader(Protocol):
    """A column as a data set uses it."""

    def lookup(self, keys: pa.ChunkedArray | pa.Array, max_missing: float = 0.0) -> np.ndarray: ...

    def sample(self, position: int, height: int, width: int, view: View) -> dict[str, np.ndarray]:
        """What enters the sample, whose pixels are the part ``view`` at height x width."""


class Column:
    """One generated column: ``lookup`` finds samples by key, ``column[position]`` is a sample's value.

    ``shape`` is () for numbers, (n,) for vectors, (h, w) for maps and (m, h, w) for several of them.
    """

    def __init__(self, table: pa.Table, name: str, pictures: Pictures = Pictures()) -> None:
        field = table.schema.field(name)
        self.name, self._pictures = name, pictures
        self.shape = _shape(field)
        self._keys = table["key"]
        pieces = [_values(chunk, self.shape) for chunk in table[name].chunks]
        self._pieces = pieces or [np.empty((0, *self.shape), np.float32)]
        self._starts = np.cumsum([0, *(len(piece) for piece in self._pieces)])

    @property
    def is_map(self) -> bool:
        return len(self.shape) > 1

    def lookup(self, keys: pa.ChunkedArray | pa.Array, max_missing: float = 0.0) -> np.ndarray:
        """Positions (int64) of ``keys``, -1 where there is no value.

        Raises DataError where more than the share ``max_missing`` has none.
        """
        return positions_of(keys, self._keys, self.name, max_missing)

    def sample(self, position: int, height: int, width: int, view: View) -> dict[str, np.ndarray]:
        """The value; a map as H x W float32 in 0..1, several as M x H x W."""
        value = self[position]
        if not self.is_map:
            return {self.name: value}
        maps_Mhw = value.astype(np.float32).reshape(-1, *self.shape[-2:])
        if value.dtype == np.uint8:
            maps_Mhw /= 255
        view = in_canvas(view, self._pictures)
        cut_MHW = np.stack([cut_view(map_hw, height, width, view) for map_hw in maps_Mhw])
        return {self.name: cut_MHW.reshape(*self.shape[:-2], height, width)}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, position: int) -> np.ndarray:
        piece = int(np.searchsorted(self._starts, position, side="right")) - 1
        value: np.ndarray = self._pieces[piece][position - self._starts[piece]]
        return value


class ClassesColumn:
    """A generated column of class maps."""

    def __init__(self, table: pa.Table, name: str, pictures: Pictures) -> None:
        self.name, self._pictures = name, pictures
        self._keys, self._files = table["key"], table[name]

    def lookup(self, keys: pa.ChunkedArray | pa.Array, max_missing: float = 0.0) -> np.ndarray:
        """As `Column.lookup`."""
        return positions_of(keys, self._keys, self.name, max_missing)

    def sample(self, position: int, height: int, width: int, view: View) -> dict[str, np.ndarray]:
        """The classes, H x W uint8, nearest; IGNORE where there is padding."""
        classes_HW = np.asarray(Image.open(io.BytesIO(self._files[position].as_py()), formats=("PNG",)))
        view = in_canvas(view, self._pictures)
        cut_HW = cut_view(classes_HW, height, width, view, Image.Resampling.NEAREST, padding=IGNORE)
        return {self.name: np.ascontiguousarray(cut_HW)}


def in_canvas(view: View, made_with: Pictures) -> View:
    """The part ``view`` of a picture as a part of what a Generate step over ``made_with`` has seen of it."""
    if made_with.fit != PAD:
        return view
    assert view.native is not None, "open_columns refuses columns of padded pictures for others"
    return view.within(View.padded(made_with, view.native, None))


class Columns:
    """The columns of one Generate step's output."""

    @staticmethod
    def open(
        uri: str, cache: Path | None = None, masks: Masks = Masks(), pictures: Pictures = Pictures()
    ) -> Mapping[str, ColumnReader]:
        """The payload columns below the step's folder ``uri``, by name; the step saw pictures as ``pictures`` says.

        Raises DataError where there are none.
        """
        table = _local_copy(Storage(uri), cache or node_folder("columns"))
        if "frame" in table.column_names:
            return {"masks": MaskColumn(table, masks)}
        return {name: _column(table, name, pictures) for name in table.column_names if name != "key"}


def _column(table: pa.Table, name: str, pictures: Pictures) -> ColumnReader:
    if (table.schema.field(name).metadata or {}).get(b"kind") == CLASSES.encode():
        return ClassesColumn(table, name, pictures)
    return Column(table, name, pictures)


def open_columns(
    uris: Sequence[str],
    needed: Sequence[str],
    who: str,
    data: Data,
    used: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> dict[str, ColumnReader]:
    """The columns ``needed`` of ``data``'s Generate steps, whose folders are ``uris``; of ``used``, those there are.

    Not those among ``targets``, which the source has. Raises SettingError where one is made by none of the steps, or
    by two, or has the name of a target.
    """
    opened = []
    for step, uri in zip(data.columns, uris, strict=True):
        pictures = step.data.pictures if isinstance(step.data.pictures, Pictures) else Pictures()
        if pictures.fit == PAD and not (isinstance(data.pictures, Pictures) and data.pictures.fit == PAD):
            raise SettingError(
                f"Step {who!r} joins what {step.name!r} made of padded pictures; expected pictures.fit=pad for both."
            )
        opened.append(Columns.open(uri, masks=data.masks, pictures=pictures))
    for name in targets:
        if any(name in columns for columns in opened):
            raise SettingError(
                f"Step {who!r} reads {name!r}, which the data has and a Generate step makes: expected one of them. "
                "Name the generated one in the step's settings, or leave it out of with_columns()."
            )
    needed = [name for name in needed if name not in targets and name != LABELS]
    used = [name for name in used if name not in targets]
    names = (*needed, *(name for name in used if name not in needed and any(name in columns for columns in opened)))
    for name in names:
        if (makers := sum(name in columns for columns in opened)) != 1:
            raise SettingError(
                f"Step {who!r} needs the column {name!r} of one Generate step; {makers} of the "
                f"{len(opened)} that its data is joined with make it. Mend the job's with_columns()."
            )
    return {name: columns[name] for columns in opened for name in columns if name in names}


def _shape(field: pa.Field) -> tuple[int, ...]:
    kind = field.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return ()
    if not pa.types.is_fixed_size_list(kind) or pa.types.is_nested(kind.value_type):
        raise DataError(
            f"The generated column {field.name!r} is of type {kind}; training can join numbers and fixed-size lists "
            "of numbers. Leave this step out of with_columns()."
        )
    sides = (field.metadata or {}).get(b"shape")
    return tuple(int(side) for side in sides.split(b",")) if sides else (kind.list_size,)


def _values(chunk: pa.Array, shape: tuple[int, ...]) -> np.ndarray:
    assert chunk.null_count == 0, "a generated column has no nulls"
    if not shape:
        return np.asarray(chunk.to_numpy(zero_copy_only=False))
    return np.asarray(chunk.flatten().to_numpy()).reshape(-1, *shape)


def _local_copy(storage: Storage, cache: Path) -> pa.Table:
    """The step's shards as one Arrow file in ``cache``, mapped. Made once per execution of the step.

    In this process's own memory where there is no room for it.
    """
    shards = [entry for entry in storage.list("columns") if entry.path.endswith(".parquet")]
    if not shards:
        raise DataError(f"Found no columns/*.parquet in {storage.uri}; expected the output of a Generate step.")
    hashed = hashlib.sha256(repr((storage.uri, shards)).encode())
    if storage.exists("step.json"):
        hashed.update(storage.read("step.json"))  # holds timings, so it tells executions of a step apart
    file = cache / f"{hashed.hexdigest()[:32]}.arrow"
    paths = [shard.path for shard in shards]
    if build_once(file, lambda partial: _convert(storage, paths, partial)) is None:
        first, *others = (read_table(storage, path) for path in paths)
        return pa.concat_tables([first, *(other.cast(first.schema) for other in others)])
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


def _convert(storage: Storage, shards: list[str], file: Path) -> None:
    first = read_table(storage, shards[0])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        writer.write_table(first)
        for shard in shards[1:]:
            writer.write_table(read_table(storage, shard).cast(first.schema))
