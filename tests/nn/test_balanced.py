"""Batches of P classes with K samples each."""

from collections import Counter

import numpy as np
import pytest

from mvray.errors import SettingError
from mvray.nn import balanced

EVEN = np.repeat(np.arange(12), 10)


def batches_of(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    assert len(rows) % batch_size == 0
    return list(rows.reshape(-1, batch_size))


@pytest.mark.parametrize(("batch_size", "per_class"), [(12, 4), (24, 2), (40, 4), (10, 10), (8, 1)])
def test_a_batch_has_p_classes_with_k_different_samples_each(batch_size: int, per_class: int) -> None:
    for epoch in range(3):
        rows = balanced.order(EVEN, batch_size, per_class, epoch=epoch)
        assert len(rows) == len(EVEN) // batch_size * batch_size
        assert rows.dtype == np.int64
        for batch in batches_of(rows, batch_size):
            assert len(set(batch)) == batch_size
            assert set(Counter(EVEN[batch]).values()) == {per_class}


def test_every_sample_comes_about_as_often_where_classes_are_equal() -> None:
    counts = np.zeros(len(EVEN))
    for epoch in range(40):
        np.add.at(counts, balanced.order(EVEN, 24, 4, epoch=epoch), 1)
    assert counts.sum() == 40 * 120
    assert counts.min() >= 30
    assert counts.max() <= 50


def test_classes_come_equally_often_whatever_their_size() -> None:
    label_N = np.repeat([0, 1, 2, 3], [100, 50, 7, 3])
    rows = balanced.order(label_N, 8, 4)
    counts = Counter(label_N[rows])
    assert max(counts.values()) - min(counts.values()) <= 4
    assert {row for row in rows if label_N[row] == 3} == {157, 158, 159}
    for batch in batches_of(rows, 8):  # of three samples all come before one comes again
        of_three = Counter(row for row in batch if label_N[row] == 3)
        assert not of_three or sorted(of_three.values()) == [1, 1, 2]


def test_what_does_not_divide_is_filled_with_another_class() -> None:
    for batch in batches_of(balanced.order(EVEN, 10, 4), 10):
        assert sorted(Counter(EVEN[batch]).values()) == [2, 4, 4]


def test_fewer_classes_than_a_batch_has_room_for_come_again() -> None:
    label_N = np.repeat([0, 1], [20, 20])
    for batch in batches_of(balanced.order(label_N, 16, 2), 16):
        assert Counter(label_N[batch]) == {0: 8, 1: 8}
        assert len(set(batch)) == 16


@pytest.mark.parametrize("label_N", [np.array([0, 1]), np.array([0, 0]), np.array([0, -1, 1, 1])])
def test_a_few_samples_are_one_batch(label_N: np.ndarray) -> None:
    rows = balanced.order(label_N, len(label_N), 2)
    assert len(rows) == len(label_N)
    assert (label_N[rows] >= 0).all()


def test_each_rank_gets_whole_classes() -> None:
    for world in (2, 3):
        rows = balanced.order(EVEN, 24, 4, world=world)
        alone = balanced.order(EVEN, 24, 4)
        for batch, same in zip(batches_of(rows, 24), batches_of(alone, 24), strict=True):
            assert set(batch) == set(same)
            for rank in range(world):
                assert set(Counter(EVEN[batch[rank::world]]).values()) == {4}


def test_uneven_parts_hold_every_row_once() -> None:
    rows = balanced.order(EVEN, 20, 4, world=3)
    assert all(len(set(batch)) == 20 for batch in batches_of(rows, 20))


def test_a_pure_function_of_seed_and_epoch() -> None:
    one, same = (balanced.order(EVEN, 12, 4, seed=3, epoch=5) for _ in range(2))
    assert np.array_equal(one, same)
    for other in ({"seed": 4, "epoch": 5}, {"seed": 3, "epoch": 6}):
        assert not np.array_equal(one, balanced.order(EVEN, 12, 4, **other))


@pytest.mark.parametrize("per_class", [0, 9])
def test_a_batch_without_room_is_refused(per_class: int) -> None:
    with pytest.raises(SettingError, match=rf"per_class is {per_class}.* a batch has 8 samples"):
        balanced.order(EVEN, 8, per_class)
