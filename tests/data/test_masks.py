"""Stored instance masks as a sample sees them."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pycocotools import mask as coco

from mvray.data.geometry import View
from mvray.data.masks import MOST_INSTANCES, MaskColumn, labels_of
from mvray.errors import DataError, SettingError
from mvray.experiment.inputs import Masks

CLASSES = ("person", "dog", "bench")
HEIGHT, WIDTH = 20, 30
INSTANCES = pa.list_(
    pa.struct(
        [("rle", pa.binary()), ("label", pa.int16()), ("score", pa.float32()), ("box", pa.list_(pa.float32(), 4))]
    )
)
Instance = tuple[int, float, np.ndarray]


def block(y: int, x: int, high: int = 5, wide: int = 6) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + high, x : x + wide] = True
    return mask


def table_of(videos: dict[str, dict[int, list[Instance]]]) -> pa.Table:
    rows = [(key, number, found) for key, frames in videos.items() for number, found in frames.items()]
    masks = [
        [
            {
                "rle": coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"],
                "label": label,
                "score": score,
                "box": [0.0, 0.0, 1.0, 1.0],
            }
            for label, score, mask in found
        ]
        for _, _, found in rows
    ]
    fields = [
        pa.field("key", pa.string()),
        pa.field("frame", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("masks", INSTANCES, metadata={"classes": json.dumps(CLASSES)}),
    ]
    columns = [[r[0] for r in rows], [r[1] for r in rows], [HEIGHT] * len(rows), [WIDTH] * len(rows), masks]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, fields, strict=True)], schema=pa.schema(fields))


PERSON, DOG, BENCH, FAINT = block(2, 3), block(4, 6), block(12, 20), block(14, 2)
ONE = [(0, 0.9, PERSON), (1, 0.8, DOG), (2, 0.7, BENCH), (0, 0.3, FAINT)]


def seen(use: Masks, videos: dict[str, dict[int, list[Instance]]] | None = None, **view: object) -> np.ndarray:
    column = MaskColumn(table_of(videos or {"a": {0: ONE}}), use)
    (position,) = column.lookup(pa.array(["a"]))
    return column.sample(position, HEIGHT, WIDTH, View(**view))["masks"]


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (Masks(), PERSON | DOG | BENCH),
        (Masks("people"), PERSON),
        (Masks("people and objects"), PERSON | DOG),
        (Masks("dog, bench"), DOG | BENCH),
        (Masks(least_score=0.0), PERSON | DOG | BENCH | FAINT),
        (Masks(least_score=0.85), PERSON),
        (Masks("people", dilate=2), block(0, 1, 9, 10)),
    ],
)
def test_which_instances_count_is_a_setting_of_the_use(use: Masks, expected: np.ndarray) -> None:
    found = seen(use)
    assert found.dtype == np.uint8
    assert found.shape == (1, HEIGHT, WIDTH)
    np.testing.assert_array_equal(found[0], expected)


def test_a_class_that_the_segmenter_does_not_know() -> None:
    with pytest.raises(SettingError, match=r"knows no 'cat'; expected 'people', .*person, dog, bench"):
        seen(Masks("person, cat"))
    assert labels_of(CLASSES, "people") == {0}


def test_instances_are_told_apart_with_the_best_on_top() -> None:
    column = MaskColumn(table_of({"a": {0: ONE}}), Masks(union=False))
    made = column.sample(0, HEIGHT, WIDTH, View())
    expected = np.zeros((HEIGHT, WIDTH))
    expected[BENCH], expected[DOG], expected[PERSON] = 3, 2, 1
    np.testing.assert_array_equal(made["masks"][0], expected)
    assert made["mask_labels"].tolist() == [[0, 1, 2] + [-1] * (MOST_INSTANCES - 3)]


def test_each_frame_gets_the_nearest_that_has_masks() -> None:
    every_4th = {number: [(0, 1.0, block(number, number))] for number in (0, 4, 8, 12)}
    found = seen(Masks(), {"other": {0: ONE}, "a": every_4th}, numbers=[0, 1, 3, 6, 7, 12, 15])
    expected = [0, 0, 4, 4, 8, 12, 12]
    for mask, number in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mask, block(number, number))


def test_masks_go_through_the_same_crop_and_mirror_as_pictures() -> None:
    pixels = np.where(PERSON, 255, 0).astype(np.uint8)
    view = {"x0": 0.1, "y0": 0.05, "x1": 0.7, "y1": 0.65, "mirrored": True}
    box = (0.1 * WIDTH, 0.05 * HEIGHT, 0.7 * WIDTH, 0.65 * HEIGHT)
    expected = np.asarray(Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST, box))[:, ::-1]
    np.testing.assert_array_equal(seen(Masks("people"), **view)[0] * 255, expected)


def test_keys_are_found_over_several_chunks_and_missing_ones_named() -> None:
    first, second = table_of({"a": {0: ONE, 2: []}, "b": {0: []}}), table_of({"c": {0: ONE}})
    column = MaskColumn(pa.concat_tables([first, second]), Masks("people"))
    assert column.lookup(pa.array(["c", "a", "b"])).tolist() == [2, 0, 1]
    np.testing.assert_array_equal(column.sample(2, HEIGHT, WIDTH, View())["masks"][0], PERSON)
    assert not column.sample(1, HEIGHT, WIDTH, View())["masks"].any()
    assert not column.sample(0, HEIGHT, WIDTH, View(numbers=[9]))["masks"].any()
    with pytest.raises(DataError, match="Found no 'masks' for 1 of 2 samples, first 'd'"):
        column.lookup(pa.array(["a", "d"]))
    assert column.lookup(pa.array(["a", "d"]), max_missing=0.5).tolist() == [0, -1]
