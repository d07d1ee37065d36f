"""Samples to batches: the data set of a step's rows, decoded ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from mvray.data.clips import ClipDataset
from mvray.data.dataset import SampleDataset
from mvray.data.pictures import PictureDataset
from mvray.data.readers.base import FileSource
from mvray.experiment import Clips

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from mvray.data.columns import ColumnReader
    from mvray.experiment import Data


def dataset(
    data: Data,
    rows: pa.Table,
    columns: Mapping[str, ColumnReader] | None = None,
    *,
    seed: int = 0,
    train: bool = False,
    targets: Sequence[str] = (),
) -> SampleDataset:
    """The samples of ``rows`` as ``data`` says: clips of videos, or pictures, with these targets."""
    if isinstance(data.source, FileSource):
        data.source.expect(rows)
    options = {"seed": seed, "train": train, "max_bad_fraction": data.max_bad_fraction, "targets": targets}
    if isinstance(data.pictures, Clips):
        return ClipDataset(data.source, rows, data.pictures, columns, **options)
    return PictureDataset(data.source, rows, data.pictures, columns, **options)


def collate(samples: Sequence[Mapping[str, np.ndarray]], pin: bool = False) -> dict[str, Tensor]:
    """Samples stacked to tensors, in page-locked memory where ``pin``."""
    batch = {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}
    return {name: tensor.pin_memory() for name, tensor in batch.items()} if pin else batch


def readable_samples(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
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
            ahead.append((len(rows), pool.submit(_batch_of, samples, pin)))
            while len(ahead) > 1 and sum(count for count, _ in ahead) > 4 * workers + len(rows):
                yield ahead.popleft()[1].result()
        while ahead:
            yield ahead.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batch_of(samples: Sequence[Future[dict[str, np.ndarray]]], pin: bool) -> dict[str, Tensor]:
    return collate([sample.result() for sample in samples], pin)
