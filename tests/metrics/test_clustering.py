"""Grouping against the hdbscan package and against the scores' formulas, and vectors that cannot be grouped."""

from __future__ import annotations

import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from mvray.errors import DataError, SettingError
from mvray.experiment.identity import described
from mvray.experiment.serialisation import decoded, encoded
from mvray.metrics.clustering import (
    LEFT_OUT,
    NOISE,
    Agglomerative,
    Clusters,
    Dbscan,
    Hdbscan,
    KMeans,
    agreement,
    group_vectors,
    work_keys,
)
from mvray.metrics.reduction import Pca, Umap

SMALL = Umap(dimensions=4, neighbours=8)


def blobs(samples: int, groups: int, dimensions: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around centres, and which centre each has."""
    rand = np.random.default_rng(seed)
    centre_N = rand.integers(0, groups, samples)
    centres = 10 * rand.normal(size=(groups, dimensions))
    return centres[centre_N] + spread * rand.normal(size=(samples, dimensions)), centre_N


def partition(labels: np.ndarray) -> set[tuple[bool, tuple[int, ...]]]:
    """The groups without their numbers, and which of them is noise."""
    return {(bool(each < 0), tuple(np.flatnonzero(labels == each))) for each in np.unique(labels)}


# -- HDBSCAN's parameters mean what the paper means ------------------------------------------------

rand = np.random.default_rng(0)
SETS = {
    "blobs": blobs(400, 6, 5, 6.0)[0],
    "uniform": rand.uniform(size=(300, 3)),
    "two densities": np.concatenate([rand.normal(size=(150, 2)), 8 + 0.2 * rand.normal(size=(150, 2))]),
    "each point four times": np.repeat(blobs(60, 4, 3, 4.0)[0], 4, 0),
    "grid of ties": np.array(list(itertools.product(range(14), range(14))), float)
    + 3.0 * (np.arange(196) > 97)[:, None],
}


@pytest.mark.parametrize(("least", "samples"), [(10, 1), (5, 5), (10, 3), (20, 10)])
@pytest.mark.parametrize("name", SETS)
def test_hdbscan_is_that_of_the_hdbscan_package(name: str, least: int, samples: int) -> None:
    """Its exact algorithm; its default, Boruvka's, joins equal distances in another order (see the next test)."""
    import hdbscan

    points = SETS[name]
    theirs = hdbscan.HDBSCAN(min_cluster_size=least, min_samples=samples, algorithm="prims_kdtree").fit_predict(points)
    ours = group_vectors(points, None, Hdbscan(least, samples))
    assert ours.dtype == np.int64
    assert partition(ours) == partition(theirs)


def test_min_samples_without_the_point_itself() -> None:
    """scikit-learn's own meaning gives other groups: the +1 is needed. With 1 it makes no difference, in any data."""
    from sklearn.cluster import HDBSCAN

    points = SETS["uniform"]
    plain = HDBSCAN(min_cluster_size=5, min_samples=5, copy=True).fit_predict(points)
    assert partition(group_vectors(points, None, Hdbscan(5, 5))) != partition(plain)
    one = HDBSCAN(min_cluster_size=10, min_samples=1, copy=True).fit_predict(points)
    assert partition(group_vectors(points, None, Hdbscan(10, 1))) == partition(one)


@pytest.mark.parametrize("name", SETS)
def test_boruvka_agrees_up_to_ties_for_the_papers_setting(name: str) -> None:
    import hdbscan

    points = SETS[name]
    theirs = hdbscan.HDBSCAN(min_cluster_size=10, min_samples=1).fit_predict(points)
    assert agreement(theirs + 1, group_vectors(points, None, Hdbscan()))["ami"] > 0.98


def test_hdbscans_other_settings_reach_it() -> None:
    import hdbscan

    points, _ = blobs(200, 1, 3, 5.0)
    theirs = hdbscan.HDBSCAN(10, min_samples=3, cluster_selection_method="leaf", algorithm="prims_kdtree")
    assert partition(group_vectors(points, None, Hdbscan(10, 3, "leaf"))) == partition(theirs.fit_predict(points))
    assert group_vectors(points, None, Hdbscan(20, 10, allow_single=True)).max() == 0


# -- other ways ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduce", "way"),
    [
        *((None, way) for way in (Hdbscan(), Dbscan(), KMeans(), Agglomerative(), Agglomerative(linkage="average"))),
        (Pca(3), Hdbscan()),
        *(pytest.param(umap, Hdbscan(), marks=pytest.mark.slow) for umap in (SMALL, Umap(4, 8, metric="cosine"))),
    ],
)
def test_clear_groups_are_found_in_any_way(reduce: object, way: object) -> None:
    vectors, label = blobs(200, 5, 12, 0.5)
    found = group_vectors(vectors.astype(np.float32), reduce, way, seed=1, k=5)
    assert agreement(label, found)["ami"] > 0.8  # UMAP's places depend on the processor's instructions
    assert (found == group_vectors(vectors.astype(np.float32), reduce, way, seed=1, k=5)).all()


def test_dbscan_without_eps_cuts_at_the_knee() -> None:
    """The knee's formula, slowly; and an eps that is given is used."""
    points, _ = blobs(120, 3, 2, 0.7)
    fourth = sorted(sorted(math.dist(one, other) for other in points)[4] for one in points)
    along = [k / (len(fourth) - 1) for k in range(len(fourth))]
    up = [(each - fourth[0]) / (fourth[-1] - fourth[0]) for each in fourth]
    knee = fourth[max(range(len(fourth)), key=lambda k: along[k] - up[k])]
    assert partition(group_vectors(points, None, Dbscan(min_samples=5))) == partition(
        group_vectors(points, None, Dbscan(knee))
    )
    assert group_vectors(points, None, Dbscan(eps=1e-9)).max() == NOISE
    assert set(group_vectors(points, None, Dbscan(eps=1e9))) == {0}


def test_agglomerative_at_a_distance() -> None:
    points, label = blobs(60, 3, 2, 0.3)
    assert agreement(label, group_vectors(points, None, Agglomerative(distance=5.0)))["ami"] == pytest.approx(1)
    assert len(set(group_vectors(points, None, Agglomerative(distance=1e-9)))) == 60


@pytest.mark.parametrize("way", [KMeans(), Agglomerative()])
def test_a_number_of_groups_that_is_not_known_is_asked_for(way: KMeans | Agglomerative) -> None:
    points, _ = blobs(9, 3, 2, 0.3)
    with pytest.raises(SettingError, match=r"not known; give it"):
        group_vectors(points, None, way)
    with pytest.raises(SettingError, match=r"is 10, but there are 9 vectors"):
        group_vectors(points, None, way, k=10)
    assert len(set(group_vectors(points, None, type(way)(k=2), k=5))) == 2  # what is set counts


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Hdbscan(min_cluster_size=1),
        lambda: Hdbscan(selection="best"),
        lambda: Dbscan(eps=0.0),
        lambda: KMeans(k=0),
        lambda: Agglomerative(linkage="median"),
        lambda: Agglomerative(k=3, distance=1.0),
        lambda: Umap(neighbours=1),
        lambda: Umap(metric="hamming"),
        lambda: Umap(min_dist=2),
        lambda: Pca(0),
        lambda: Clusters("vector", "hdbscan", noise="ignore"),
    ],
)
def test_wrong_settings_are_refused(wrong: object) -> None:
    with pytest.raises(SettingError, match="expected"):
        wrong()  # type: ignore[operator]


# -- vectors that can hardly be grouped --------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduce", "way"),
    [
        *((None, way) for way in (Hdbscan(), Dbscan(), KMeans(), Agglomerative())),
        (Pca(), Hdbscan()),
        pytest.param(Umap(), Hdbscan(), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("samples", [0, 1, 2, 5, 33, 34])
def test_few_vectors(samples: int, reduce: object, way: object) -> None:
    vectors = np.random.default_rng(0).normal(size=(samples, 40)).astype(np.float32)
    found = group_vectors(vectors, reduce, way, k=min(2, samples))
    assert found.shape == (samples,)
    if samples < 10 and way == Hdbscan():
        assert (found == NOISE).all()


@pytest.mark.slow
@pytest.mark.parametrize("way", [Hdbscan(), Dbscan(), KMeans(), Agglomerative()])
def test_equal_vectors(way: object) -> None:
    same = np.repeat(np.random.default_rng(0).normal(size=(1, 8)), 40, 0)
    assert set(group_vectors(same, Umap(), way, k=2)) == {0}
    twice = np.concatenate([same, same + 1])
    label = np.arange(80) // 40
    assert partition(group_vectors(twice, None, way, k=2)) == partition(label)
    for reduce in (SMALL, Umap()):
        found = group_vectors(twice, reduce, way, k=2)
        # UMAP spreads equal vectors, by processor and seed: DBSCAN's knee may leave out the farthest (1 in 6 seeds).
        at = found != NOISE
        assert (~at).sum() <= (4 if isinstance(way, Dbscan) else 0)
        assert partition(found[at]) == partition(label[at])
    group_vectors(twice, None, KMeans(), k=3)  # fewer different vectors than groups


def test_vectors_that_are_not_finite_are_refused() -> None:
    vectors = np.ones((5, 3))
    vectors[2, 1], vectors[4, 0] = np.nan, np.inf
    with pytest.raises(DataError, match=r"2 of 5 vectors hold NaN or infinity, first number 2\. Expected finite"):
        group_vectors(vectors)


# -- scores ------------------------------------------------------------------------------------------


def slow_scores(label: list[int], group: list[int]) -> dict[str, float]:
    """The formulas: Vinh et al. 2010, equation 24a for E[MI] and AMI with the arithmetic mean; Hubert and Arabie."""
    n = len(label)
    a = [label.count(u) for u in sorted(set(label))]
    b = [group.count(v) for v in sorted(set(group))]
    both = [
        [sum(x == u and y == v for x, y in zip(label, group, strict=True)) for v in sorted(set(group))]
        for u in sorted(set(label))
    ]
    information = sum(
        both[i][j] / n * math.log(n * both[i][j] / (a[i] * b[j]))
        for i in range(len(a))
        for j in range(len(b))
        if both[i][j]
    )
    expected = 0.0
    for ai, bj in itertools.product(a, b):
        for nij in range(max(1, ai + bj - n), min(ai, bj) + 1):
            chance = Fraction(math.comb(ai, nij) * math.comb(n - ai, bj - nij), math.comb(n, bj))
            expected += nij / n * math.log(n * nij / (ai * bj)) * float(chance)
    entropy = [-sum(size / n * math.log(size / n) for size in sizes) for sizes in (a, b)]
    mean = sum(entropy) / 2
    pairs = sum(math.comb(cell, 2) for row in both for cell in row)
    pairs_a, pairs_b = (sum(math.comb(size, 2) for size in sizes) for sizes in (a, b))
    by_chance = pairs_a * pairs_b / math.comb(n, 2)
    return {
        "ami": (information - expected) / (mean - expected),
        "nmi": information / mean,
        "ari": (pairs - by_chance) / ((pairs_a + pairs_b) / 2 - by_chance),
        "purity": sum(max(row[j] for row in both) for j in range(len(b))) / n,
    }


@pytest.mark.parametrize("noise", ["group", "drop", "single"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_their_formulas(noise: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    label = draw.integers(-1, 4, 60)
    group = np.where(draw.random(60) < 0.6, label, draw.integers(-1, 5, 60))
    known = [(x, y) for x, y in zip(label.tolist(), group.tolist(), strict=True) if x >= 0]
    assert 0 < sum(y < 0 for _, y in known) < len(known) < 60
    if noise == "drop":
        scored = [(x, y) for x, y in known if y >= 0]
    elif noise == "single":
        scored = [(x, y if y >= 0 else 100 + k) for k, (x, y) in enumerate(known)]
    else:
        scored = known
    found = agreement(label, group, noise)
    expected = slow_scores([x for x, _ in scored], [y for _, y in scored])
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["groups"] == len({y for _, y in known if y >= 0})
    assert found["classes"] == len({x for x, _ in known})
    assert found["noise"] == pytest.approx(sum(y < 0 for _, y in known) / len(known))


def test_all_noise_scores_nothing() -> None:
    label = np.arange(30) % 3
    for noise in ("group", "drop", "single"):
        scores = agreement(label, np.full(30, NOISE), noise)
        assert scores["ami"] == pytest.approx(0, abs=1e-9), noise
        assert (scores["groups"], scores["noise"]) == (0, 1)
    assert agreement(np.full(3, -1), np.zeros(3, int))["ami"] == 0


# -- the metric --------------------------------------------------------------------------------------


def table_of(works: dict[str, tuple[np.ndarray, np.ndarray]]) -> pa.Table:
    """Works' vectors and labels, mixed up, as Measure steps give them."""
    vectors = np.concatenate([vectors for vectors, _ in works.values()]).astype(np.float32)
    label = np.concatenate([label for _, label in works.values()]).astype(np.int32)
    group = np.repeat(np.array(list(works), object), [len(label) for _, label in works.values()])
    order = np.random.default_rng(9).permutation(len(label))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors[order].reshape(-1)), vectors.shape[1])
    columns = {"label": label[order], "group": group[order], "key": [f"face {at}" for at in order], "vector": lists}
    table = pa.table(columns)
    return pa.concat_tables([table[:7], table[7:]])


WORKS = {
    "Arisa": blobs(80, 4, 12, 0.5, seed=1),
    "漫画/..": blobs(60, 3, 12, 8.0, seed=2),
    "one class": (blobs(40, 1, 12, 0.5)[0], np.zeros(40, int)),
    "few": blobs(12, 3, 12, 0.5),
}


@pytest.mark.slow
def test_works_are_grouped_on_their_own() -> None:
    table = table_of(WORKS)
    metric = Clusters("vector", "hdbscan", SMALL, Hdbscan(5), seed=3, map=True)
    found = metric(table, ())
    works = np.array(table["group"].to_pylist())
    for work, key in (("Arisa", "Arisa"), ("漫画/..", "漫画_")):
        at = np.flatnonzero(works == work)
        vectors = np.array(table["vector"].to_pylist(), np.float32)[at]
        group = group_vectors(vectors, SMALL, Hdbscan(5), 3)
        assert (found["hdbscan_group"][at] == group).all()
        for name, value in agreement(table["label"].to_numpy()[at], group).items():
            assert found[f"hdbscan_{name}/{key}"] == value
        assert np.isfinite(found["hdbscan_map"][at]).all()
    assert found["hdbscan_ami"] == pytest.approx((found["hdbscan_ami/Arisa"] + found["hdbscan_ami/漫画_"]) / 2)
    left_out = np.isin(works, ["one class", "few"])
    assert (found["hdbscan_group"][left_out] == LEFT_OUT).all()
    assert np.isnan(found["hdbscan_map"][left_out]).all()
    counts = [found[f"hdbscan_{name}"] for name in ("works", "works_left_out", "samples_left_out")]
    assert counts == [2, 2, 52]
    assert all(type(value) is float for value in found.values() if not isinstance(value, np.ndarray))


def test_without_a_work_that_counts_there_are_no_scores() -> None:
    found = Clusters("vector", "hdbscan")(table_of({"few": WORKS["few"], "one class": WORKS["one class"]}), ())
    assert "hdbscan_ami" not in found
    assert found["hdbscan_works"] == 0
    assert (found["hdbscan_group"] == LEFT_OUT).all()
    assert len(Clusters("vector", "hdbscan")(table_of(WORKS)[:0], ())["hdbscan_group"]) == 0


def test_k_is_the_number_of_classes_of_the_work() -> None:
    found = Clusters("vector", "kmeans", None, KMeans())(table_of(WORKS), ())
    assert (found["kmeans_groups/Arisa"], found["kmeans_groups/漫画_"]) == (4, 3)
    assert found["kmeans_ami/Arisa"] == pytest.approx(1)


def test_unknown_labels_are_grouped_but_not_scored() -> None:
    vectors, label = WORKS["Arisa"]
    half = table_of({"Arisa": (vectors, np.where(np.arange(80) % 2, label, -1))})
    found = Clusters("vector", "hdbscan", None)(half, ())
    assert (found["hdbscan_group"] >= NOISE).all()
    assert found["hdbscan_ami"] == pytest.approx(1)


def test_what_cannot_be_grouped_is_said() -> None:
    table = table_of(WORKS)
    with pytest.raises(DataError, match=r"no column 'embedding'.*label, group, key, vector.*with_columns"):
        Clusters("embedding", "hdbscan")(table, ())
    vectors, label = WORKS["Arisa"]
    vectors = vectors.copy()
    vectors[5, 0] = np.nan
    with pytest.raises(DataError, match=r"'vector' of 1 of 80 samples hold NaN or infinity, first face 5\."):
        Clusters("vector", "hdbscan")(table_of({"Arisa": (vectors, label)}), ())


def test_keys_of_works_differ_and_are_no_paths() -> None:
    assert work_keys(["b/c", "b.c.", "", "..", "b_c"]) == {
        "": "_",
        "..": "_ 2",
        "b.c.": "b.c",
        "b/c": "b_c",
        "b_c": "b_c 2",
    }


def test_settings_are_values() -> None:
    metric = Clusters("vector", "hdbscan", Umap(8), Dbscan(), noise="drop")
    assert pickle.loads(pickle.dumps(metric)) == metric  # noqa: S301
    assert decoded(encoded(metric)) == metric
    other = Clusters("vector", "hdbscan", Umap(8), Dbscan(min_samples=6), noise="drop")
    assert described(metric, str) != described(other, str)
