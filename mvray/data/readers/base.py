"""What the readers share: sources of files, of samples that are shared out among splits, of pictures, of videos."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow.compute as pc

from mvray.data.bad_files import inspect
from mvray.data.decoding import Unreadable
from mvray.data.node_cache import fetch_once
from mvray.data.rows import target_locations, target_names
from mvray.data.splits import SPLITS, assign_splits
from mvray.data.video.ranges import Ranges
from mvray.data.video.video import Video
from mvray.errors import DataError, SettingError
from mvray.experiment import Source
from mvray.storage import Entry, Storage, s3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pyarrow as pa

    from mvray.data.video.frame_table import FrameTable

WHOLE_BYTES, BLOCK_BYTES = 16 << 20, 2 << 20
_MOST_FRAMES = 2**31 - 1  # as the column holds; broken headers say more, or more frames than the file has bytes


@dataclass(frozen=True)
class FileSource(Source):
    """A source of files, below a local folder or s3://bucket/prefix; ``root`` becomes absolute."""

    def __post_init__(self) -> None:
        if self.root:  # Ray's workers have another working folder
            object.__setattr__(self, "root", Storage(self.root).uri)

    @cached_property
    def storage(self) -> Storage:
        return self.at_root()

    def at_root(self) -> Storage:
        if not self.root:
            raise DataError(
                f"{type(self).__name__} has no root; expected the folder of the data set. Name it with --data ROOT."
            )
        return Storage(self.root)

    def listed(self, prefix: str = "") -> str:
        """The first entries of a folder, for a message."""
        names = [entry.path.rpartition("/")[2] + "/" * entry.is_dir for entry in self.storage.list(prefix)]
        more = f", and {len(names) - 8} more" if len(names) > 8 else ""
        return ", ".join(names[:8]) + more if names else "nothing"

    def bytes_of(self, location: str) -> bytes:
        with _readable():
            return self.storage.read(location)

    def expect(self, rows: pa.Table) -> None:
        """These rows of the index are read next, maybe again and again: `again` may keep their files on this node."""
        if self.root and not self.storage.is_local:
            self._sizes.update(zip(rows["location"].to_pylist(), rows["bytes"].to_pylist(), strict=True))
            for name in target_names(rows):
                sizes = pc.struct_field(rows["targets"], [name, "bytes"]).to_pylist()
                self._sizes.update(zip(target_locations(rows, name), sizes, strict=True))

    def again(self, location: str, read: Callable[[str], bytes] | None = None) -> bytes:
        """As ``bytes_of``, or ``read``; a file that is not local is fetched once per node, where it was expected."""
        get = read or self.bytes_of
        if (size := self._sizes.get(location)) is None:
            return get(location)
        return fetch_once(f"{s3.endpoint()} {self.storage.full(location)}", size, lambda: get(location))

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Bytes of each file that was expected: it may be another one when they differ."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_sizes", "_tables")}


@dataclass(frozen=True)
class Shares(FileSource):
    """A source whose samples are drawn into splits.

    ``train``, ``validation`` and ``test`` say how many samples each split gets: shares of all
    samples where at most 1, numbers of samples where above. Each class gives its proportion,
    chosen by ``split_seed``; the totals are exact. Samples beyond them are left out.
    """

    all_train: ClassVar[bool] = False  # each class gives training its first sample, however few it has
    train: float = 0.7
    validation: float = 0.1
    test: float = 0.2
    split_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in SPLITS:
            size = float(getattr(self, name))
            object.__setattr__(self, name, size)
            if not size >= 0 or (size > 1 and size % 1):
                raise SettingError(f"source.{name} is {size}; expected a share from 0 to 1 or a number of samples.")
        shares = [getattr(self, name) for name in SPLITS if getattr(self, name) <= 1]
        if sum(shares) > 1 + 1e-9:
            raise SettingError(f"The shares of {', '.join(SPLITS)} add up to {sum(shares):g}; expected at most 1.")

    def splits_of(self, keys: Sequence[str], classes: Sequence[Any]) -> list[str]:
        """The split of each sample, "" for none, given its key and class."""
        sizes = self.train, self.validation, self.test
        return assign_splits(keys, classes, sizes, self.split_seed, self.all_train and self.train > 0)


@dataclass(frozen=True)
class PictureSource(Shares):
    """A source of picture files."""

    @abstractmethod
    def read_sized(self, location: str, part: str, height: int, width: int, grey: bool) -> np.ndarray:
        """Like ``read``, but decodes no more than needed: any size of at least height x width, grey if asked."""


@dataclass(frozen=True)
class VideoSource(FileSource):
    """A source of video files of any codec that FFmpeg reads."""

    def open(self, location: str, once: bool = False) -> Video:
        """The video, ready to give frames; close it. Raises Unreadable.

        What its packets say is kept (some 10 bytes for each frame), so they are read once for each file;
        not where it is opened just ``once``. On S3 a file of less than WHOLE_BYTES is read at once (`again`), of
        a larger one the parts that are decoded, each time.
        """
        with _readable():
            video = Video(self.storage.local(location) or self._remote(location), self._tables.get(location))
        try:
            table = video.table
        except Unreadable:
            video.close()
            raise
        if not once:
            self._tables[location] = table
        return video

    def _remote(self, location: str) -> bytes | Ranges:
        head = self.again(location, lambda path: self.storage.read_range(path, 0, WHOLE_BYTES))
        if len(head) < WHOLE_BYTES:
            return head
        return Ranges(self.storage, Entry(location, self.storage.size(location), False), BLOCK_BYTES)

    def read(self, location: str, part: str) -> np.ndarray:
        """The frame in the middle, H x W x 3."""
        with self.open(location) as video:
            return np.asarray(video.frames([video.count // 2])[0])

    @cached_property
    def _tables(self) -> dict[str, FrameTable]:
        return {}

    def frame_counts(self, entries: Iterable[Entry]) -> tuple[dict[str, int], dict[str, str]]:
        """The number of frames of each file, and the reason of each file that cannot be read, both by path.

        Opens each file's header and decodes nothing. Where it does not say how many frames there are, or
        cannot be true, the packets are read; what shows only when frames are decoded is not found here.
        """
        counts: dict[str, int] = {}

        def look(storage: Storage, entry: Entry) -> None:
            file = storage.local(entry.path) or Ranges(storage, entry)
            with Video(file) as video:
                count = video.header_count
                counts[entry.path] = count if 0 < count <= min(entry.size, _MOST_FRAMES) else video.count

        wrong = inspect(self.storage, entries, look)
        return counts, wrong


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise Unreadable("the file is not there any more") from error
    except PermissionError as error:
        raise Unreadable(f"no permission to read it ({error.strerror or error})") from error
