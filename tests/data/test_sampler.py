"""Orders are pure functions of (seed, epoch, position), the same set whatever the number of ranks."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from mvray.data import sampler


def rows(**settings: object) -> list[list[int]]:
    return [batch.tolist() for batch in sampler.order(**settings)]


def test_an_epoch_is_a_permutation_without_its_incomplete_last_batch() -> None:
    found = rows(samples=103, batch_size=10, seed=1, epoch=0)
    assert len(found) == sampler.batches(103, 10) == 10
    assert len(set(chain(*found))) == 100
    assert set(chain(*found)) <= set(range(103))
    assert found != rows(samples=103, batch_size=10, seed=1, epoch=1)
    assert found != rows(samples=103, batch_size=10, seed=2, epoch=0)
    assert found == rows(samples=103, batch_size=10, seed=1, epoch=0)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_batch_is_the_same_set_on_any_number_of_ranks(world: int) -> None:
    alone = rows(samples=50, batch_size=8, seed=5, epoch=2)
    ranks = [rows(samples=50, batch_size=8, seed=5, epoch=2, rank=rank, world=world) for rank in range(world)]
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert sorted(chain(*parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("position", [0, 1, 5, 6])
def test_it_goes_on_in_the_middle_of_an_epoch(position: int) -> None:
    whole = rows(samples=50, batch_size=8, seed=5, epoch=2, rank=1, world=2)
    assert rows(samples=50, batch_size=8, seed=5, epoch=2, rank=1, world=2, position=position) == whole[position:]


def test_less_than_a_batch_is_one_batch() -> None:
    found = [rows(samples=5, batch_size=8, rank=rank, world=2) for rank in range(2)]
    assert sampler.batches(5, 8) == 1
    assert [len(parts) for parts in found] == [1, 1]
    assert sorted(chain(*found[0], *found[1])) == list(range(5))


def test_weights_draw_with_replacement() -> None:
    weights = np.array([0.0, 1.0, 3.0] * 1000)
    found = list(chain(*rows(samples=3000, batch_size=10, seed=1, weights=weights)))
    assert len(found) == 3000
    assert len(set(found)) < 3000
    counts = np.bincount(np.array(found) % 3, minlength=3)
    assert counts[0] == 0
    assert counts[2] / counts[1] == pytest.approx(3, rel=0.15)
    ranks = [rows(samples=3000, batch_size=10, seed=1, weights=weights, rank=rank, world=2) for rank in range(2)]
    assert sorted(chain(*ranks[0], *ranks[1])) == sorted(found)


@pytest.mark.parametrize(("samples", "world"), [(10, 1), (10, 3), (7, 4), (2, 4), (0, 2)])
def test_evaluation_takes_every_sample_once_in_order(samples: int, world: int) -> None:
    ranks = [
        list(chain(*(b.tolist() for b in sampler.in_order(samples, 4, rank=r, world=world)))) for r in range(world)
    ]
    assert list(chain(*ranks)) == list(range(samples))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
