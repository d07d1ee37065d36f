"""Metrics against slow versions of their definitions."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mvray.metrics import classification

CLASSES = ("ada", "ben", "cleo", "dan", "eve", "fay", "gus")
REGION = pa.struct(
    [("kind", pa.string()), ("id", pa.string()), *((name, pa.float32()) for name in ("x0", "y0", "x1", "y1"))]
)


def box(kind: str, x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    return {"kind": kind, "id": "", "x0": x0, "y0": y0, "x1": x1, "y1": y1}


def lists(rows: np.ndarray) -> pa.Array:
    flat = pa.array(rows.astype(np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, rows.reshape(len(rows), -1).shape[1])


def table_of(maps: np.ndarray, regions: list[Any] | None = None, height: int = 60, width: int = 40) -> pa.Table:
    """A table as Measure steps give it, in two chunks."""
    column = lists(maps)
    shape = {"shape": f"{maps.shape[1]},{maps.shape[2]}"}
    columns = {
        pa.field("map", column.type, metadata=shape): column,
        pa.field("regions", pa.list_(REGION)): pa.array(regions or [[]] * len(maps), pa.list_(REGION)),
        pa.field("height", pa.int32()): pa.array([height] * len(maps), pa.int32()),
        pa.field("width", pa.int32()): pa.array([width] * len(maps), pa.int32()),
    }
    table = pa.table(list(columns.values()), schema=pa.schema(list(columns)))
    return pa.concat_tables([table[:1], table[1:]])


@pytest.fixture(name="answers")
def _answers() -> pa.Table:
    rand = np.random.default_rng(0)
    scores = rand.dirichlet(np.ones(7), 200)
    label = rand.integers(-1, 7, 200)
    return pa.table(
        {"label": label.astype(np.int32), "predicted": scores.argmax(1).astype(np.int32), "scores": lists(scores)}
    )


def test_accuracy_counts_labelled_samples(answers: pa.Table) -> None:
    rows = [row for row in answers.to_pylist() if row["label"] >= 0]
    assert 0 < len(rows) < 200
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert classification.Accuracy()(answers, CLASSES) == {"accuracy": pytest.approx(right / len(rows))}


def test_top5(answers: pa.Table) -> None:
    rows = [row for row in answers.to_pylist() if row["label"] >= 0]
    right = sum(row["label"] in np.argsort(row["scores"])[-5:] for row in rows)
    assert classification.Top5()(answers, CLASSES) == {"top5": pytest.approx(right / len(rows))}


def test_confusion_counts_rows_by_label_and_columns_by_prediction(answers: pa.Table) -> None:
    expected = np.zeros((7, 7), int)
    for row in answers.to_pylist():
        if row["label"] >= 0:
            expected[row["label"], row["predicted"]] += 1
    assert np.array_equal(classification.confusion(answers, CLASSES), expected)


def test_a_number_without_samples_is_left_out(answers: pa.Table) -> None:
    unlabelled = answers.filter(pa.compute.less(answers["label"], 0))
    assert classification.Accuracy()(unlabelled, CLASSES) == {}
    assert classification.Top5()(unlabelled, CLASSES) == {}
    assert classification.AttentionInside()(table_of(np.ones((3, 2, 2))), CLASSES) == {}


def slow_entropy_bits(values: list[float]) -> float:
    """Object-ABN's sharpness of one map, as papers.md section 3 has it."""
    low, high = min(values), max(values)
    counts = [0] * 10
    for value in values:
        counts[min(int((value - low) / (high - low) * 10), 9)] += 1
    return -sum(n / len(values) * math.log2(n / len(values)) for n in counts if n)


def test_attention_entropy() -> None:
    maps = np.random.default_rng(1).random((5, 13, 11)).astype(np.float16) ** 3
    expected = np.mean([slow_entropy_bits(each.astype(float).ravel().tolist()) for each in maps])
    found = classification.AttentionEntropy()(table_of(maps), CLASSES)
    assert found == {"attention_entropy_bits": pytest.approx(expected), "attention_flat": 0}
    assert 1 < expected < math.log2(10)


def test_attention_entropy_is_largest_for_all_values_alike_often_and_least_for_one_peak() -> None:
    even = np.arange(100).reshape(1, 10, 10) / 99
    assert classification.AttentionEntropy()(table_of(even), CLASSES)["attention_entropy_bits"] == pytest.approx(
        math.log2(10)
    )
    peak = np.zeros((1, 10, 10))
    peak[0, 3, 4] = 1
    expected = -(0.99 * math.log2(0.99) + 0.01 * math.log2(0.01))
    assert classification.AttentionEntropy()(table_of(peak), CLASSES)["attention_entropy_bits"] == pytest.approx(
        expected
    )


def test_flat_maps_have_no_entropy_and_are_counted() -> None:
    peak = np.zeros((1, 10, 10))
    peak[0, 0, 0] = 1
    both = np.concatenate((peak, np.full((3, 10, 10), 0.25)))
    alone = classification.AttentionEntropy()(table_of(peak), CLASSES)
    assert classification.AttentionEntropy()(table_of(both), CLASSES) == {**alone, "attention_flat": 0.75}


def slow_coverage(boxes: list[dict[str, Any]], size: tuple[int, int], shape: tuple[int, int], fine: int) -> np.ndarray:
    """Each cell's covered share, from ``fine`` x ``fine`` points in it."""
    covered = np.zeros(shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            for i in range(fine):
                for j in range(fine):
                    y = (row + (i + 0.5) / fine) * size[0] / shape[0]
                    x = (column + (j + 0.5) / fine) * size[1] / shape[1]
                    inside = any(b["x0"] <= x < b["x1"] and b["y0"] <= y < b["y1"] for b in boxes)
                    covered[row, column] += inside / fine**2
    return covered


BOXES = [
    box("body", 3, 7, 21, 33),
    box("body", 15, 20, 39, 44),  # overlaps the first
    box("body", 16, 22, 18, 24),  # inside both
    box("body", 35, 50, 47, 63),  # beyond the page
    box("body", 5, 50, 5, 58),  # nothing
]


def test_coverage_is_the_area_of_the_union() -> None:
    found = classification.coverage(BOXES, (60, 40), (5, 4))
    # 60 and 40 points per side meet every edge above: whole pixels.
    assert found == pytest.approx(slow_coverage(BOXES, (60, 40), (5, 4), 60), abs=1e-9)
    assert found.sum() * (60 / 5) * (40 / 4) == pytest.approx(18 * 26 + 24 * 24 - 6 * 13 + 5 * 10)
    assert classification.coverage(BOXES[:1], (60, 40), (60, 40)).sum() == pytest.approx(18 * 26)


def test_coverage_of_the_whole_page_and_of_nothing() -> None:
    assert np.array_equal(classification.coverage([box("body", -5, -5, 50, 70)], (60, 40), (7, 3)), np.ones((7, 3)))
    assert np.array_equal(classification.coverage([], (60, 40), (7, 3)), np.zeros((7, 3)))


def test_attention_inside() -> None:
    maps = np.random.default_rng(2).random((4, 5, 4)).astype(np.float16)
    maps[3] = 0
    face = [box("face", 4, 8, 12, 16)]
    regions = [[*BOXES, box("frame", 0, 0, 40, 60)], [*face, *BOXES[:1]], [], [*BOXES, *face]]
    found = classification.AttentionInside()(table_of(maps, regions), CLASSES)

    def share(at: int, boxes: list[dict[str, Any]]) -> tuple[float, float]:
        covered = slow_coverage(boxes, (60, 40), (5, 4), 60)
        weights = maps[at].astype(float)
        return float((weights * covered).sum() / weights.sum()), float(covered.mean())

    body = np.mean([share(0, BOXES), share(1, BOXES[:1])], axis=0)
    assert found["attention_in_body"] == pytest.approx(body[0])
    assert found["body_area"] == pytest.approx(body[1])
    assert (found["attention_in_face"], found["face_area"]) == pytest.approx(share(1, face))


def test_even_attention_scores_the_area() -> None:
    found = classification.AttentionInside()(table_of(np.ones((2, 9, 7)), [BOXES, BOXES[:2]]), CLASSES)
    assert found["attention_in_body"] == pytest.approx(found["body_area"])


def test_mean_interval() -> None:
    assert classification.mean_interval([0.5]) == (0.5, None, None)
    mean, low, high = classification.mean_interval([84.0, 86.0, 88.0])
    assert mean == pytest.approx(86)
    # t(0.975, 2) = 4.3027, from any printed table; standard error 2 / sqrt(3)
    assert low == pytest.approx(86 - 4.3027 * 2 / math.sqrt(3), abs=1e-3)
    assert high == pytest.approx(86 + 4.3027 * 2 / math.sqrt(3), abs=1e-3)
    assert classification.mean_interval([1.0, 1.0]) == (1.0, 1.0, 1.0)


def test_mean_interval_covers_the_truth_19_times_in_20() -> None:
    rand = np.random.default_rng(3)
    covered = [
        low <= 0 <= high for _, low, high in (classification.mean_interval(rand.normal(size=3)) for _ in range(1000))
    ]
    assert abs(np.mean(covered) - 0.95) < 0.03
