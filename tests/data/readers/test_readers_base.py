"""Splits: exact totals, in proportion, stable."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest

from mvray.data.readers.animeface import AnimeFace
from mvray.data.readers.base import FileSource
from mvray.data.readers.folder import Folder
from mvray.data.readers.identities import Identities
from mvray.data.readers.manga109 import Manga109
from mvray.data.readers.manga109_faces import Manga109Faces
from mvray.data.readers.ucf101 import UCF101
from mvray.data.readers.videos import Videos
from mvray.data.splits import assign_splits, proportional_counts
from mvray.errors import DataError


def test_shares_by_largest_remainder() -> None:
    assert proportional_counts(10, [1, 1, 1]) == [4, 3, 3]
    assert proportional_counts(7, [50, 30, 20]) == [4, 2, 1]  # exactly 3.5, 2.1, 1.4
    assert proportional_counts(0, [3, 4]) == [0, 0]
    assert proportional_counts(0, []) == []


KEYS = [f"{name}/{i:03d}" for name, count in (("a", 100), ("b", 57), ("c", 9), ("d", 1)) for i in range(count)]
CLASSES = [key[0] for key in KEYS]


@pytest.mark.parametrize("sizes", [(0.7, 0.1, 0.2), (100, 20, 30), (0.5, 0.26, 0.24), (0.26, 0.26, 0.46), (0, 0, 1)])
def test_totals_are_exact_and_classes_in_proportion(sizes: tuple[float, ...]) -> None:
    splits = assign_splits(KEYS, CLASSES, sizes, seed=0)
    counted = Counter(splits)
    for name, size in zip(("train", "validation", "test"), sizes, strict=True):
        total = counted[name]
        assert total == size if size > 1 else abs(total - size * len(KEYS)) < 1
        for one in "abcd":
            members = CLASSES.count(one)
            taken = sum(split == name for split, c in zip(splits, CLASSES, strict=True) if c == one)
            assert abs(taken - members * total / len(KEYS)) < 2


def test_the_whole_is_shared_out() -> None:
    for count in range(1, 40):
        assert "" not in assign_splits(KEYS[:count], CLASSES[:count], (0.7, 0.1, 0.2), seed=0)


def test_neither_the_order_of_files_nor_other_classes_matter() -> None:
    by_key = dict(zip(KEYS, assign_splits(KEYS, CLASSES, (0.7, 0.1, 0.2), seed=3), strict=True))
    backwards = assign_splits(KEYS[::-1], CLASSES[::-1], (0.7, 0.1, 0.2), seed=3)
    assert dict(zip(KEYS[::-1], backwards, strict=True)) == by_key
    only_a = assign_splits(KEYS[:100], CLASSES[:100], (0.7, 0.1, 0.2), seed=3)
    assert sum(by_key[key] == split for key, split in zip(KEYS[:100], only_a, strict=True)) >= 98
    assert assign_splits(KEYS, CLASSES, (0.7, 0.1, 0.2), seed=4) != list(by_key.values())


def test_more_than_there_is() -> None:
    with pytest.raises(
        DataError, match=r"Found 167 samples; the splits ask for 168 \(100 train, 60 validation, 8 test\)"
    ):
        assign_splits(KEYS, CLASSES, (100, 60, 0.05), seed=0)


@pytest.mark.parametrize("kind", [AnimeFace, Folder, Identities, Manga109, Manga109Faces, UCF101, Videos])
def test_a_root_stays_where_it_was_for_processes_that_work_elsewhere(
    kind: type[FileSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(kind(root="data/clips"))
    monkeypatch.chdir("/")
    source = pickle.loads(sent)  # noqa: S301 (our own)
    assert source.root == source.storage.uri == str(tmp_path / "data" / "clips")
    assert kind(root="s3://bucket/clips").root == "s3://bucket/clips"
    assert kind().root == ""
