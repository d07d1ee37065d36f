"""The fingerprint changes with what a data set holds, and with nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from mvray.data.fingerprint import fingerprint
from mvray.data.readers.manga109 import Manga109
from mvray.experiment.source import Index

Comics = Callable[..., Path]


@pytest.fixture
def index(comics: Comics) -> Index:
    return Manga109(root=str(comics({"A": 3, "B": 2}))).index()


def changed(index: Index, row: int, **values: object) -> Index:
    rows = index.rows.to_pylist()
    rows[row] |= values
    return replace(index, rows=pa.Table.from_pylist(rows, schema=index.rows.schema))


def test_the_order_of_rows_and_pieces_does_not_matter(index: Index) -> None:
    backwards = index.rows.take(list(range(len(index.rows)))[::-1])
    in_pieces = pa.concat_tables([backwards.slice(0, 3), backwards.slice(3)])
    assert fingerprint(replace(index, rows=in_pieces)) == fingerprint(index)


def test_the_place_of_the_root_does_not_matter(comics: Comics, tmp_path: Path) -> None:
    root = comics({"A": 2})
    shutil.copytree(root, tmp_path / "elsewhere" / "Manga109_released_2021_12_30")
    moved = Manga109(root=str(tmp_path / "elsewhere")).index()
    assert fingerprint(moved) == fingerprint(Manga109(root=str(root)).index())


@pytest.mark.parametrize(
    "values",
    [
        {"key": "A/000/other"},
        {"part": "middle"},
        {"label": 1},
        {"split": "later"},
        {"group": "C"},
        {"bytes": 1},
        {"regions": []},
        {"regions": [{"kind": "face", "id": "", "x0": 1, "y0": 2, "x1": 3, "y1": 4}]},
    ],
)
def test_every_column_matters(index: Index, values: dict[str, object]) -> None:
    assert fingerprint(changed(index, 0, **values)) != fingerprint(index)


def test_classes_matter_and_letters_do_not_move_between_rows(index: Index) -> None:
    assert fingerprint(replace(index, classes=("A", "C"))) != fingerprint(index)
    one = changed(changed(index, 0, group="ab"), 1, group="c")
    other = changed(changed(index, 0, group="a"), 1, group="bc")
    assert fingerprint(one) != fingerprint(other)


def test_only_the_splits_that_are_named(index: Index) -> None:
    splits = index.rows["split"].to_pylist()
    in_test = changed(index, splits.index("test"), bytes=1)
    assert fingerprint(in_test, ("train", "validation")) == fingerprint(index, ("train", "validation"))
    assert fingerprint(in_test, ("test",)) != fingerprint(index, ("test",))
    assert fingerprint(index, ("none",)) == fingerprint(index, ("nothing",))
