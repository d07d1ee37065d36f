"""Masks from files: COCO's and YouTube-VIS' layouts, names, and everything that can be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from mvray.errors import DataError
from mvray.experiment.contracts import Frame, Segmenter
from mvray.generators.segmenters import files

HEIGHT, WIDTH = 12, 16
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "person"}]


def mask(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    made = np.zeros((HEIGHT, WIDTH), np.uint8)
    made[top:bottom, left:right] = 1
    return made


def compressed(mask_HW: np.ndarray) -> dict[str, Any]:
    found = coco.encode(np.asfortranarray(mask_HW))
    return {"size": list(mask_HW.shape), "counts": found["counts"].decode()}


def plain(mask_HW: np.ndarray) -> dict[str, Any]:
    flat = mask_HW.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, flat.size]).tolist()
    return {"size": list(mask_HW.shape), "counts": [0, *runs] if flat[0] else runs}


def segmenter(root: Path, whole: Any) -> Segmenter:
    (root / "instances.json").write_text(whole if isinstance(whole, str) else json.dumps(whole))
    return files.Config().build(None, lambda path: (root / path).read_bytes())


def frame(key: str, number: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Frame:
    return Frame(key, number, np.zeros((height, width, 3), np.uint8))


FIRST, SECOND = mask(1, 2, 6, 9), mask(5, 5, 12, 16)


def video(name: str | None = None, folder: str = "v_Walk_g01_c01", numbers: tuple[int, ...] = (0, 1, 2)) -> Any:
    listed = {"id": 4, "file_names": [f"{folder}/{number:05d}.jpg" for number in numbers]}
    tracks = [
        {"video_id": 4, "category_id": 3, "segmentations": [compressed(FIRST), None, plain(SECOND)]},
        {"video_id": 4, "category_id": 7, "segmentations": [plain(SECOND), None, None]},
    ]
    whole = {"videos": [listed | ({"name": name} if name else {})], "categories": CATEGORIES, "annotations": tracks}
    return json.loads(json.dumps(whole))


def picture_set(*names: str) -> dict[str, Any]:
    """COCO: the picture of each name has one instance, one column wider than that of the name before."""
    images = [{"id": at, "file_name": name} for at, name in enumerate(names)]
    notes = [
        {"image_id": at, "category_id": 3, "segmentation": compressed(mask(0, 0, 4, at + 1))}
        for at in range(len(names))
    ]
    return {"images": images, "annotations": notes, "categories": CATEGORIES}


def test_masks_of_a_video(tmp_path: Path) -> None:
    made = segmenter(tmp_path, video())
    assert made.classes == ("person", "dog")
    found = made([frame("UCF-101/Walk/v_Walk_g01_c01.avi", number) for number in (0, 1, 2)])
    assert [len(each.scores) for each in found] == [2, 0, 1]
    assert torch.equal(found[0].masks, torch.from_numpy(np.stack([FIRST, SECOND]) > 0))
    assert found[0].masks.dtype == torch.bool
    assert found[0].labels.tolist() == [0, 1]
    assert found[0].scores.tolist() == [1, 1]
    assert found[0].boxes.tolist() == [[2, 1, 9, 6], [5, 5, 16, 12]]
    assert found[1].masks.shape == (0, HEIGHT, WIDTH)
    assert found[1].boxes.shape == (0, 4)
    assert torch.equal(found[2].masks[0], torch.from_numpy(SECOND > 0))


def test_masks_of_pictures(tmp_path: Path) -> None:
    polygon = [[2.0, 1.0, 9.0, 1.0, 9.0, 6.0, 2.0, 6.0]]
    notes = [
        {"image_id": 1, "category_id": 3, "segmentation": polygon},
        {"image_id": 1, "category_id": 7, "segmentation": plain(SECOND), "iscrowd": 0},
        {"image_id": 1, "category_id": 7, "segmentation": plain(SECOND), "iscrowd": 1},
    ]
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    made = segmenter(tmp_path, {"images": images, "annotations": notes, "categories": CATEGORIES})
    some, none = made([frame("train/a.jpg"), frame("train/b.jpg")])
    assert torch.equal(some.masks, torch.from_numpy(np.stack([FIRST, SECOND]) > 0))
    assert some.labels.tolist() == [0, 1]
    assert len(none.scores) == 0


@pytest.mark.parametrize(
    ("key", "names", "fits"),
    [
        ("UCF-101/Walk/a.avi", ("Walk/a.avi", "Jump/a.avi"), 0),
        ("a.jpg", ("data/train/a.jpg", "data/train/b.jpg"), 0),
        ("Walk/a.avi", ("a", "Walk/a", "Jump/a"), 1),
        ("Walk/a.b.avi", ("a", "a.b"), 1),
        ("x/a.jpg", ("x/a.png", "x/a.jpg"), 1),
        ("x/a.jpg", ("x\\a.jpg", "y\\a.jpg"), 0),
    ],
)
def test_names_fit_by_their_endings(key: str, names: tuple[str, ...], fits: int, tmp_path: Path) -> None:
    [found] = segmenter(tmp_path, picture_set(*names))([frame(key)])
    assert found.boxes.tolist() == [[0, 0, fits + 1, 4]]


@pytest.mark.parametrize(
    ("key", "names", "says"),
    [
        ("Walk/a.avi", ("Jump/a.avi",), r"Walk/a.avi is not in instances.json, which has Jump/a.avi"),
        ("a.avi", ("Jump/a.avi", "Walk/a.avi"), r"fits 2 names in instances.json, .* Jump/a.avi, Walk/a.avi"),
        ("c.avi", ("ac.avi",), r"c.avi is not in instances.json"),
        ("x/a.avi", ("x/a.png", "x/a.jpg"), r"fits 2 names"),
    ],
)
def test_names_that_do_not_fit_are_refused(key: str, names: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        segmenter(tmp_path, picture_set(*names))([frame(key)])


def test_a_video_may_say_its_name(tmp_path: Path) -> None:
    made = segmenter(tmp_path, video(name="Walk/v.avi", folder="0b34"))
    assert len(made([frame("UCF-101/Walk/v.avi")])[0].scores) == 2
    with pytest.raises(DataError, match=r"0b34.avi is not in"):
        made([frame("0b34.avi")])


def test_numbers_of_frames_are_those_in_their_names(tmp_path: Path) -> None:
    made = segmenter(tmp_path, video(numbers=(0, 5, 10)))
    found = made([frame("v_Walk_g01_c01.avi", number) for number in (0, 5, 10)])
    assert [len(each.scores) for each in found] == [2, 0, 1]
    with pytest.raises(DataError, match=r"no frame 1 of v_Walk_g01_c01.avi, but 3: 0, 5, 10 .*generator.every"):
        made([frame("v_Walk_g01_c01.avi", 1)])
    from_one = segmenter(tmp_path, video(numbers=(1, 2, 3)))
    assert len(from_one([frame("v_Walk_g01_c01.avi", 2)])[0].scores) == 1


def test_masks_of_another_size_are_refused(tmp_path: Path) -> None:
    made = segmenter(tmp_path, video())
    with pytest.raises(DataError, match=r"v_Walk_g01_c01.avi, frame 0, cannot be read .*12 x 16.*expected .* 24 x 32"):
        made([frame("v_Walk_g01_c01.avi", 0, 24, 32)])


@pytest.mark.parametrize("wrong", [{"size": [12, 16], "counts": "0"}, {"size": [12, 16]}, [], 5, [[1.0]], [["a"]]])
def test_broken_masks_are_refused(wrong: Any, tmp_path: Path) -> None:
    whole = picture_set("a.jpg")
    whole["annotations"][0]["segmentation"] = wrong
    with pytest.raises(DataError, match=r"the masks of a.jpg, frame 0, cannot be read"):
        segmenter(tmp_path, whole)([frame("a.jpg")])


@pytest.mark.parametrize(
    ("whole", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "has another layout"),
        ({"images": [], "categories": CATEGORIES}, "has another layout .*annotations"),
        ({"images": [], "annotations": []}, "has another layout .*categories"),
        ({**picture_set("a.jpg"), "images": [{"id": 9, "file_name": "a.jpg"}]}, "has another layout"),
        ({**video(), "videos": [{"id": 4, "file_names": ["a/0.jpg"]}]}, "3 segmentations in a video of 1 frames"),
        ({**video(), "videos": [{"id": 4, "file_names": []}]}, "has another layout"),
    ],
)
def test_other_layouts_are_refused(whole: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"instances.json {says}".replace("json 3", "json .*3")):
        segmenter(tmp_path, whole)


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match=r"no masks.json below the data's root; expected masks in COCO's layout"):
        files.Config(path="masks.json").build(None, lambda path: Path("/nowhere", path).read_bytes())
    assert files.Config(path="masks.json").reads == ("masks.json",)
