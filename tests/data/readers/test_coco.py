"""COCO 2017's layout as class maps: panoptic PNG files, polygons and run lengths, crowds, overlaps, what is refused."""

from __future__ import annotations

import json
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from mvray.data.decoding import Unreadable
from mvray.data.fingerprint import fingerprint
from mvray.data.loader import dataset
from mvray.data.readers import COCO
from mvray.errors import DataError, SettingError
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Data

WIDTH, HEIGHT = 40, 30
THINGS = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}]
STUFF = [{"id": 200, "name": "rug-merged"}]
IDS = {"whole": 3, "small": 258, "far": 256 * 256 * 7 + 5}  # ids of more than one byte
POLYGON = [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]]


def square(top: int, left: int, side: int) -> np.ndarray:
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask_HW[top : top + side, left : left + side] = 1
    return mask_HW


def runs(mask_HW: np.ndarray) -> dict[str, Any]:
    """Run lengths as COCO writes those of crowds: plain numbers."""
    counts, last = [0], 0
    for pixel in mask_HW.T.ravel().tolist():
        if pixel != last:
            counts.append(0)
            last = pixel
        counts[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def text(mask_HW: np.ndarray) -> dict[str, Any]:
    return {"size": [HEIGHT, WIDTH], "counts": coco.encode(np.asfortranarray(mask_HW))["counts"].decode()}


def images(first: int, count: int) -> list[dict[str, Any]]:
    names = [f"{number:012d}.jpg" for number in range(first, first + count)]
    return [
        {"id": first + i, "file_name": name, "height": HEIGHT, "width": WIDTH, "license": 1}
        for i, name in enumerate(names)
    ]


def instances(first: int) -> list[dict[str, Any]]:
    """Of the first picture: a car below a smaller toothbrush, both over a crowd; the others have none."""
    crowd = np.maximum(square(0, 0, 20), square(20, 30, 10))
    notes = [
        {"segmentation": text(square(10, 20, 4)), "category_id": 90, "iscrowd": 0},
        {"segmentation": runs(crowd), "category_id": 1, "iscrowd": 1},
        {"segmentation": POLYGON, "category_id": 3, "iscrowd": 0},
    ]
    return [{"id": 100 * first + i, "image_id": first, "area": 1.0, **note} for i, note in enumerate(notes)]


def segment(of: str, category: int, crowd: int = 0) -> dict[str, Any]:
    return {"id": IDS[of], "category_id": category, "iscrowd": crowd, "area": 1, "bbox": [0, 0, 1, 1]}


def write_panoptic(root: Path, set_: str, pictures: list[dict[str, Any]]) -> None:
    folder = root / f"annotations/panoptic_{set_}"
    folder.mkdir(parents=True, exist_ok=True)
    notes = []
    for picture in pictures:
        ids_HW = np.where(square(0, 0, 30), IDS["whole"], 0)
        ids_HW[square(5, 5, 5) > 0] = IDS["small"]
        ids_HW[square(20, 20, 8) > 0] = IDS["far"]
        rgb_HWC = np.stack([ids_HW & 255, ids_HW >> 8 & 255, ids_HW >> 16], 2).astype(np.uint8)
        name = picture["file_name"].replace(".jpg", ".png")
        Image.fromarray(rgb_HWC).save(folder / name)
        segments = [segment("whole", 200), segment("small", 90), segment("far", 1, crowd=1)]
        notes.append({"image_id": picture["id"], "file_name": name, "segments_info": segments})
    save(root, f"panoptic_{set_}", {"images": pictures, "annotations": notes, "categories": THINGS + STUFF})


def save(root: Path, name: str, whole: Any) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/{name}.json").write_text(whole if isinstance(whole, str) else json.dumps(whole))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the node keeps its tables
    place = tmp_path / "coco"
    for set_, first, count in (("train2017", 9, 3), ("val2017", 139, 2)):
        pictures = images(first, count)
        (place / set_).mkdir(parents=True)
        for picture in pictures:
            mode = "L" if picture["id"] == 10 else "RGB"
            Image.new(mode, (WIDTH, HEIGHT), "grey").save(place / set_ / picture["file_name"])
        write_panoptic(place, set_, pictures)
        save(
            place,
            f"instances_{set_}",
            {"images": pictures, "annotations": instances(first), "categories": THINGS},
        )
    return place


def expected_of_instances() -> np.ndarray:
    expected_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected_HW[(square(0, 0, 20) | square(20, 30, 10)) > 0] = 255
    expected_HW[5:25, 10:30] = 2
    expected_HW[10:14, 20:24] = 3
    return expected_HW


def rows_of(source: COCO) -> dict[str, dict[str, Any]]:
    index = source.index()
    assert index.bad == ()
    return {row["key"]: row for row in index.rows.to_pylist()}


@pytest.mark.parametrize("below_images", [False, True])
def test_panoptic(root: Path, below_images: bool) -> None:
    if below_images:
        (root / "images").mkdir()
        for name in ("train2017", "val2017"):
            (root / name).rename(root / "images" / name)
            (root / f"annotations/panoptic_{name}").rename(root / f"panoptic_{name}")
    source = COCO(root=str(root), validation=0.34)
    assert source.index().classes == ("person", "car", "toothbrush", "rug-merged"), "by id, not as the file lists them"
    rows = rows_of(source)
    assert sorted(rows) == [f"train2017/{n:012d}.jpg" for n in (9, 10, 11)] + [
        f"val2017/{n:012d}.jpg" for n in (139, 140)
    ]
    assert sorted(row["split"] for row in rows.values()) == ["test", "test", "train", "train", "validation"]
    row = rows["val2017/000000000139.jpg"]
    assert row["labels"] == [0, 0, 1, 1]
    expected_HW = np.where(square(0, 0, 30), 3, 255)
    expected_HW[5:10, 5:10] = 2
    expected_HW[20:28, 20:28] = 255
    assert np.array_equal(source.read_target(row["targets"]["mask"]["location"], "mask"), expected_HW)


def test_instances_overlap_and_crowds_lie_below(root: Path) -> None:
    source = COCO(root=str(root), annotations="instances", validation=0.0)
    assert source.index().classes == ("background", "person", "car", "toothbrush")
    rows = rows_of(source)
    with_some, without = rows["train2017/000000000009.jpg"], rows["train2017/000000000010.jpg"]
    assert with_some["targets"]["mask"]["location"] == "annotations/instances_train2017.json#9"
    for reader in (source, pickle.loads(pickle.dumps(source))):  # noqa: S301 (as Ray sends it)
        map_HW = reader.read_target(with_some["targets"]["mask"]["location"], "mask")
        assert np.array_equal(map_HW, expected_of_instances())
        assert not reader.read_target(without["targets"]["mask"]["location"], "mask").any()
    assert with_some["labels"] == [0, 0, 1, 1]
    samples = dataset(Data(source, Pictures(HEIGHT, WIDTH, 3, fit="pad")), source.index().rows, targets=("mask",))
    assert [sample["image"].shape for sample in (samples[0, 0], samples[1, 0])] == [(3, HEIGHT, WIDTH)] * 2
    assert np.array_equal(samples[0, 0]["mask"], expected_of_instances())
    assert samples.failures == {}


def test_another_file_of_equal_size_is_read_anew(root: Path) -> None:
    before = fingerprint(COCO(root=str(root), annotations="instances").index())
    file = root / "annotations/instances_train2017.json"
    file.write_text(file.read_text().replace('"category_id": 3', '"category_id": 1'))
    source = COCO(root=str(root), annotations="instances")
    assert fingerprint(source.index()) != before
    assert source.read_target("annotations/instances_train2017.json#9", "mask")[20, 25] == 1


def test_what_is_wrong_is_left_out_by_name(root: Path) -> None:
    (root / "train2017/000000000009.jpg").unlink()
    (root / "annotations/panoptic_train2017/000000000010.png").unlink()
    Image.new("L", (WIDTH, HEIGHT)).save(root / "annotations/panoptic_train2017/000000000011.png")
    whole = json.loads((root / "annotations/panoptic_val2017.json").read_text())
    whole["annotations"][0]["segments_info"][0]["category_id"] = 77
    del whole["annotations"][1]
    save(root, "panoptic_val2017", whole)
    index = COCO(root=str(root)).index()
    assert len(index.rows) == 0
    assert {record.location: record.reason for record in index.bad} == {
        "train2017/000000000009.jpg": "in annotations/panoptic_train2017.json, and not there",
        "train2017/000000000010.jpg": "its class map annotations/panoptic_train2017/000000000010.png is not there",
        "annotations/panoptic_train2017/000000000011.png": "pixels of 8 bits of grey; expected 8 bits of RGB",
        "val2017/000000000139.jpg": "its annotation 3 cannot be used (ValueError: of the category 77, which the file "
        "does not name)",
        "val2017/000000000140.jpg": "has no annotation in annotations/panoptic_val2017.json",
    }


def test_a_segment_that_no_annotation_has(root: Path) -> None:
    whole = json.loads((root / "annotations/panoptic_val2017.json").read_text())
    del whole["annotations"][0]["segments_info"][1]
    save(root, "panoptic_val2017", whole)
    with pytest.raises(Unreadable, match="holds the segment 258, which its annotation does not have"):
        COCO(root=str(root)).read_target("annotations/panoptic_val2017/000000000139.png", "mask")


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "a mask without polygons"),
        ([[1.0, 1.0, 5.0, 5.0]], "three corners or more"),
        ([[1.0, 1.0, 5.0, 5.0, 3.0]], "three corners or more"),
        ([[1.0, 1.0, 1e8, 5.0, 3.0, 9.0]], "corners far outside"),
        ([[1.0, 1.0, float("nan"), 5.0, 3.0, 9.0]], "corners far outside"),
        ([["1", "1", "5", "5", "3", "9"]], "three corners or more"),
        ({"size": [9, 9], "counts": [81]}, "a mask of 9 x 9"),
        ({"size": [HEIGHT, WIDTH], "counts": [5]}, "run lengths of 5 pixels"),
        ({"size": [HEIGHT, WIDTH]}, "no mask .*counts"),
        ({"size": [HEIGHT, WIDTH], "counts": ["a"]}, "invalid literal"),
        (None, "no mask"),
    ],
)
def test_a_mask_that_cannot_be_used_leaves_its_picture_out(root: Path, segmentation: Any, reason: str) -> None:
    whole = json.loads((root / "annotations/instances_val2017.json").read_text())
    whole["annotations"][0]["segmentation"] = segmentation
    save(root, "instances_val2017", whole)
    [record] = COCO(root=str(root), annotations="instances").index().bad
    assert record.location == "val2017/000000000139.jpg"
    assert record.reason.startswith("its annotation 13900 cannot be used (")
    assert re.search(reason, record.reason)


def test_a_picture_that_is_turned_is_refused(root: Path) -> None:
    """Annotations are of stored pixels; the picture is read upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "val2017/000000000139.jpg", exif=exif)
    source = COCO(root=str(root), annotations="instances")
    [record] = source.index().bad
    assert record.location == "val2017/000000000139.jpg"
    assert record.reason == (
        f"its class map is {WIDTH} x {HEIGHT} pixels, the picture val2017/000000000139.jpg {HEIGHT} x {WIDTH}"
    )


WHOLE = {"images": images(9, 1), "annotations": [], "categories": THINGS}


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        ("{", r"JSONDecodeError"),
        ("[" * 100_000, r"RecursionError"),
        ("[]", r"TypeError"),
        ({**WHOLE, "annotations": None}, "TypeError"),
        ({"images": [], "annotations": []}, "KeyError: 'categories'"),
        ({**WHOLE, "categories": []}, "0 categories, expected 1 to 253"),
        ({**WHOLE, "categories": [*THINGS, {"id": 4, "name": "car"}]}, "two classes have one name or one id"),
        ({**WHOLE, "categories": [*THINGS, {"id": 3, "name": "cat"}]}, "two classes have one name or one id"),
        ({**WHOLE, "images": images(9, 1) * 2}, "image 9, '000000000009.jpg', is there twice"),
        ({**WHOLE, "images": [{**images(9, 1)[0], "height": "30"}]}, "TypeError"),
        ({**WHOLE, "images": [{**images(9, 1)[0], "height": 10**9}]}, "said to have 1000000000 x 40 pixels"),
        ({**WHOLE, "annotations": [{"id": 1, "image_id": 5}]}, "KeyError: 5"),
    ],
)
def test_a_file_in_another_layout_is_refused(root: Path, whole: Any, message: str) -> None:
    save(root, "instances_train2017", whole)
    with pytest.raises(DataError, match=rf"instances_train2017.json cannot be used \({message}|{message}"):
        COCO(root=str(root), annotations="instances").index()


def test_what_is_not_there_is_named(root: Path) -> None:
    with pytest.raises(SettingError, match=r"source.annotations is 'stuff'; expected 'panoptic' or 'instances'"):
        COCO(annotations="stuff")
    with pytest.raises(SettingError, match="are both 'val2017'; expected two sets"):
        COCO(train="val2017")
    with pytest.raises(
        DataError, match=r"holds annotations/, train2017/, val2017/, and no annotations/panoptic_a.json"
    ):
        COCO(root=str(root), train="a").index()
    save(root, "panoptic_val2017", {"images": [], "annotations": [], "categories": STUFF})
    with pytest.raises(DataError, match=r"panoptic_val2017.json and .*train2017.json name other categories"):
        COCO(root=str(root)).index()
    assert len(COCO(root=str(root), test="").index().rows) == 3
    (root / "train2017").rename(root / "train")
    with pytest.raises(DataError, match=r"expected a folder of pictures, train2017 or images/train2017"):
        COCO(root=str(root)).index()
