"""The reader of Manga109, on small sets in its layout."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from mvray.data.bad_files import Note, check
from mvray.data.readers.manga109 import Manga109
from mvray.data.rows import ROWS
from mvray.errors import ClusterError, DataError, SettingError
from mvray.experiment.source import BadRecord
from mvray.storage.storage import Storage

Comics = Callable[..., Path]


def test_a_spread_becomes_two_pages_right_one_first(comics: Comics) -> None:
    index = Manga109(root=str(comics({"ARMS": 2}))).index()
    assert index.rows.schema == ROWS
    assert index.rows["key"].to_pylist() == ["ARMS/000/right", "ARMS/000/left", "ARMS/001/right", "ARMS/001/left"]
    assert index.rows["location"][1].as_py() == "images/ARMS/000.jpg"
    assert index.rows["part"].to_pylist() == ["right", "left"] * 2
    assert index.rows["group"].to_pylist() == ["ARMS"] * 4
    assert index.classes == ("ARMS",)
    assert index.bad == ()


def test_pages_are_the_halves_of_the_spread_at_half_size(comics: Comics) -> None:
    root = comics({"ARMS": 1})
    source = Manga109(root=str(root))
    left, right = (source.read("images/ARMS/000.jpg", side) for side in ("left", "right"))
    assert left.shape == right.shape == (585, 414, 1)
    assert left.dtype == np.uint8
    assert np.array_equal(left[:, 413], right[:, 0])  # the middle column is on both
    whole = Image.open(root / "images" / "ARMS" / "000.jpg").resize((827, 585), Image.Resampling.BOX)
    expected = np.asarray(whole).astype(float)
    ours = np.concatenate([left, right[:, 1:]], axis=1)[..., 0]
    assert np.abs(ours - expected).mean() < 1.0  # decoded at half size: equal up to JPEG's rounding
    assert np.abs(ours - expected[:, ::-1]).mean() > 5.0


def test_spreads_of_another_size_give_pages_of_the_same_size(comics: Comics) -> None:
    root = comics({"Odd": 1}, size=(1700, 1202))
    source = Manga109(root=str(root))
    left, right = (source.read("images/Odd/000.jpg", side)[..., 0] for side in ("left", "right"))
    whole = np.asarray(Image.open(root / "images/Odd/000.jpg").resize((827, 585), Image.Resampling.BILINEAR))
    assert left.shape == right.shape == (585, 414)
    assert np.abs(left - whole[:, :414].astype(float)).mean() < 2
    assert np.abs(right - whole[:, 413:].astype(float)).mean() < 2


def test_smaller_pages_show_the_same(comics: Comics) -> None:
    source = Manga109(root=str(comics({"ARMS": 1})))
    for side in ("left", "right"):
        page = Image.fromarray(source.read("images/ARMS/000.jpg", side)[..., 0])
        small = source.read_sized("images/ARMS/000.jpg", side, 146, 104, grey=True)[..., 0]
        assert small.shape == (146, 104)
        expected = np.asarray(page.resize((104, 146), Image.Resampling.BILINEAR)).astype(float)
        assert np.abs(small - expected).mean() < 3
    assert source.read_sized("images/ARMS/000.jpg", "left", 9000, 9000, grey=True).shape == (585, 414, 1)


def test_regions_are_cut_at_the_fold_and_in_pixels_of_the_page(comics: Comics) -> None:
    index = Manga109(root=str(comics({"ARMS": 1}))).index()
    right, left = index.rows["regions"].to_pylist()
    assert [(r["kind"], r["id"]) for r in right] == [("frame", ""), ("body", "00000001")]
    assert [(r["kind"], r["id"]) for r in left] == [("frame", ""), ("face", "00000001")]

    def corners(region: dict[str, float]) -> list[float]:
        return [region[side] for side in ("x0", "y0", "x1", "y1")]

    assert corners(left[0]) == pytest.approx([50, 50, 414, 500])
    assert corners(right[0]) == pytest.approx([0, 50, 750 - 413, 500])
    assert corners(left[1]) == pytest.approx([100, 110, 150, 170])
    assert corners(right[1]) == pytest.approx([500 - 413, 100, 700 - 413, 450])


def test_a_region_shows_what_lies_in_the_box(comics: Comics) -> None:
    root = comics({"ARMS": 1})
    spread = Image.new("L", (1654, 1170), 255)
    spread.paste(0, (1000, 200, 1400, 900))  # the body box
    spread.save(root / "images/ARMS/000.jpg", quality=95)
    source = Manga109(root=str(root))
    region = source.index().rows["regions"][0].as_py()[1]
    page = source.read("images/ARMS/000.jpg", "right")[..., 0]
    inside = page[int(region["y0"]) : int(region["y1"]), int(region["x0"]) : int(region["x1"])]
    assert inside.max() < 20
    assert (page < 128).sum() == inside.size


@pytest.mark.parametrize(
    ("folders", "read_from"),
    [
        (["annotations", "annotations.v2018.05.31"], "annotations"),
        (["annotations.v2018.05.31", "annotations.v2020.12.18"], "annotations.v2020.12.18"),
        (["annotations_COO", "annotations.v2018.05.31"], "annotations.v2018.05.31"),
    ],
)
def test_dated_annotation_folders(comics: Comics, folders: list[str], read_from: str) -> None:
    root = comics({"ARMS": 1}, annotations=read_from)
    for other in set(folders) - {read_from}:
        (root / other).mkdir()
        (root / other / "ARMS.xml").write_text("<book/>")
    assert len(Manga109(root=str(root)).index().rows["regions"][0]) == 2


def test_the_folder_around_a_release(comics: Comics, tmp_path: Path) -> None:
    root = comics({"ARMS": 1}, root=tmp_path / "data" / "Manga109_released_2021_12_30")
    outer = Manga109(root=str(root.parent))
    index = outer.index()
    assert index.rows["key"].to_pylist() == ["ARMS/000/right", "ARMS/000/left"]
    assert len(index.rows["regions"][0]) == 2
    assert outer.read(index.rows["location"][0].as_py(), "right").shape == (585, 414, 1)
    comics({"ARMS": 1}, root=tmp_path / "data" / "Manga109_released_2023_12_07")
    with pytest.raises(DataError, match=r"2 releases .*2021_12_30/.*2023_12_07/"):
        outer.index()


VOLUMES = {"LoveHina_vol01": 1, "LoveHina_vol14": 1, "ARMS": 1}


@pytest.mark.parametrize(
    ("labels", "volumes", "classes"),
    [
        ("title", "all", ("ARMS", "LoveHina_vol01", "LoveHina_vol14")),
        ("series", "all", ("ARMS", "LoveHina")),
        ("title", "first", ("ARMS", "LoveHina_vol01")),
        ("series", "first", ("ARMS", "LoveHina")),
        ("series", "none", ("ARMS",)),
    ],
)
def test_labels_of_series(comics: Comics, labels: str, volumes: str, classes: tuple[str, ...]) -> None:
    index = Manga109(root=str(comics(VOLUMES)), labels=labels, volumes=volumes).index()
    assert index.classes == classes
    named = {
        g: classes[i] for g, i in zip(index.rows["group"].to_pylist(), index.rows["label"].to_pylist(), strict=True)
    }
    for title, name in named.items():
        assert title == name or title.startswith(f"{name}_vol")


def test_labels_by_an_author_table(comics: Comics, tmp_path: Path) -> None:
    root = comics({"ARMS": 1, "Arisa": 1, "Akuhamu": 1})
    table = tmp_path / "authors.csv"
    table.write_text("author,title\n加藤,ARMS\n八神,Arisa\n加藤,Akuhamu\n", encoding="utf-8")
    index = Manga109(root=str(root), labels="author", authors=str(table)).index()
    assert index.classes == ("八神", "加藤")
    assert sorted(set(zip(index.rows["group"].to_pylist(), index.rows["label"].to_pylist(), strict=True))) == [
        ("ARMS", 1),
        ("Akuhamu", 1),
        ("Arisa", 0),
    ]
    table.write_text("author,title\nx,ARMS\n")
    with pytest.raises(DataError, match=r"no row for 2 works \(Akuhamu, Arisa"):
        Manga109(root=str(root), labels="author", authors=str(table)).index()
    table.write_text("who;what\n")
    with pytest.raises(DataError, match=r"has the columns who;what; expected title and author"):
        Manga109(root=str(root), labels="author", authors=str(table)).index()
    with pytest.raises(DataError, match="cannot be read"):
        Manga109(root=str(root), labels="author", authors=str(tmp_path / "none.csv")).index()


def test_works_and_min_pages(comics: Comics) -> None:
    root = str(comics({"Long": 3, "Short": 1, "Other": 3}))
    assert Manga109(root=root, works=("Long", "Short")).index().classes == ("Long", "Short")
    assert Manga109(root=root, min_pages=3).index().classes == ("Long", "Other")
    with pytest.raises(DataError, match=r"source.works names Nix, .* It has: Long, Other, Short"):
        Manga109(root=root, works=("Nix",)).index()
    with pytest.raises(DataError, match="None of the 3 works"):
        Manga109(root=root, min_pages=100).index()


def test_splits_have_exact_sizes(comics: Comics) -> None:
    root = str(comics({"A": 4, "B": 3, "C": 3}))
    index = Manga109(root=root, train=11, validation=3, test=4).index()
    splits = index.rows["split"].to_pylist()
    assert {name: splits.count(name) for name in set(splits)} == {"train": 11, "validation": 3, "test": 4}
    assert len(index.rows) == 18  # two of the 20 pages are left out
    with pytest.raises(
        DataError, match=r"Found 20 samples; the splits ask for 30 \(10 train, 10 validation, 10 test\)"
    ):
        Manga109(root=root, train=10, validation=10, test=10).index()


def test_shifted_pages_have_the_labels_of_their_titles(comics: Comics) -> None:
    root = comics({"A": 2, "B": 2})
    comics({"A": 1, "B": 1}, root=root / "shifted")
    plain, both = Manga109(root=str(root)).index(), Manga109(root=str(root), shifted=True).index()
    shifted = both.rows.filter(pc.equal(both.rows["split"], "shifted"))
    assert shifted["key"].to_pylist() == [f"shifted/{t}/000/{s}" for t in "AB" for s in ("right", "left")]
    assert shifted["label"].to_pylist() == [0, 0, 1, 1]
    assert [len(regions) for regions in shifted["regions"]] == [2, 2, 2, 2]
    assert both.rows.filter(pc.not_equal(both.rows["split"], "shifted")).equals(plain.rows)
    shutil.rmtree(root / "shifted")
    with pytest.raises(DataError, match="shifted"):
        Manga109(root=str(root), shifted=True).index()


def test_missing_and_broken_annotations_leave_the_pages(comics: Comics) -> None:
    root = comics({"Bomb": 1, "Broken": 1, "Foreign": 1, "Good": 1, "Missing": 1, "Other": 1})
    (root / "annotations/Missing.xml").unlink()
    (root / "annotations/Broken.xml").write_bytes(b"<book><pages><page")
    (root / "annotations/Other.xml").write_text('<book><pages><page index="0"><face/></page></pages></book>')
    (root / "annotations/Foreign.xml").write_text('<?xml version="1.0" encoding="foo"?><book/>')
    (root / "annotations/Bomb.xml").write_text('<!DOCTYPE b [<!ENTITY a "aaaa">]><book>&a;</book>')
    index = Manga109(root=str(root)).index()
    assert len(index.rows) == 12
    by_title = dict(zip(index.rows["group"].to_pylist(), index.rows["regions"].to_pylist(), strict=True))
    assert {title: len(regions) for title, regions in by_title.items()} == {
        "Bomb": 0, "Broken": 0, "Foreign": 0, "Good": 2, "Missing": 0, "Other": 0
    }  # fmt: skip
    reasons = {record.location: record.reason for record in index.bad}
    assert all(isinstance(record, Note) for record in index.bad)
    assert "document type" in reasons["annotations/Bomb.xml"]
    assert "not valid XML" in reasons["annotations/Broken.xml"]
    assert reasons["annotations/Missing.xml"] == "missing; its pages are kept, without regions"
    assert "unknown encoding: foo" in reasons["annotations/Foreign.xml"]
    assert "width" in reasons["annotations/Other.xml"]
    check(index, max_bad_fraction=0.0)  # no sample is left out for them


def test_no_annotations_at_all(comics: Comics) -> None:
    index = Manga109(root=str(comics({"A": 1}, annotations=""))).index()
    assert index.rows["regions"].to_pylist() == [[], []]
    assert index.bad == ()


def test_a_bad_spread_loses_both_pages(comics: Comics) -> None:
    root = comics({"A": 3})
    (root / "images/A/001.jpg").write_bytes(b"")
    index = Manga109(root=str(root)).index()
    assert index.bad == (BadRecord("images/A/001.jpg", "empty (0 bytes)"),)
    assert [key[:5] for key in index.rows["key"].to_pylist()] == ["A/000", "A/000", "A/002", "A/002"]
    assert [len(regions) for regions in index.rows["regions"]] == [2, 2, 2, 2]


def test_a_folder_that_is_not_manga109(tmp_path: Path, comics: Comics) -> None:
    with pytest.raises(DataError, match=r"Found no folder .*/none; .*Check the path"):
        Manga109(root=str(tmp_path / "none")).index()
    (tmp_path / "cats").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        DataError, match=r"is not Manga109: found cats/, notes.txt; expected images/TITLE.*source=folder"
    ):
        Manga109(root=str(tmp_path)).index()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"/images is not Manga109: found a.jpg; expected"):
        Manga109(root=str(tmp_path)).index()
    with pytest.raises(DataError, match="--data ROOT"):
        Manga109().index()


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(SettingError, match="expected one of title, series, author"):
        Manga109(labels="publisher")
    with pytest.raises(SettingError, match="expected one of all, first, none"):
        Manga109(volumes="second")
    with pytest.raises(SettingError, match=r"add up to 1\.1; expected at most 1"):
        Manga109(train=0.8, validation=0.1)
    with pytest.raises(SettingError, match="a number of samples"):
        Manga109(train=10.5)


@pytest.mark.slow
def test_the_same_from_s3(comics: Comics, s3: str) -> None:
    root = comics({"A": 2, "B": 1})
    (root / "images/A/001.jpg").write_bytes((root / "images/A/001.jpg").read_bytes()[:5000])
    storage = Storage(s3)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        storage.write(file.relative_to(root).as_posix(), file.read_bytes())
    local, remote = Manga109(root=str(root)), Manga109(root=s3)
    assert remote.index().rows.equals(local.index().rows)
    assert remote.index().bad == local.index().bad
    assert len(remote.index().bad) == 1
    location = "images/A/000.jpg"
    assert np.array_equal(remote.read(location, "left"), local.read(location, "left"))


@pytest.mark.slow
def test_a_bucket_or_prefix_that_is_not_there(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match=f"Found no folder {s3}"):
        Manga109(root=s3).index()
    with pytest.raises(ClusterError, match=r"s3://not-there/comics cannot be read .*NoSuchBucket"):
        Manga109(root="s3://not-there/comics").index()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"cannot be read \(endpoint: http://127.0.0.1:1\)"):
        Manga109(root=s3).index()
    assert time.monotonic() - started < 60, "it is not waited for"


@pytest.mark.slow
def test_the_whole_of_manga109_is_indexed_without_decoding(
    tmp_path: Path, xml_of: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """10,619 spreads and 109 books of its size; says how long it took."""
    root = tmp_path
    Image.new("L", (64, 48)).save(tmp_path / "one.jpg")
    (root / "annotations").mkdir()
    boxes = [("face", "00000001", 97 * k % 1600, 20, 97 * k % 1600 + 40, 90) for k in range(50)]
    for book in range(109):
        folder = root / "images" / f"Book{book:03d}"
        folder.mkdir(parents=True)
        count = 10619 // 109 + (book < 10619 % 109)
        for number in range(count):
            os.link(tmp_path / "one.jpg", folder / f"{number:03d}.jpg")
        (root / "annotations" / f"{folder.name}.xml").write_text(xml_of(folder.name, count, boxes))
    started = time.perf_counter()
    index = Manga109(root=str(root), train=13942, validation=2020, test=3030).index()
    seconds = time.perf_counter() - started
    with capsys.disabled():
        print(f"\n{len(index.rows)} pages with {pc.sum(pc.list_value_length(index.rows['regions'])).as_py()} regions "
              f"indexed in {seconds:.1f} s")  # fmt: skip
    assert len(index.rows) == 13942 + 2020 + 3030
