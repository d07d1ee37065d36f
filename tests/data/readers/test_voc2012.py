"""VOC 2012's layout: lists, palettes' indices, annotations, and SBD's own files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mvray.data.decoding import Unreadable
from mvray.data.fingerprint import fingerprint
from mvray.data.readers.voc2012 import NAMES, VOC2012, objects_of
from mvray.errors import DataError

OWN = {"train": ["2007_000032", "2007_000039", "2007_000063"], "val": ["2007_000033", "2007_000042"]}
SBD = {"train": ["2008_000002", "2007_000032"], "val": ["2008_000003", "2007_000033"]}


def annotation(*names: str) -> str:
    objects = "".join(f"<object><name>{name}</name><part><name>head</name></part></object>" for name in names)
    return f"<annotation><folder>VOC2012</folder><size><width>9</width></size>{objects}</annotation>"


def class_map(number: int, size: tuple[int, int]) -> np.ndarray:
    classes_HW = np.random.default_rng(number).integers(0, 21, size[::-1]).astype(np.uint8)
    classes_HW[0] = 255
    return classes_HW


def save_palette(classes_HW: np.ndarray, file: Path) -> None:
    image = Image.fromarray(classes_HW, "P")
    image.putpalette(list(np.random.default_rng(0).permutation(256).repeat(3)))
    image.save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    top = tmp_path / "VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations"):
        (top / folder).mkdir(parents=True)
    sbd = tmp_path / "benchmark_RELEASE/dataset"
    (sbd / "cls").mkdir(parents=True)
    for name, list_ in OWN.items():
        (top / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(list_) + "\n")
    for name, list_ in SBD.items():
        (sbd / f"{name}.txt").write_text("\n".join(list_))
    for number, name in enumerate(sorted({name for list_ in (*OWN.values(), *SBD.values()) for name in list_})):
        size = (30 + number, 20)
        Image.new("RGB", size, (number, 0, 0)).save(top / f"JPEGImages/{name}.jpg")
        (top / f"Annotations/{name}.xml").write_text(annotation("person", NAMES[1 + number]))
        classes_HW = class_map(number, size)
        if name.startswith("2007"):
            save_palette(classes_HW, top / f"SegmentationClass/{name}.png")
        if name in (*SBD["train"], *SBD["val"]):
            classes_HW[0] = 0
            given = np.empty((1, 1), [("Boundaries", "O"), ("Segmentation", "O"), ("CategoriesPresent", "O")])
            given[0, 0] = (np.zeros(1), classes_HW, np.zeros(1))
            savemat(sbd / f"cls/{name}.mat", {"GTcls": given}, do_compression=True)
    return tmp_path


def splits_of(source: VOC2012) -> dict[str, str]:
    rows = source.index().rows
    return dict(zip(rows["key"].to_pylist(), rows["split"].to_pylist(), strict=True))


def test_lists_class_maps_and_labels(root: Path) -> None:
    for place in (root, root / "VOCdevkit", root / "VOCdevkit/VOC2012"):
        source = VOC2012(root=str(place), validation=0.34)
        index = source.index()
        assert index.classes == NAMES
        assert index.bad == ()
        splits = splits_of(source)
        assert {name for name, split in splits.items() if split == "test"} == set(OWN["val"])
        assert sorted(splits[name] for name in OWN["train"]) == ["train", "train", "validation"]
        for row in index.rows.to_pylist():
            size = source.read(row["location"], "").shape[1::-1]
            number = size[0] - 30
            found = source.read_target(row["targets"]["mask"]["location"], "mask")
            assert np.array_equal(found, class_map(number, size))
            assert {NAMES[i] for i in np.flatnonzero(row["labels"])} == {"person", NAMES[1 + number]}


def test_trainaug_is_vocs_own_class_maps_and_sbds_for_the_others_and_never_val(root: Path) -> None:
    source = VOC2012(root=str(root), train="trainaug", validation=0.0)
    rows = {row["key"]: row for row in source.index().rows.to_pylist()}
    train = {key for key, row in rows.items() if row["split"] == "train"}
    assert train == {*OWN["train"], "2008_000002", "2008_000003"}
    masks = {key: row["targets"]["mask"]["location"] for key, row in rows.items()}
    assert masks["2007_000032"].endswith("SegmentationClass/2007_000032.png")
    assert masks["2008_000003"] == "benchmark_RELEASE/dataset/cls/2008_000003.mat"
    size = source.read(rows["2008_000003"]["location"], "").shape[1::-1]
    expected = class_map(size[0] - 30, size)
    expected[0] = 0  # SBD has no boundaries
    assert np.array_equal(source.read_target(masks["2008_000003"], "mask"), expected)


def test_trainaug_as_others_hand_it_on(root: Path) -> None:
    top = root / "VOCdevkit/VOC2012"
    (top / "SegmentationClassAug").mkdir()
    (top / "ImageSets/Segmentation/trainaug.txt").write_text("2007_000032\n2008_000002\n")
    with Image.open(top / "JPEGImages/2008_000002.jpg") as image:
        Image.new("L", image.size, 20).save(top / "SegmentationClassAug/2008_000002.png")
    rows = VOC2012(root=str(root), train="trainaug", validation=0.0).index().rows.to_pylist()
    masks = {row["key"]: row["targets"]["mask"]["location"] for row in rows if row["split"] == "train"}
    assert masks == {
        "2007_000032": "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png",
        "2008_000002": "VOCdevkit/VOC2012/SegmentationClassAug/2008_000002.png",
    }


def test_what_is_wrong_is_left_out_by_name(root: Path) -> None:
    top = root / "VOCdevkit/VOC2012"
    (top / "JPEGImages/2007_000039.jpg").unlink()
    Image.new("RGB", (30, 20)).save(top / "SegmentationClass/2007_000032.png")
    (top / "Annotations/2007_000033.xml").write_text(annotation("unicorn"))
    (top / "SegmentationClass/2007_000042.png").unlink()
    before = fingerprint(VOC2012(root=str(root)).index())
    index = VOC2012(root=str(root)).index()
    assert {record.location.partition("VOC2012/")[2]: record.reason for record in index.bad} == {
        "JPEGImages/2007_000039.jpg": "in a list, and not there",
        "SegmentationClass/2007_000032.png": "pixels of 8 bits of RGB; expected a palette or 8 bits of grey, whose "
        "values are classes",
        "Annotations/2007_000033.xml": "names the class 'unicorn'; expected one of " + ", ".join(NAMES),
    }
    assert {row["key"]: row["targets"]["mask"]["location"] == "" for row in index.rows.to_pylist()} == {
        "2007_000042": True,
        "2007_000063": False,
    }
    (top / "Annotations/2007_000063.xml").write_text(annotation("cat"))
    assert fingerprint(VOC2012(root=str(root)).index()) != before


def test_lists_that_share_pictures_and_lists_that_are_not_there_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match="2 pictures are in the lists val and val, first 2007_000033"):
        VOC2012(root=str(root), train="val").index()
    with pytest.raises(DataError, match=r"There is no .*Segmentation/nosuch.txt .* source.train or source.test"):
        VOC2012(root=str(root), train="nosuch").index()
    (root / "VOCdevkit").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"holds benchmark_RELEASE/.*; expected VOC 2012: JPEGImages"):
        VOC2012(root=str(root)).index()


def test_lists_as_others_write_them(root: Path) -> None:
    """With paths, as DeepLab's are, with a mark of UTF-8, names twice, empty lines."""
    list_ = root / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"
    list_.write_bytes(
        b"\xef\xbb\xbf/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\r\n\r\n2007_000039\r\n"
        b"2007_000032\r\n"
    )
    splits = splits_of(VOC2012(root=str(root), validation=0.0))
    assert [name for name, split in splits.items() if split == "train"] == ["2007_000032", "2007_000039"]
    list_.write_bytes(b"\xe9\n")
    with pytest.raises(DataError, match=r"Segmentation/train.txt is not text in UTF-8"):
        VOC2012(root=str(root)).index()


def test_class_maps_of_other_classes_are_refused_before_training(root: Path) -> None:
    top = root / "VOCdevkit/VOC2012"
    (top / "classes.txt").write_text("background\nperson\n")
    with pytest.raises(
        DataError, match=r"none of 5 class maps that were looked at can be used, .*Expected indices of 2"
    ):
        VOC2012(root=str(root)).index()


@pytest.mark.parametrize("wrong", [b"", b"MATLAB", "other", "high", "wide"])
def test_an_sbd_file_that_is_no_class_map(root: Path, wrong: bytes | str) -> None:
    file = root / "benchmark_RELEASE/dataset/cls/2008_000002.mat"
    values = {"high": np.full((2, 3), 21, np.uint8), "wide": np.zeros((2, 3), np.uint16)}
    if isinstance(wrong, bytes):
        file.write_bytes(wrong)
    elif wrong in values:
        content = np.empty((1, 1), [("Segmentation", "O")])
        content[0, 0] = (values[wrong],)
        savemat(file, {"GTcls": content})
    else:
        savemat(file, {"other": np.zeros(1)})
    reason = "holds the value 21; expected 0 to 20" if wrong == "high" else "not SBD's class map"
    with pytest.raises(Unreadable, match=reason):
        VOC2012(root=str(root)).read_target("benchmark_RELEASE/dataset/cls/2008_000002.mat", "mask")


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (b"<annotation><object>", "not valid XML"),
        (b'<?xml version="1.0" encoding="nosuch"?><annotation/>', "not valid XML"),
        (b'<!DOCTYPE a [<!ENTITY e "x">]><annotation/>', "it has a document type"),
    ],
)
def test_an_annotation_that_cannot_be_read(xml: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        objects_of(xml)
