"""From rows of an index to batches: decode, crop, mirror, resize, join generated columns.

What happens to a sample is a pure function of (seed, epoch, row): it comes out the same on any rank,
in any batch, after any restart. Shapes: B samples, C channels, H x W pixels, h x w cells of a map.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from mvray.data.quarantine import Unreadable
from mvray.data.sources import PictureSource, pixels
from mvray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from mvray.data.columns import Column
    from mvray.job import Pictures
    from mvray.source import Source

_64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_GEOMETRY = -1  # the stream of the sample's key that is used here; nn/draws.py has those from 0 on


def _mixed(word: int) -> int:
    """splitmix64's output function (Steele, Lea, Flood 2014)."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _64
    return word ^ (word >> 31)


def sample_key(seed: int, epoch: int, row: int) -> int:
    """The sample's own random key for this epoch: an int64, ``batch["draw"]``."""
    word = 0
    for part in (seed, epoch, row):
        word = _mixed((word + _GOLDEN + part) & _64)
    return word - 2**64 if word >= 2**63 else word


def _uniform(key: int, count: int) -> list[float]:
    """Numbers in [0, 1) that belong to ``key``, as nn/draws.py makes them."""
    start = _mixed((_mixed((key + _GOLDEN) & _64) + _GEOMETRY * _GOLDEN) & _64)
    return [(_mixed((start + i * _GOLDEN) & _64) >> 11) * 2.0**-53 for i in range(1, count + 1)]


@dataclass(frozen=True)
class View:
    """The part of a picture that is seen, in shares of its width and height, and whether mirrored."""

    x0: float = 0.0
    y0: float = 0.0
    x1: float = 1.0
    y1: float = 1.0
    mirrored: bool = False

    @classmethod
    def drawn(cls, pictures: Pictures, key: int) -> View:
        """A crop of the picture's own proportions, ``pictures.crop_scale`` of its area, perhaps mirrored."""
        mirror, scale, x, y = _uniform(key, 4)
        least, most = pictures.crop_scale
        side = math.sqrt(least + scale * (most - least))
        x0, y0 = x * (1 - side), y * (1 - side)
        return cls(x0, y0, x0 + side, y0 + side, pictures.flip and mirror < 0.5)


class PictureDataset:
    """Samples of one split, as dicts of arrays; map-style: ``dataset[row, epoch]``.

    ``image`` is C x H x W uint8, stretched to ``pictures``' size; ``label``, ``index`` (the row) and
    ``draw`` (`sample_key`) are int64; ``columns`` are joined by key under their names, maps as H x W
    float32 in 0..1 in the same geometry as the image. Augments only where ``train``.

    A sample that cannot be decoded is replaced by the next row that can; ``bad`` (int64) is then the
    row that was asked for, else -1, and ``failures`` has that row's reason. Evaluation must leave such
    samples out; training may use them. A sample without a value in a column (what made the column
    could not decode it either) is treated the same. Raises DataError where no row can be decoded, or
    more than ``max_bad_fraction`` have no value.
    """

    def __init__(
        self,
        source: Source,
        rows: pa.Table,
        pictures: Pictures,
        columns: Mapping[str, Column] | None = None,
        *,
        seed: int = 0,
        train: bool = False,
        max_bad_fraction: float = 0.01,
    ) -> None:
        self._source, self._pictures, self._seed, self._train = source, pictures, seed, train
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

    def __getitem__(self, at: tuple[int, int]) -> dict[str, np.ndarray]:
        asked, epoch = int(at[0]), int(at[1])
        key = sample_key(self._seed, epoch, asked)
        view = View.drawn(self._pictures, key) if self._train else View()
        for step in range(len(self)):
            row = (asked + step) % len(self)
            if row in self.failures:
                continue
            try:
                image = self._image(row, view)
            except Unreadable as error:
                self.failures[row] = error.reason
                continue
            numbers = {"label": self._labels[row], "index": row, "draw": key, "bad": asked if step else -1}
            return {
                "image": image,
                **{name: np.asarray(number, np.int64) for name, number in numbers.items()},
                **{name: self._value(column, found[row], view) for name, (column, found) in self._columns.items()},
            }
        first = next(iter(self.failures.items()))
        raise DataError(
            f"None of {len(self)} pictures can be decoded, first {self._locations[first[0]]}: {first[1]}. "
            "Check the data set's files."
        )

    def _image(self, row: int, view: View) -> np.ndarray:
        height, width, channels = self._pictures.height, self._pictures.width, self._pictures.channels
        location, part = self._locations[row], self._parts[row]
        if isinstance(self._source, PictureSource):
            least = math.ceil(height / (view.y1 - view.y0)), math.ceil(width / (view.x1 - view.x0))
            read_HWC = self._source.read_sized(location, part, *least, grey=channels == 1)
        else:
            read_HWC = self._source.read(location, part)
        if channels == 1 and read_HWC.shape[2] == 3:
            read_HWC = pixels(Image.fromarray(read_HWC).convert("L"))
        if read_HWC.shape[2] == 1:
            read_HWC = seen(read_HWC[..., 0], height, width, view)[..., None]
        else:
            read_HWC = seen(read_HWC, height, width, view)
        return np.ascontiguousarray(np.broadcast_to(read_HWC.transpose(2, 0, 1), (channels, height, width)))

    def _value(self, column: Column, position: int, view: View) -> np.ndarray:
        value = column[position]
        if not column.is_map:
            return value
        map_hw = value.astype(np.float32)
        if value.dtype == np.uint8:
            map_hw /= 255
        return np.ascontiguousarray(seen(map_hw, self._pictures.height, self._pictures.width, view))


def seen(array: np.ndarray, height: int, width: int, view: View) -> np.ndarray:
    """The part ``view`` of a picture (uint8, with 1 or 3 channels) or map (float32), height x width.

    Bilinear; where it gets smaller, over all the pixels that fall together. A map that gets larger
    equals torch's interpolate(align_corners=False) of it.
    """
    if array.shape[:2] != (height, width) or view.x1 - view.x0 < 1:
        image = Image.fromarray(array)
        box = (view.x0 * image.width, view.y0 * image.height, view.x1 * image.width, view.y1 * image.height)
        gap = None if array.dtype == np.float32 else 2.0
        array = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box, reducing_gap=gap))
    return array[:, ::-1] if view.mirrored else array


def collate(samples: Sequence[Mapping[str, np.ndarray]], pin: bool = False) -> dict[str, Tensor]:
    """Samples stacked to tensors, in page-locked memory where ``pin``."""
    batch = {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}
    return {name: tensor.pin_memory() for name, tensor in batch.items()} if pin else batch


def loader(
    dataset: PictureDataset,
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
