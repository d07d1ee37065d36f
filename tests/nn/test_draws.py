"""Draws are random enough, belong to their key, and do not depend on the batch."""

import numpy as np
import pytest
import torch
from scipy import stats

from mvray.nn import draws

KEYS_B = torch.arange(2000) * 7919 - 3_000_000  # keys as alike as they get, negative ones too


def slow_words(key: int, stream: int, count: int) -> list[int]:
    """splitmix64 in Python's integers, from its authors' reference: state += golden, then mix."""
    golden, ones = 0x9E3779B97F4A7C15, 2**64 - 1

    def mixed(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ones
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ones
        return z ^ (z >> 31)

    state = mixed((mixed((key + golden) & ones) + stream * golden) & ones)
    return [mixed((state + (i + 1) * golden) & ones) for i in range(count)]


@pytest.mark.parametrize("key", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_is_splitmix64(key: int) -> None:
    words = slow_words(key, 7, 5)
    found = draws.uniform(torch.tensor([key]), 7, (5,))[0]
    assert found.tolist() == [(word >> 40) / 2**24 for word in words]
    octets = b"".join(word.to_bytes(8, "little") for word in words)
    assert draws.noise(torch.tensor([key]), 7, (3, 13)).numpy().tobytes() == octets[:39]


@pytest.mark.parametrize("stream", [0, 101, 2**40])
def test_uniform_numbers_are_uniform(stream: int) -> None:
    values = draws.uniform(KEYS_B, stream, (50,)).flatten().numpy()
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / len(values))
    assert abs(values.var() - 1 / 12) < 0.001
    assert stats.chisquare(np.histogram(values, 256, (0, 1))[0]).pvalue > 1e-3


def test_noise_is_uniform_in_every_octet() -> None:
    octets = draws.noise(KEYS_B, 3, (48,)).numpy().reshape(-1, 8)
    for column in octets.T:
        assert stats.chisquare(np.bincount(column, minlength=256)).pvalue > 1e-3


def test_normal_numbers_are_normal() -> None:
    values = draws.normal(KEYS_B, 5, (10,)).flatten().numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-3


def test_streams_keys_and_counters_are_independent() -> None:
    numbers = draws.uniform(KEYS_B, 1, (4,)).numpy()
    others = draws.uniform(KEYS_B, 2, (4,)).numpy()
    shifted = draws.uniform(KEYS_B + 1, 1, (4,)).numpy()
    together = np.concatenate((numbers, others, shifted), axis=1)
    correlation = np.corrcoef(together, rowvar=False) - np.eye(12)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(len(KEYS_B))
    assert np.abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 4.5 / np.sqrt(numbers.size)
    grid = np.histogram2d(numbers[:, 0], others[:, 0], 16, ((0, 1), (0, 1)))[0]
    assert stats.chisquare(grid.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("draw", [draws.uniform, draws.noise, draws.normal])
def test_a_sample_is_treated_alike_in_any_batch(draw) -> None:
    keys = KEYS_B[:64]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    whole = draw(keys, 9, (3, 5))
    assert whole.shape == (64, 3, 5)
    assert torch.equal(draw(keys[order], 9, (3, 5)), whole[order])
    assert torch.equal(torch.cat([draw(part, 9, (3, 5)) for part in keys.split(7)]), whole)


def test_scalar_draws_have_one_number_per_sample() -> None:
    assert draws.uniform(KEYS_B, 0).shape == (2000,)
    assert draws.normal(KEYS_B, 0).shape == (2000,)


@pytest.mark.gpu
def test_equal_on_the_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    for draw in (draws.uniform, draws.noise):
        assert torch.equal(draw(KEYS_B.cuda(), 4, (33,)).cpu(), draw(KEYS_B, 4, (33,)))
