"""Batches of P classes with K samples each, as the order of an epoch.

Losses that compare the samples of a batch need pairs of the same class in it; where classes differ in
size, a class also comes as often as any other (Hermans et al. 2017, "In Defense of the Triplet
Loss", arXiv 1703.07737, section 2: PK batches).
"""

from __future__ import annotations

import numpy as np

from mvray.errors import SettingError

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]


def order(label_N: Rows, batch_size: int, per_class: int, *, seed: int = 0, epoch: int = 0, world: int = 1) -> Rows:
    """Rows of an epoch of ``len(label_N) // batch_size`` batches, batch after batch; negative labels are left out.

    A batch has ``batch_size // per_class`` classes with ``per_class`` samples each; where it does not
    divide, one more class fills the rest. Classes, and the samples of a class, are taken in turn from
    shuffled stacks, so all come equally often, give or take one, and nothing comes twice in a batch while
    there is another: only a class of less than ``per_class`` samples repeats some, and fewer classes
    than a batch has room for come again. Each of ``world`` ranks takes every ``world``-th row of a
    batch; they are laid so that it gets whole classes, as far as these divide. Depends on nothing
    but the arguments. Raises SettingError where a batch has no room for ``per_class`` samples.
    """
    if not 0 < per_class <= batch_size:
        raise SettingError(
            f"per_class is {per_class}, the samples of each class in a batch, but a batch has {batch_size} samples. "
            "Use a larger optim.batch_size or fewer per class."
        )
    draw = np.random.default_rng([seed, epoch, per_class])
    rows = np.argsort(label_N, kind="stable")[(label_N < 0).sum() :]
    _, starts = np.unique(label_N[rows], return_index=True)
    of_class = [_Stack(members, draw) for members in np.split(rows, starts[1:])]
    classes = _Stack(np.arange(len(of_class)), draw)
    counts = [per_class] * (batch_size // per_class) + [batch_size % per_class] * (batch_size % per_class > 0)
    batches = []
    for _ in range(max(1, len(label_N) // batch_size)):
        chosen = classes.take(len(counts))
        taken = [of_class[class_].take(count) for class_, count in zip(chosen, counts, strict=True)]
        batches.append(_shared_out(np.concatenate(taken), world))
    return np.concatenate(batches)


class _Stack:
    """Things in random order, taken from the top; shuffled anew when it is empty."""

    def __init__(self, things: Rows, draw: np.random.Generator) -> None:
        self._things, self._draw, self._left = things, draw, things[:0]

    def take(self, count: int) -> Rows:
        """The next ``count``, none twice as long as there are others."""
        taken, self._left = self._left[:count], self._left[count:]
        while len(taken) < count:
            fresh = self._draw.permutation(self._things)
            again = np.isin(fresh, taken)
            fresh = np.concatenate([fresh[~again], fresh[again]])
            missing = count - len(taken)
            taken, self._left = np.concatenate([taken, fresh[:missing]]), fresh[missing:]
        return taken


def _shared_out(batch_B: Rows, world: int) -> Rows:
    """The batch in an order of which every ``world``-th row is a piece of it that was together."""
    laid_B = np.empty_like(batch_B)
    for rank, piece in enumerate(np.array_split(batch_B, world)):
        laid_B[rank::world] = piece
    return laid_B
