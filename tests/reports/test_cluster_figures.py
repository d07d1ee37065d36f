"""Pictures of groups: what is chosen to be seen, and that it is seen where it belongs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mvray.reports import cluster_figures as figures

pytestmark = pytest.mark.slow  # pictures, half a second each

NAMES = [f"character {k}" for k in range(30)]
STRANGE = r"漫画の人 $\frac{1}$ \x"


def opened(png: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    return np.asarray(picture.convert("RGB"))


def scattered(samples: int, groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Places around as many middles, and which; every tenth is noise."""
    rand = np.random.default_rng(seed)
    group_N = rand.integers(0, groups, samples)
    places_N2 = 10 * rand.normal(size=(groups, 2))[group_N] + rand.normal(size=(samples, 2))
    return places_N2, np.where(np.arange(samples) % 10, group_N, -1)


# -- the map -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "groups"), [(400, 9), (30, 3), (2000, 60), (1, 1)])
def test_faces_on_the_map_lie_apart_and_in_different_groups(samples: int, groups: int) -> None:
    places, group = scattered(samples, groups)
    group[-1] = 0
    shown = figures.on_map(places, group, most=20)
    at = figures._in_square(places)[shown]
    gaps = np.abs(at[:, None] - at[None]).max(2) + np.eye(len(shown))
    assert gaps.min() > figures.FACE
    assert 0 < len(shown) <= 20
    assert len(set(shown)) == len(shown)
    assert (group[shown] >= 0).all()
    seen = len(set(group[shown].tolist()))
    assert seen >= min(groups, 8)


def test_a_small_group_is_seen_beside_large_ones() -> None:
    rand = np.random.default_rng(0)
    places = np.concatenate([rand.normal(size=(500, 2)), [[30.0, 30.0]]])
    group = np.array([0] * 500 + [1])
    assert 500 in figures.on_map(places, group, most=5)


def test_nothing_but_noise_has_no_faces() -> None:
    assert figures.on_map(np.zeros((5, 2)), np.full(5, -1)) == []


@pytest.mark.parametrize(("label", "group"), [(-1, -1), (0, 0), (-1, 0)])
def test_maps_of_hardly_anything_are_drawn(label: int, group: int) -> None:
    for samples in (1, 2):
        given = np.full(samples, label), np.full(samples, group)
        assert opened(figures.group_map(np.zeros((samples, 2)), *given, NAMES, {}, STRANGE)).size > 0


# -- bars ----------------------------------------------------------------------------------------


def test_bars_without_a_work_below_zero_or_with_strange_names_are_drawn() -> None:
    values = {STRANGE: {STRANGE: -0.05, "b": 0.0}, "one": {"b": 0.4}, "none": {}}
    assert opened(figures.work_bars(values, {STRANGE: -0.02, "one": 0.4}, STRANGE, STRANGE)).size > 0
    assert opened(figures.work_bars({}, {}, "nothing", "AMI")).size > 0


# -- lines ---------------------------------------------------------------------------------------


def test_lines_show_a_group_in_proportion() -> None:
    label = np.array([3] * 30 + [5] * 9 + [-1] + [7] * 4)
    group = np.array([0] * 40 + [-1] * 4)
    found, noise = figures.lines(label, group, NAMES, faces=8)
    assert found.words == "group 0: 40 faces\ncharacter 3\n75% of the group"
    assert [int(label[row]) for row in found.rows] == [3, 3, 3, 3, 3, 3, 5, -1]
    assert {int(label[row]) for row in found.strangers} == {5, -1}
    assert noise.words == "noise: 4 faces\nof 1 character"
    assert set(noise.rows) == {40, 41, 42, 43}
    assert not noise.strangers


def test_of_many_groups_the_largest_and_the_most_mixed_are_shown() -> None:
    sizes = [50 - 2 * k for k in range(20)]
    group = np.repeat(np.arange(20), sizes)
    label = np.repeat(np.arange(20), sizes)
    for mixed in (12, 17):
        at = np.flatnonzero(group == mixed)
        label[at[: len(at) // 2]] = 25
    found = [line.words.partition(":")[0] for line in figures.lines(label, group, NAMES, groups=6)]
    assert found[:3] == ["group 0", "group 1", "group 2"]
    assert {"group 12", "group 17"} <= set(found[3:])
    assert len(found) == 6


def test_unknown_characters_have_words_too() -> None:
    assert figures.lines(np.full(3, -1), np.zeros(3, int), NAMES)[0].words == "group 0: 3 faces\nno known character"
    assert figures.lines(np.zeros(0, int), np.zeros(0, int), NAMES) == []
