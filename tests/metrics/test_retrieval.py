"""Retrieval against its formulas written again, scikit-learn and pytorch-metric-learning."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from mvray.errors import DataError
from mvray.metrics import retrieval
from mvray.metrics.retrieval import Retrieval

NUMBERS = {"threshold", "f1", "precision", "recall", "recall_at_1", "map_at_r", "roc_auc"}
STEP = retrieval.FURTHEST / retrieval.STEPS


def given(count: int = 150, seed: int = 0, noise: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around the directions of classes of very different sizes, some with one picture only."""
    rand = np.random.default_rng(seed)
    label_N = rand.permutation(np.minimum(rand.geometric(0.12, count) - 1, 30))
    vectors_NE = rand.standard_normal((31, 8))[label_N] + noise * rand.standard_normal((count, 8))
    return vectors_NE.astype(np.float32), label_N


def distances(vectors_NE: np.ndarray) -> np.ndarray:
    unit_NE = vectors_NE.astype(np.float64) / np.linalg.norm(vectors_NE.astype(np.float64), axis=1, keepdims=True)
    return np.array([[math.dist(one, other) for other in unit_NE] for one in unit_NE])


def slow_scores(vectors_NE: np.ndarray, label_N: np.ndarray, threshold: float) -> dict[str, float]:
    """Pair by pair, and for each picture place by place."""
    distance_NN, count = distances(vectors_NE), len(label_N)
    right = wrong = missed = 0
    for i in range(count):
        for j in range(i):
            same, within = label_N[i] == label_N[j], distance_NN[i, j] <= threshold
            right, wrong, missed = (
                right + (same and within),
                wrong + (not same and within),
                missed + (same and not within),
            )
    precision, recall = right / (right + wrong), right / (right + missed)
    firsts, averages = [], []
    for i in range(count):
        order = [int(j) for j in np.argsort(distance_NN[i], kind="stable") if j != i]
        relevant = [bool(label_N[j] == label_N[i]) for j in order]
        total = sum(relevant)
        if not total:
            continue
        firsts.append(relevant[0])
        # Musgrave et al. 2020, section 3.2: MAP@R = 1/R sum over i = 1..R of P(i), P(i) = 0 where i is not relevant.
        averages.append(sum(sum(relevant[: k + 1]) / (k + 1) for k in range(total) if relevant[k]) / total)
    return {
        "f1": 2 * precision * recall / (precision + recall),
        "precision": precision,
        "recall": recall,
        "recall_at_1": float(np.mean(firsts)),
        "map_at_r": float(np.mean(averages)),
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_every_number_pair_by_pair(seed: int) -> None:
    vectors_NE, label_N = given(seed=seed)
    found = retrieval.scores(retrieval.search(vectors_NE, label_N))
    assert found.keys() == NUMBERS
    expected = slow_scores(vectors_NE, label_N, found["threshold"])
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_no_threshold_has_a_better_f1() -> None:
    """F1 changes at distances of pairs alone, so all that there are can be tried."""
    vectors_NE, label_N = given()
    pairs_i, pairs_j = np.triu_indices(len(label_N), 1)
    distance_P, same_P = distances(vectors_NE)[pairs_i, pairs_j], label_N[pairs_i] == label_N[pairs_j]
    best = max(
        2 * same_P[distance_P <= t].sum() / ((distance_P <= t).sum() + same_P.sum()) for t in distance_P[same_P] + 1e-9
    )
    assert retrieval.scores(retrieval.search(vectors_NE, label_N))["f1"] == pytest.approx(best, abs=2e-4)


def test_scikit_learns_neighbours_within_the_threshold() -> None:
    """What the source does: NearestNeighbors with a radius."""
    vectors_NE, label_N = given()
    found = retrieval.scores(retrieval.search(vectors_NE, label_N))
    unit_NE = retrieval.unit_length(vectors_NE)
    within = NearestNeighbors(radius=found["threshold"]).fit(unit_NE).radius_neighbors(return_distance=False)
    right = sum(int((label_N[others] == label_N[i]).sum()) for i, others in enumerate(within))
    assert found["precision"] == pytest.approx(right / sum(map(len, within)), abs=1e-9)
    same = sum(int((label_N == each).sum()) - 1 for each in label_N)
    assert found["recall"] == pytest.approx(right / same, abs=1e-9)


def test_scikit_learns_area_under_the_curve() -> None:
    vectors_NE, label_N = given()
    pairs_i, pairs_j = np.triu_indices(len(label_N), 1)
    expected = roc_auc_score(label_N[pairs_i] == label_N[pairs_j], -distances(vectors_NE)[pairs_i, pairs_j])
    pairs = retrieval.search(vectors_NE, label_N).pairs
    assert pairs.roc_auc() == pytest.approx(expected, abs=1e-4)
    assert np.trapezoid(pairs.recall, pairs.false) == pytest.approx(expected, abs=1e-4)


def test_pytorch_metric_learnings_accuracy_calculator() -> None:
    import torch
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    names = ("precision_at_1", "mean_average_precision_at_r")
    vectors_NE, label_N = given()
    knn = CustomKNN(LpDistance(normalize_embeddings=True))
    calculator = AccuracyCalculator(names, k="max_bin_count", knn_func=knn, device=torch.device("cpu"))
    theirs = calculator.get_accuracy(torch.from_numpy(vectors_NE), torch.from_numpy(label_N))
    ours = retrieval.scores(retrieval.search(vectors_NE, label_N))
    assert ours["recall_at_1"] == pytest.approx(theirs[names[0]], abs=1e-6)
    assert ours["map_at_r"] == pytest.approx(theirs[names[1]], abs=1e-6)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_NE, label_N = given()
    whole = retrieval.search(vectors_NE, label_N)
    monkeypatch.setattr(retrieval, "_CELLS", 7 * len(label_N))
    parts = retrieval.search(vectors_NE, label_N)
    assert np.abs(whole.pairs.same - parts.pairs.same).max() <= 1  # sums of another order, at a step's edge
    assert np.array_equal(whole.first, parts.first)
    assert np.allclose(whole.average_precision, parts.average_precision)


def test_an_empty_vector_is_as_far_from_all() -> None:
    vectors_NE = np.array([[0, 0], [0, 0], [1, 0], [2, 0]], np.float16)
    pairs = retrieval.search(vectors_NE, np.array([0, 0, 1, 1])).pairs
    assert pairs.at(0.0) == {"f1": 1.0, "precision": 1.0, "recall": 1.0}
    assert pairs.different[int(1 / STEP) - 1] == 0
    assert pairs.different[int(1 / STEP)] == 4


def test_equal_vectors_cannot_be_told_apart() -> None:
    found = retrieval.scores(retrieval.search(np.ones((6, 3)), np.array([0, 1, 2, 0, 1, 2])))
    assert found["roc_auc"] == 0.5
    assert found["precision"] == 3 / 15
    assert found["recall_at_1"] == pytest.approx(0, abs=0.34)


def test_what_cannot_be_known_is_left_out() -> None:
    vectors_NE = np.eye(3, 4)
    assert retrieval.scores(retrieval.search(vectors_NE, np.array([0, 1, 2]))) == {}
    assert retrieval.scores(retrieval.search(vectors_NE, np.array([-1, -1, -1]))) == {}
    one_class = retrieval.scores(retrieval.search(vectors_NE, np.array([0, 0, 0])))
    assert one_class.keys() == NUMBERS - {"roc_auc"}
    assert one_class["f1"] == 1.0
    assert retrieval.scores(retrieval.search(vectors_NE[:1], np.array([0]))) == {}


# -- as a metric of Measure ----------------------------------------------------------------------


def table_of(vectors_NE: np.ndarray, label_N: np.ndarray, name: str = "embedding") -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_NE.astype(np.float16).reshape(-1)), vectors_NE.shape[1])
    return pa.table({"label": pa.array(label_N, pa.int32()), name: column})


def test_the_threshold_of_validation_is_used_for_all_splits() -> None:
    tables = {
        "test": table_of(*given(90, seed=1, noise=0.8)),
        "unseen": table_of(*given(60, seed=2)),
        "validation": table_of(*given(80, seed=3)),
    }
    own = Retrieval()(tables["validation"], ())
    fitted = Retrieval().fitted(tables, ())
    assert fitted == Retrieval(threshold=own["threshold"])
    for split in ("test", "unseen"):
        found = fitted(tables[split], ())
        assert found["threshold"] == own["threshold"]
        assert found["f1"] < Retrieval()(tables[split], ())["f1"]
        vectors_NE, label_N = retrieval.columns(tables[split], "embedding")
        expected = slow_scores(vectors_NE, label_N, own["threshold"])
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_a_given_threshold_stays() -> None:
    tables = {"test": table_of(*given(40))}
    metric = Retrieval(threshold=0.7)
    assert metric.fitted(tables, ()) == metric
    assert metric(tables["test"], ())["threshold"] == 0.7


def test_a_part_of_a_table_and_pictures_without_a_class() -> None:
    vectors_NE, label_N = given(60)
    expected = Retrieval()(table_of(vectors_NE[20:], label_N[20:]), ())
    assert Retrieval()(table_of(vectors_NE, label_N).slice(20), ()) == expected
    assert Retrieval()(table_of(vectors_NE, np.where(np.arange(60) < 20, -1, label_N)), ()) == expected


def test_no_threshold_without_validation() -> None:
    tables = {"test": table_of(*given(40)), "unseen": table_of(*given(40))}
    with pytest.raises(DataError, match=r"'validation', which is not among.*found the splits test, unseen"):
        Retrieval().fitted(tables, ())
    alone = table_of(np.eye(4), np.arange(4))
    with pytest.raises(DataError, match="'validation', which has no two pictures of the same class"):
        Retrieval().fitted({**tables, "validation": alone}, ())
    assert Retrieval(chosen_on="test").fitted(tables, ()).threshold is not None


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DataError, match=r"no column 'pixels' with vectors; the data has label, embedding"):
        replace(Retrieval(), column="pixels")(table_of(*given(10)), ())
