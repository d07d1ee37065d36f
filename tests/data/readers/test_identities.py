"""A folder per identity: who is unseen, and that everybody else is trained on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvray.data.bad_files import check
from mvray.data.fingerprint import fingerprint
from mvray.data.readers.folder import Folder
from mvray.data.readers.identities import Identities
from mvray.data.splits import assign_splits
from mvray.errors import DataError, SettingError
from mvray.experiment.source import Index
from mvray.storage.storage import Storage

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, drawn_picture: Callable[..., Image.Image]) -> Make:
    """Add tmp_path/people/NAME/0.png, ...; ``{"ann": 3}``."""

    def add(counts: dict[str, int], same: bool = False) -> Path:
        for name, count in counts.items():
            (tmp_path / "people" / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                drawn_picture(24, 24, seed=0 if same else i + len(name)).save(tmp_path / "people" / name / f"{i}.png")
        return tmp_path / "people"

    return add


def splits(index: Index) -> dict[str, Counter[str]]:
    """By identity, how many pictures each split has."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in index.rows.to_pylist():
        found[index.names[row["label"]]][row["split"]] += 1
    return dict(found)


def test_some_identities_are_unseen(make: Make) -> None:
    root = make({f"who{i}": 10 for i in range(10)})
    index = Identities(root=str(root)).index()
    assert len(index.classes) == 8
    assert len(index.unseen) == 2
    assert index.names == (*sorted(index.classes), *sorted(index.unseen))
    for name, counts in splits(index).items():
        assert counts == ({"unseen": 10} if name in index.unseen else {"train": 7, "validation": 1, "test": 2})
    rows = index.rows.to_pylist()
    assert {row["key"].partition("/")[0] for row in rows if row["label"] >= 8} == set(index.unseen)
    assert {row["group"] for row in rows} == {"all"}
    assert Identities(root=str(root)).index().rows.equals(index.rows)


def test_how_many_are_unseen(make: Make) -> None:
    root = str(make({f"who{i}": 4 for i in range(10)}))
    few, more = (set(Identities(root=root, unseen=asked).index().unseen) for asked in (0.3, 5))
    assert (len(few), len(more)) == (3, 5)
    assert few < more
    assert Identities(root=root, unseen=0).index().unseen == ()
    everyone = Identities(root=root, unseen=1.0).index()
    assert everyone.classes == ()
    assert set(everyone.rows["split"].to_pylist()) == {"unseen"}
    assert set(Identities(root=root, unseen=3, split_seed=1).index().unseen) != few
    with pytest.raises(DataError, match=r"Found 10 identities; source.unseen asks for 11 .*source.unseen=0.2"):
        Identities(root=root, unseen=11).index()


def test_who_is_unseen_does_not_depend_on_the_others(make: Make) -> None:
    before = Identities(root=str(make({f"who{i}": 3 for i in range(10)})), unseen=4).index().unseen
    after = Identities(root=str(make({f"new{i}": 3 for i in range(3)})), unseen=4).index().unseen
    assert {name for name in after if name.startswith("who")} <= set(before)


@pytest.mark.parametrize("each", [1, 2, 3, 5])
@pytest.mark.parametrize("people", [2, 3, 17])
def test_everybody_who_is_seen_is_trained_on(make: Make, each: int, people: int) -> None:
    index = Identities(root=str(make({f"who{i:02d}": each for i in range(people)})), unseen=0).index()
    found = splits(index)
    assert len(found) == people
    assert all(counts["train"] >= 1 for counts in found.values())
    total = sum(found.values(), Counter())
    assert total.total() == each * people
    if each >= 3:
        assert abs(total["train"] - 0.7 * total.total()) < 1
        assert abs(total["test"] - 0.2 * total.total()) < 1


def test_one_picture_here_and_many_there(make: Make) -> None:
    found = splits(Identities(root=str(make({"a": 1, "b": 1, "c": 2, "d": 3, "e": 93})), unseen=0).index())
    assert sum(found.values(), Counter()) == {"train": 70, "validation": 10, "test": 20}
    assert all(counts["train"] for counts in found.values())
    assert found["a"] == found["b"] == {"train": 1}


def test_without_training_all_may_be_elsewhere(make: Make) -> None:
    source = Identities(root=str(make({"a": 2, "b": 2})), unseen=0, train=0, validation=0.5, test=0.5)
    assert sum(splits(source.index()).values(), Counter()) == {"validation": 2, "test": 2}


def test_drawing_for_all_in_a_small_set_keeps_the_rest_in_order() -> None:
    keys, classes = [f"{i}" for i in range(10)], list("abcdefghij")
    assert assign_splits(keys, classes, (0.7, 0.1, 0.2), 0, all_train=True) == ["train"] * 10
    keys, classes = [*keys, "10", "11"], [*classes, "a", "b"]
    assert Counter(assign_splits(keys, classes, (0.7, 0.1, 0.2), 0, all_train=True)) == {
        "train": 10,
        "validation": 1,
        "test": 1,
    }
    assert Counter(assign_splits(keys, classes, (3, 2, 2), 0, all_train=True)) == {"train": 10, "validation": 2}


def test_one_identity_in_clear_words(make: Make) -> None:
    root = make({"ann": 2}, same=True)
    with pytest.raises(DataError, match=r"has 1 identity to train on \(ann, 2 pictures\) .* expected two or more"):
        Identities(root=str(root)).index()
    make({"ben": 1}, same=True)
    index = Identities(root=str(root)).index()  # identical pictures are pictures
    assert splits(index)["ben"] == {"train": 1}
    with pytest.raises(DataError, match=r"1 identity to train on .* and 1 unseen; .*lower source.unseen"):
        Identities(root=str(root), unseen=0.5).index()


def test_a_flat_folder_in_clear_words(make: Make, tmp_path: Path) -> None:
    root = make({".": 2})
    with pytest.raises(
        DataError, match=r"no folder per identity: found 0.png, 1.png; expected NAME/PICTURE .*mvray group"
    ):
        Identities(root=str(root)).index()
    with pytest.raises(DataError, match=r"Found no folder .*none; expected pictures there"):
        Identities(root=str(tmp_path / "none")).index()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found nothing; expected NAME/PICTURE"):
        Identities(root=str(tmp_path / "empty")).index()


def test_folders_of_splits_decide(make: Make) -> None:
    root = make({"train/ann": 4, "train/ben": 6, "test/ann": 2, "unseen/cleo": 3, "val/ben": 1, "test/dora": 2})
    index = Identities(root=str(root)).index()
    assert (index.classes, index.unseen) == (("ann", "ben"), ("cleo", "dora"))  # dora is in no training
    assert splits(index) == {
        "ann": {"train": 4, "test": 2},
        "ben": {"train": 6, "validation": 1},
        "cleo": {"unseen": 3},
        "dora": {"unseen": 2},
    }
    make({"train/cleo": 1})
    with pytest.raises(DataError, match=r"1 identities in unseen/ and in train/ \(cleo\)"):
        Identities(root=str(root)).index()


def test_without_a_validation_folder_everybody_stays_in_training(make: Make) -> None:
    root = make({"train/ann": 1, "train/ben": 1, "train/cleo": 8, "unseen/dora": 2})
    found = splits(Identities(root=str(root), validation=0.3, test=0).index())
    assert found == {
        "ann": {"train": 1}, "ben": {"train": 1}, "cleo": {"train": 5, "validation": 3}, "dora": {"unseen": 2}
    }  # fmt: skip


def test_a_folder_of_unseen_identities_alone(make: Make) -> None:
    index = Identities(root=str(make({"unseen/ann": 2, "unseen/ben": 1}))).index()
    assert (index.classes, index.unseen) == ((), ("ann", "ben"))


def test_somebody_may_be_called_unseen(make: Make) -> None:
    root = make({"unseen": 3, "ann": 3, "train": 2})
    index = Identities(root=str(root), unseen=0).index()
    assert index.classes == ("ann", "train", "unseen")
    make({"unseen/ann": 2})
    assert Folder(root=str(root)).index().classes == ("ann", "train", "unseen")


def test_identities_with_few_pictures_can_be_left_out(make: Make) -> None:
    root = str(make({"ann": 5, "ben": 4, "cleo": 1}))
    index = Identities(root=root, unseen=0, min_pictures=4).index()
    assert index.classes == ("ann", "ben")
    assert len(index.rows) == 9
    with pytest.raises(DataError, match=r"3 identities, none with 6 pictures \(the most: 5\)"):
        Identities(root=root, min_pictures=6).index()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unseen": 1.5}, "source.unseen is 1.5; expected a share from 0 to 1 or a number of identities"),
        ({"unseen": float("nan")}, "source.unseen is nan"),
        ({"min_pictures": -1}, "source.min_pictures is -1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, float], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Identities(**settings)


def test_bad_pictures_are_left_out(make: Make) -> None:
    root = make({"ann": 3, "ben": 3})
    (root / "ben" / "0.png").write_bytes(b"")
    index = Identities(root=str(root), unseen=0).index()
    assert len(index.rows) == 5
    with pytest.raises(DataError, match="Found 1 of 6 files unreadable"):
        check(index, 0.01)


def test_what_the_fingerprint_sees(make: Make) -> None:
    root = make({f"who{i}": 4 for i in range(10)})
    source = Identities(root=str(root))
    index = source.index()
    assert fingerprint(Identities(root=str(root), unseen=3).index()) != fingerprint(index)
    (root / index.unseen[-1]).rename(root / "zoe")
    moved = Identities(root=str(root), unseen=0.2).index()
    assert fingerprint(moved) != fingerprint(index)
    (root / "zoe").rename(root / index.unseen[-1])
    assert fingerprint(source.index()) == fingerprint(index)


@pytest.mark.slow
def test_the_same_from_s3(make: Make, s3: str) -> None:
    root = make({f"who{i}": 3 for i in range(5)})
    storage = Storage(s3)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        storage.write(file.relative_to(root).as_posix(), file.read_bytes())
    local, remote = Identities(root=str(root)), Identities(root=s3)
    assert remote.index() == local.index()
    assert np.array_equal(remote.read("who0/0.png", ""), local.read("who0/0.png", ""))
