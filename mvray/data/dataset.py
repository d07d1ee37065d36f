"""Rows of an index as samples and batches, whatever a sample is: pictures.py, clips.py.

What happens to a sample is a pure function of (seed, epoch, row): it comes out the same on any rank,
in any batch, after any restart. Shapes: B samples, C channels, T frames, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mvray.data.decoding import Unreadable
from mvray.data.geometry import View, sample_key
from mvray.data.rows import labels_of, target_locations
from mvray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from mvray.data.columns import ColumnReader


class SampleDataset(ABC):
    """Samples of one split, as dicts of arrays; map-style: ``dataset[row, epoch]``.

    Beside what `sample` gives, ``label``, ``index`` (the row) and ``draw`` (`sample_key`) are int64, ``labels`` (K
    float32 of 0 and 1) is there where samples have several labels, and ``columns`` are joined by key in the same
    geometry. ``targets`` names the source's further pictures that `sample` gives, too. Augments only where ``train``.

    A sample that cannot be decoded is replaced by the next row that can; ``bad`` (int64) is then the
    row that was asked for, else -1, and ``failures`` has that row's reason. Evaluation must leave such
    samples out; training may use them. A sample without a value in a column (what made the column
    could not decode it either) is treated the same. Raises DataError where no row can be decoded, or
    more than ``max_bad_fraction`` have no value.
    """

    kind = "pictures"

    def __init__(
        self,
        rows: pa.Table,
        columns: Mapping[str, ColumnReader] | None = None,
        *,
        seed: int = 0,
        train: bool = False,
        max_bad_fraction: float = 0.01,
        targets: Sequence[str] = (),
    ) -> None:
        self._seed, self._train = seed, train
        self._targets = {name: target_locations(rows, name) for name in targets}
        self._labels_NK = labels_of(rows)
        self._locations, self._parts = rows["location"].to_pylist(), rows["part"].to_pylist()
        self._labels = rows["label"].to_numpy()
        keys = rows["key"].combine_chunks()
        self._columns = {
            name: (column, column.lookup(keys, max_bad_fraction)) for name, column in (columns or {}).items()
        }
        self.failures: dict[int, str] = {
            int(row): f"has no {name!r}"
            for name, (_, positions) in self._columns.items()
            for row in (positions < 0).nonzero()[0]
        }
        for name, locations in self._targets.items():
            self.failures |= {row: f"has no {name!r}" for row, location in enumerate(locations) if not location}

    def __len__(self) -> int:
        return len(self._locations)

    def location(self, row: int) -> str:
        """Where the sample of a row lies."""
        return str(self._locations[row])

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of a sample in pixels."""

    @abstractmethod
    def sample(self, row: int, key: int) -> tuple[dict[str, np.ndarray], View]:
        """The pixels of a row and its targets under their names, and which part of it that is. Raises Unreadable.

        ``key`` draws the augmentation; without ``train`` there is none.
        """

    def __getitem__(self, at: tuple[int, int]) -> dict[str, np.ndarray]:
        requested, epoch = int(at[0]), int(at[1])
        key = sample_key(self._seed, epoch, requested)
        for step in range(len(self)):
            row = (requested + step) % len(self)
            if row in self.failures:
                continue
            try:
                sample, view = self.sample(row, key)
            except Unreadable as error:
                self.failures[row] = error.reason
                continue
            numbers = {"label": self._labels[row], "index": row, "draw": key, "bad": requested if step else -1}
            sample |= {name: np.asarray(number, np.int64) for name, number in numbers.items()}
            if self._labels_NK is not None:
                sample["labels"] = self._labels_NK[row].astype(np.float32)
            for column, positions in self._columns.values():
                sample |= column.sample(positions[row], *self.size, view)
            return sample
        first = next(iter(self.failures.items()))
        raise DataError(
            f"None of {len(self)} {self.kind} can be decoded, first {self._locations[first[0]]}: {first[1]}. "
            "Check the data set's files."
        )
