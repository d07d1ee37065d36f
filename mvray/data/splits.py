"""Which split each sample is in: shares or counts, each class in proportion, drawn by a hash of key and seed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from mvray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

SPLITS = ("train", "validation", "test")


def proportional_counts(total: int, sizes: Sequence[int]) -> list[int]:
    """``total`` in proportion to ``sizes``, in whole numbers that add up to it (largest remainder)."""
    exact = [size * total / max(1, sum(sizes)) for size in sizes]
    counts = [int(share) for share in exact]
    for i in sorted(range(len(sizes)), key=lambda i: counts[i] - exact[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts


def assign_splits(
    keys: Sequence[str], classes: Sequence[Any], sizes: tuple[float, ...], seed: int, all_train: bool = False
) -> list[str]:
    """The split of each sample, "" for none.

    A sample's place in its class's draw is a hash of its key and the seed, so neither the order of
    the files nor other samples change it. Raises DataError where counts ask for more than there is.
    With ``all_train`` each class gives its first sample to training before the rest is shared out; where
    that is more than training would have, it is taken from the test samples first.
    """
    counts = _counts(len(keys), sizes)
    left: dict[Any, list[int]] = defaultdict(list)
    for i, name in enumerate(classes):
        left[name].append(i)
    for members in left.values():
        members.sort(key=lambda i: hashlib.blake2b(f"{seed}/{keys[i]}".encode(), digest_size=8).digest())
    splits = [""] * len(keys)
    names = sorted(left)
    if all_train:
        counts = _with_all(counts, len(names), len(keys))
    # In proportion to what is left: the shares of later splits stay the same, and never exceed it.
    for split, count in zip(SPLITS, counts, strict=True):
        first = int(all_train and split == "train")
        free = proportional_counts(count - first * len(names), [len(left[name]) - first for name in names])
        for name, taken in zip(names, (first + some for some in free), strict=True):
            for i in left[name][:taken]:
                splits[i] = split
            del left[name][:taken]
    return splits


def _with_all(counts: list[int], classes: int, samples: int) -> list[int]:
    """``counts`` with at least one training sample for each class."""
    train, validation, test = counts
    train = max(train, classes)
    validation = min(validation, samples - train)
    return [train, validation, min(test, samples - train - validation)]


def _counts(samples: int, sizes: tuple[float, ...]) -> list[int]:
    fractions = [round(size * 1_000_000) for size in sizes if size <= 1]
    rounded = proportional_counts(samples, [*fractions, max(0, 1_000_000 - sum(fractions))])
    rest = iter(rounded)
    counts = [next(rest) if size <= 1 else int(size) for size in sizes]
    if sum(counts) > samples:
        listing = ", ".join(f"{count} {split}" for count, split in zip(counts, SPLITS, strict=True))
        raise DataError(
            f"Found {samples} samples; the splits ask for {sum(counts)} ({listing}). "
            "Choose smaller splits, or shares such as 0.7, 0.1 and 0.2."
        )
    return counts
