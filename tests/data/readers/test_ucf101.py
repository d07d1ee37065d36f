"""The reader of UCF101: its layout, its official lists, its groups."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from footage import film, numbers_in

from mvray.data.bad_files import check
from mvray.data.readers.ucf101 import UCF101
from mvray.data.rows import ROWS
from mvray.errors import DataError, SettingError
from mvray.storage.storage import Storage

CLASSES = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
GROUPS = 7

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def one_clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return film(tmp_path_factory.mktemp("one") / "a.avi", 4, size=(64, 48)).read_bytes()


def clip_name(name: str, group: int, clip: int) -> str:
    # As in UCF101: the folder is HandstandPushups, the files are v_HandStandPushups_...
    spelled = name.replace("Handstand", "HandStand")
    return f"{name}/v_{spelled}_g{group:02}_c{clip:02}.avi"


@pytest.fixture
def ucf(tmp_path: Path, one_clip: bytes) -> Write:
    """Makes ROOT/UCF-101 and ROOT/ucfTrainTestlist: groups 1 and 2 are for test, 2 or 3 clips each."""

    def make(root: Path = tmp_path / "ucf", videos: str = "UCF-101", lists: str = "ucfTrainTestlist") -> Path:
        (root / lists).mkdir(parents=True)
        (root / lists / "classInd.txt").write_text("".join(f"{i} {name}\r\n" for i, name in enumerate(CLASSES, 1)))
        for split in (1, 2, 3):
            listed: dict[str, list[str]] = {"train": [], "test": []}
            for number, name in enumerate(CLASSES, start=1):
                for group in range(1, GROUPS + 1):
                    for clip in range(1, 3 + group % 2):
                        path = clip_name(name, group, clip)
                        is_test = group in (2 * split - 1, 2 * split)
                        listed["test" if is_test else "train"].append(path if is_test else f"{path} {number}")
                        (root / videos / path).parent.mkdir(parents=True, exist_ok=True)
                        (root / videos / path).write_bytes(one_clip)
            for kind, lines in listed.items():
                (root / lists / f"{kind}list0{split}.txt").write_text("\n".join(lines) + "\n")
        return root

    return make


def test_rows(ucf: Write) -> None:
    index = UCF101(root=str(ucf())).index()
    assert index.rows.schema == ROWS
    assert (index.classes, index.bad) == (CLASSES, ())
    rows = {row["key"]: row for row in index.rows.to_pylist()}
    assert len(rows) == 3 * 18
    one = rows["HandstandPushups/v_HandStandPushups_g03_c02.avi"]
    assert one["location"] == "UCF-101/HandstandPushups/v_HandStandPushups_g03_c02.avi"
    assert (one["label"], one["group"], one["frames"], one["part"]) == (1, "v_HandStandPushups_g03", 4, "")
    assert {row["group"][-3:] for row in rows.values() if row["split"] == "test"} == {"g01", "g02"}


def test_frames(ucf: Write) -> None:
    source = UCF101(root=str(ucf()))
    location = source.index().rows["location"][0].as_py()
    with source.open(location) as video:
        assert numbers_in(video.frames([3, 1])) == [3, 1]
    assert source.read(location, "").shape == (48, 64, 3)


@pytest.mark.parametrize("split", [1, 2, 3])
def test_groups_never_leak(ucf: Write, split: int) -> None:
    root = ucf()
    for validation, groups in ((0.0, 0), (0.1, 1), (0.4, 6)):
        rows = UCF101(root=str(root), split=split, validation=validation).index().rows.to_pylist()
        splits: dict[str, set[str]] = {}
        for row in rows:
            splits.setdefault(row["group"], set()).add(row["split"])
        assert all(len(found) == 1 for found in splits.values())
        counted = Counter(min(found) for found in splits.values())
        assert (counted["test"], counted["train"], counted["validation"]) == (6, 15 - groups, groups)
        test = {group for group, found in splits.items() if found == {"test"}}
        assert {group[-3:] for group in test} == {f"g{2 * split - 1:02}", f"g{2 * split:02}"}


def test_validation_is_drawn_by_its_seed_and_leaves_the_test_as_it_is(ucf: Write) -> None:
    root = str(ucf())

    def keys(name: str, **settings: int) -> set[str]:
        rows = UCF101(root=root, validation=0.4, **settings).index().rows
        return {row["key"] for row in rows.to_pylist() if row["split"] == name}

    assert keys("validation") == keys("validation")
    assert keys("validation") != keys("validation", split_seed=1)
    assert keys("test") == keys("test", split_seed=1)
    assert keys("train") | keys("validation") == keys("train", split_seed=1) | keys("validation", split_seed=1)
    assert {key.partition("/")[0] for key in keys("validation")} == set(CLASSES)


def test_choice_of_classes(ucf: Write) -> None:
    root = str(ucf())
    index = UCF101(root=root, classes=("YoYo", "ApplyEyeMakeup")).index()
    assert index.classes == ("ApplyEyeMakeup", "YoYo")  # in the order of classInd.txt
    assert {(row["key"].partition("/")[0], row["label"]) for row in index.rows.to_pylist()} == {
        ("ApplyEyeMakeup", 0),
        ("YoYo", 1),
    }
    with pytest.raises(
        DataError, match=r"source.classes names Yoyo, which .*classInd.txt does not have. It has: Apply"
    ):
        UCF101(root=root, classes=("Yoyo",)).index()


def test_places_where_it_may_lie(ucf: Write, tmp_path: Path) -> None:
    expected = UCF101(root=str(ucf())).index().rows.drop_columns(["location"])
    zipped = "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist"
    roots = {
        "the folder around": ucf(tmp_path / "a" / "ucf").parent,
        "the lists as the zip has them": ucf(tmp_path / "b", lists=zipped),
        "UCF-101, lists beside": ucf(tmp_path / "c") / "UCF-101",
        "UCF-101, lists in it": ucf(tmp_path / "d", videos=""),
        "the lists loose": ucf(tmp_path / "e", lists=""),
    }
    for what, root in roots.items():
        source = UCF101(root=str(root))
        rows = source.index().rows
        assert rows.drop_columns(["location"]).equals(expected), what
        assert source.read(rows["location"][5].as_py(), "").shape == (48, 64, 3)


@pytest.mark.parametrize("wrong", ["HandStandPushups", "handstandpushups"])
def test_spelling_of_handstand_pushups(ucf: Write, wrong: str) -> None:
    root = ucf()
    (root / "UCF-101" / "HandstandPushups").rename(root / "UCF-101" / wrong)
    index = UCF101(root=str(root)).index()
    assert index.bad == ()
    assert len(index.rows) == 3 * 18
    assert index.rows["label"].to_pylist().count(1) == 18


def test_missing_and_broken_clips_are_quarantined(ucf: Write) -> None:
    root = ucf()
    videos = root / "UCF-101"
    (videos / clip_name("YoYo", 3, 1)).unlink()
    (videos / clip_name("YoYo", 4, 1)).write_bytes(b"")
    index = UCF101(root=str(root)).index()
    assert {(record.location, record.reason) for record in index.bad} == {
        ("UCF-101/YoYo/v_YoYo_g03_c01.avi", "missing (it is in the list)"),
        ("UCF-101/YoYo/v_YoYo_g04_c01.avi", "empty (0 bytes)"),
    }
    assert len(index.rows) == 3 * 18 - 2
    with pytest.raises(DataError, match="Found 2 of 54 files unreadable"):
        check(index, 0.01)


def test_most_clips_missing_is_one_message(ucf: Write) -> None:
    root = ucf()
    for name in CLASSES[1:]:
        shutil.rmtree(root / "UCF-101" / name)
    with pytest.raises(DataError) as caught:
        UCF101(root=str(root)).index()
    assert str(caught.value) == (
        f"{root}/UCF-101 has 18 of the 54 clips in the lists: found ApplyEyeMakeup/; expected such as "
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g03_c01.avi. Point the root (--data) at the whole of UCF101, or choose "
        "what is there with --set source.classes=NAME,NAME."
    )
    assert len(UCF101(root=str(root), classes=("ApplyEyeMakeup",)).index().rows) == 18


def test_a_layout_that_is_not_ucf101(ucf: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Found no folder .*/none; expected UCF101 there"):
        UCF101(root=str(tmp_path / "none")).index()
    film(tmp_path / "other" / "run" / "1.avi", 2)
    with pytest.raises(DataError, match=r"is not UCF101 with its lists: found run/; expected UCF-101/CLASS/.*videos"):
        UCF101(root=str(tmp_path / "other")).index()
    lists = ucf() / "ucfTrainTestlist"
    (lists / "trainlist02.txt").unlink()
    with pytest.raises(DataError, match=r"trainlist02.txt cannot be read .* Restore it"):
        UCF101(root=str(lists.parent), split=2).index()
    (lists / "trainlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi 1\n")
    with pytest.raises(DataError, match=r"has the line 'YoYo/v_YoYo_g01_c01.avi 1'; expected .* and the number of a"):
        UCF101(root=str(lists.parent)).index()
    (lists / "classInd.txt").write_text("ApplyEyeMakeup\nYoYo\n")
    with pytest.raises(DataError, match=r"does not number its classes: found 'ApplyEyeMakeup' first; expected lines"):
        UCF101(root=str(lists.parent)).index()


def test_settings() -> None:
    with pytest.raises(SettingError, match=r"source.split is 4; expected 1, 2 or 3"):
        UCF101(split=4)
    with pytest.raises(SettingError, match=r"source.validation is 1; expected a share from 0 to less than 1"):
        UCF101(validation=1)


@pytest.mark.slow
def test_the_same_from_s3(ucf: Write, s3: str) -> None:
    root = ucf()
    storage = Storage(s3)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        storage.write(file.relative_to(root).as_posix(), file.read_bytes())
    local, remote = UCF101(root=str(root)), UCF101(root=s3)
    index = remote.index()
    assert index.rows.equals(local.index().rows)
    location = index.rows["location"][0].as_py()
    assert np.array_equal(remote.read(location, ""), local.read(location, ""))
