"""Intersection over union by VOC's protocol, against its formula written slowly, and what is said of boundaries."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from mvray.generators import map_scores
from mvray.metrics import MeanIoU, accuracy, counts_of, iou

CLASSES = 4
NAMES = ("background", "cat", "dog", "bird")


def maps(count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (count, 20, 30)).astype(np.uint8)  # no bird anywhere
    made = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 3, truth.shape)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    made[:, 0, :2] = 255
    return truth, made


def slowly(truth: np.ndarray, made: np.ndarray) -> list[float]:
    """The set of pixels that both call so, over the set that either does, of the pixels that count."""
    values = []
    for class_ in range(CLASSES):
        true = {(i, y, x) for i, y, x in np.ndindex(*truth.shape) if truth[i, y, x] == class_}
        said = {(i, y, x) for i, y, x in np.ndindex(*truth.shape) if made[i, y, x] == class_ and truth[i, y, x] != 255}
        values.append(len(true & said) / len(true | said) if true | said else float("nan"))
    return values


def test_mean_iou_is_that_of_the_whole_set() -> None:
    truth, made = maps()
    table = map_scores.Config(CLASSES).build(None, None)(
        {"label_map": torch.from_numpy(made), "mask": torch.from_numpy(truth)}
    )
    numbers = MeanIoU()(table, NAMES)
    expected = slowly(truth, made)
    assert [numbers[f"iou/{name}"] for name in NAMES[:3]] == pytest.approx(expected[:3])
    assert "iou/bird" not in numbers
    assert numbers["mean_iou"] == pytest.approx(np.mean(expected[:3]))
    counted = truth != 255
    assert numbers["pixel_accuracy"] == pytest.approx((truth == made)[counted].mean())
    assert numbers["picture_iou"].shape == (6,)
    assert numbers["picture_iou"][2] == pytest.approx(np.nanmean(slowly(truth[2:3], made[2:3])))
    several = [i for i in range(6) if len(set(np.unique(truth[i])) - {0, 255}) > 1]
    assert numbers["several_classes"] == pytest.approx(np.nanmean(slowly(truth[several], made[several])))
    assert "one_class" not in numbers


def test_nothing_that_counts_is_no_number() -> None:
    counts = counts_of(np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint8), CLASSES)
    assert np.isnan(iou(counts)).all()
    assert np.isnan(accuracy(counts))


def test_trimap_counts_pixels_next_to_true_boundaries() -> None:
    truth = np.zeros((20, 40), np.uint8)
    truth[:, 20:] = 1
    made = truth.copy()
    made[:, 20:23] = 0  # 3 columns off
    made[:, :5] = 2  # far from any boundary
    config = map_scores.Config(CLASSES, trimap=5)
    table = config.build(None, None)({"label_map": torch.tensor(made[None]), "mask": torch.tensor(truth[None])})
    near = np.array(table["trimap"][0].as_py()).reshape(CLASSES, CLASSES + 1)
    assert near[0, 0] == 6 * 20  # the boundary's own column and five beside it
    assert (near[1, 0], near[1, 1]) == (3 * 20, 2 * 20)
    assert near[0, 2] == 0


@pytest.mark.parametrize(("off", "expected"), [(0, 1.0), (2, 1.0), (4, 0.0)])
@pytest.mark.parametrize("band", [0, 1])
def test_a_boundary_may_be_a_little_off(off: int, expected: float, band: int) -> None:
    truth = np.zeros((20, 40), np.uint8)
    truth[:, 20:] = 1
    made = np.zeros_like(truth)
    made[:, 20 + off :] = 1
    if band:  # as VOC draws it
        truth[:, 19:21] = 255
    assert map_scores.boundary_f(truth, made, 2.0) == pytest.approx(expected, abs=0.01)


def test_a_map_without_boundaries_has_no_f() -> None:
    assert np.isnan(map_scores.boundary_f(np.zeros((5, 5), np.uint8), np.zeros((5, 5), np.uint8), 2.0))


def test_counts_of_a_split_are_columns() -> None:
    truth, made = maps(3)
    table = pa.table(
        {
            "counts": pa.array(
                [counts_of(t, m, CLASSES).ravel().tolist() for t, m in zip(truth, made, strict=True)],
                pa.list_(pa.int32(), 20),
            )
        }
    )
    assert MeanIoU()(table, NAMES)["mean_iou"] == pytest.approx(np.nanmean(slowly(truth, made)))
