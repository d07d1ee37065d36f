"""Which samples make up which batch on which rank: pure functions, so that any run can be continued."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


def batches(samples: int, batch_size: int) -> int:
    """Batches of an epoch of training. An incomplete last one is left out, unless it is the only one."""
    return max(1, samples // batch_size)


def order(
    samples: int,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
    epoch: int = 0,
    position: int = 0,
    weights: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """This rank's rows (int64) of each global batch of a training epoch, from batch ``position`` on.

    ``batch_size`` counts the samples of all ranks. The epoch's permutation depends on (seed, epoch)
    alone; batch k is the same set of samples however many ranks share it, every ``world``-th
    sample each, so their parts differ by one at most. Data smaller than a batch is one batch.
    With ``weights`` (one per sample, at least 0), samples are drawn with replacement instead; ``rows``
    are the rows of the epoch, decided elsewhere.
    """
    draw = np.random.default_rng([seed, epoch])
    if weights is not None:
        rows = draw.choice(samples, samples, p=weights / weights.sum())
    elif rows is None:
        rows = draw.permutation(samples)
    for batch in range(position, batches(samples, batch_size)):
        yield rows[batch * batch_size : (batch + 1) * batch_size][rank::world]


def in_order(samples: int, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[np.ndarray]:
    """This rank's rows for evaluation: every sample once over all ranks, in order.

    Each rank has one contiguous piece, as long as the others' or one longer, cut into batches of
    its part of ``batch_size``.
    """
    first, end = rank * samples // world, (rank + 1) * samples // world
    step = max(1, batch_size // world)
    for start in range(first, end, step):
        yield np.arange(start, min(start + step, end))
