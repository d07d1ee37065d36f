"""Rows of an index as samples and batches, whatever a sample is: pictures.py, clips.py.

What happens to a sample is a pure function of (seed, epoch, row): it comes out the same on any rank,
in any batch, after any restart. Shapes: B samples, C channels, T frames, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from mvray.data.quarantine import Unreadable
from mvray.data.view import View, sample_key
from mvray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from mvray.data.columns import Joined
    from mvray.job import Data


class SampleDataset(ABC):
    """Samples of one split, as dicts of arrays; map-style: ``dataset[row, epoch]``.

    Beside what `sample` gives, ``label``, ``index`` (the row) and ``draw`` (`sample_key`) are int64, and
    ``columns`` are joined by key in the same geometry. Augments only where ``train``.

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
        columns: Mapping[str, Joined] | None = None,
        *,
        seed: int = 0,
        train: bool = False,
        max_bad_fraction: float = 0.01,
    ) -> None:
        self._seed, self._train = seed, train
        self._locations, self._parts = rows["location"].to_pylist(), rows["part"].to_pylist()
        self._labels = rows["label"].to_numpy()
        keys = rows["key"].combine_chunks()
        self._columns = {
            name: (column, column.lookup(keys, max_bad_fraction)) for name, column in (columns or {}).items()
        }
        self.failures: dict[int, str] = {
            int(row): f"has no {name!r}"
            for name, (_, found) in self._columns.items()
            for row in (found < 0).nonzero()[0]
        }

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
        """The pixels of a row under their name, and which part of it that is. Raises Unreadable.

        ``key`` draws the augmentation; without ``train`` there is none.
        """

    def __getitem__(self, at: tuple[int, int]) -> dict[str, np.ndarray]:
        asked, epoch = int(at[0]), int(at[1])
        key = sample_key(self._seed, epoch, asked)
        for step in range(len(self)):
            row = (asked + step) % len(self)
            if row in self.failures:
                continue
            try:
                sample, view = self.sample(row, key)
            except Unreadable as error:
                self.failures[row] = error.reason
                continue
            numbers = {"label": self._labels[row], "index": row, "draw": key, "bad": asked if step else -1}
            sample |= {name: np.asarray(number, np.int64) for name, number in numbers.items()}
            for column, found in self._columns.values():
                sample |= column.sample(found[row], *self.size, view)
            return sample
        first = next(iter(self.failures.items()))
        raise DataError(
            f"None of {len(self)} {self.kind} can be decoded, first {self._locations[first[0]]}: {first[1]}. "
            "Check the data set's files."
        )


def dataset(
    data: Data,
    rows: pa.Table,
    columns: Mapping[str, Joined] | None = None,
    *,
    seed: int = 0,
    train: bool = False,
) -> SampleDataset:
    """The samples of ``rows`` as ``data`` says: clips of videos, or pictures."""
    from mvray.data.sources import FileSource
    from mvray.job import Clips

    if isinstance(data.source, FileSource):
        data.source.expect(rows)
    given = {"seed": seed, "train": train, "max_bad_fraction": data.max_bad_fraction}
    if isinstance(data.pictures, Clips):
        from mvray.data.clips import ClipDataset

        return ClipDataset(data.source, rows, data.pictures, columns, **given)
    from mvray.data.pictures import PictureDataset

    return PictureDataset(data.source, rows, data.pictures, columns, **given)


def collate(samples: Sequence[Mapping[str, np.ndarray]], pin: bool = False) -> dict[str, Tensor]:
    """Samples stacked to tensors, in page-locked memory where ``pin``."""
    batch = {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}
    return {name: tensor.pin_memory() for name, tensor in batch.items()} if pin else batch


def readable(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The samples of a batch that could be decoded. On the CPU: a GPU would have to be waited for."""
    kept = batch["bad"] < 0
    return batch if bool(kept.all()) else {name: values[kept] for name, values in batch.items()}


def loader(
    dataset: SampleDataset,
    order: Iterable[Sequence[int] | np.ndarray],
    epoch: int = 0,
    workers: int = 2,
    pin: bool = False,
) -> Generator[dict[str, Tensor], None, None]:
    """The batches of ``order`` (lists of rows), in order, decoded ahead by ``workers`` threads.

    Threads, not processes: Pillow releases the interpreter lock while it works, so threads decode as
    fast as torch's DataLoader with as many processes (tests/benchmarks/bench_loader.py), start at
    once, and share the memory of the columns. An estimated 0.3 ms of a sample hold the lock, which
    bounds one process to some 3,000 samples per second. With 0 workers the caller's thread decodes.
    Closing the generator ends the threads.
    """
    if workers == 0:
        for rows in order:
            yield collate([dataset[row, epoch] for row in rows], pin)
        return
    ahead: deque[tuple[int, Future[dict[str, Tensor]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for rows in order:
            samples = [pool.submit(dataset.__getitem__, (row, epoch)) for row in rows]
            # Started after its samples are, by whichever thread is free: it never waits for itself.
            ahead.append((len(rows), pool.submit(_collated, samples, pin)))
            while len(ahead) > 1 and sum(count for count, _ in ahead) > 4 * workers + len(rows):
                yield ahead.popleft()[1].result()
        while ahead:
            yield ahead.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _collated(samples: Sequence[Future[dict[str, np.ndarray]]], pin: bool) -> dict[str, Tensor]:
    return collate([sample.result() for sample in samples], pin)
