"""What the readers share: where the files lie, which split a sample is in, pixels of pictures, opened videos."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from mvray.data.bad_files import Unreadable, decoded, inspect, open_picture
from mvray.data.node_cache import kept
from mvray.data.video.ranges import Ranges
from mvray.data.video.video import Video
from mvray.errors import DataError, SettingError
from mvray.experiment import Source
from mvray.storage import Entry, Storage, s3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mvray.data.video.frame_table import FrameTable

REGION = pa.struct(
    [("kind", pa.string()), ("id", pa.string())] + [(side, pa.float32()) for side in ("x0", "y0", "x1", "y1")]
)
ROWS = pa.schema(
    {
        "key": pa.string(),
        "location": pa.string(),
        "part": pa.string(),
        "label": pa.int32(),
        "split": pa.string(),
        "group": pa.string(),
        "regions": pa.list_(REGION),
        "bytes": pa.int64(),
        "frames": pa.int32(),
    }
)
WHOLE_BYTES, BLOCK_BYTES = 16 << 20, 2 << 20
SPLITS = ("train", "validation", "test")
_MOST_FRAMES = 2**31 - 1  # as the column holds; broken headers say more, or more frames than the file has bytes
_ORIENTATION = 0x0112  # the EXIF tag; above 4 width and height are swapped


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

    def again(self, location: str, read: Callable[[str], bytes] | None = None) -> bytes:
        """As ``bytes_of``, or ``read``; a file that is not local is fetched once per node, where it was expected."""
        get = read or self.bytes_of
        if (size := self._sizes.get(location)) is None:
            return get(location)
        return kept(f"{s3.endpoint()} {self.storage.full(location)}", size, lambda: get(location))

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
        return drawn(keys, classes, sizes, self.split_seed, self.all_train and self.train > 0)


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
        """How many frames each file has, and why which of them cannot be read, by path.

        Opens each file's header and decodes nothing. Where it does not say how many frames there are, or
        cannot be true, the packets are read; what shows only when frames are decoded is not found here.
        """
        counts: dict[str, int] = {}

        def look(storage: Storage, entry: Entry) -> None:
            file = storage.local(entry.path) or Ranges(storage, entry)
            with Video(file) as video:
                said = video.header_count
                counts[entry.path] = said if 0 < said <= min(entry.size, _MOST_FRAMES) else video.count

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


def picture(data: bytes, height: int, width: int, grey: bool) -> Image.Image:
    """The picture, upright, in mode L (grey pictures, or if asked) or RGB; not smaller than height x width.

    A JPEG larger than that is decoded at 1/2, 1/4 or 1/8 of its size. Transparency becomes white.
    Raises Unreadable.
    """
    image = open_picture(data)
    try:
        exif = "exif" in image.info or image.format == "TIFF"
        if image.format == "JPEG":
            turned = exif and image.getexif().get(_ORIENTATION, 1) > 4
            image.draft("L" if grey else None, (height, width) if turned else (width, height))
        decoded(image)
        if exif:
            ImageOps.exif_transpose(image, in_place=True)
        return _plain(image, grey)
    except Unreadable:
        raise
    except Exception as error:  # as in open_picture
        raise Unreadable(f"cannot be converted ({error})") from error


def _plain(image: Image.Image, grey: bool) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(layer)
    mode = "L" if grey or image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)


def pixels(image: Image.Image) -> np.ndarray:
    """H x W x C uint8."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def shares(total: int, sizes: Sequence[int]) -> list[int]:
    """``total`` in proportion to ``sizes``, in whole numbers that add up to it (largest remainder)."""
    exact = [size * total / max(1, sum(sizes)) for size in sizes]
    given = [int(share) for share in exact]
    for i in sorted(range(len(sizes)), key=lambda i: given[i] - exact[i])[: total - sum(given)]:
        given[i] += 1
    return given


def drawn(
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
    found = [""] * len(keys)
    names = sorted(left)
    if all_train:
        counts = _with_all(counts, len(names), len(keys))
    # In proportion to what is left: the shares of later splits stay the same, and never exceed it.
    for split, count in zip(SPLITS, counts, strict=True):
        first = int(all_train and split == "train")
        free = shares(count - first * len(names), [len(left[name]) - first for name in names])
        for name, taken in zip(names, (first + some for some in free), strict=True):
            for i in left[name][:taken]:
                found[i] = split
            del left[name][:taken]
    return found


def _with_all(counts: list[int], classes: int, samples: int) -> list[int]:
    """``counts`` with at least one training sample for each class."""
    train, validation, test = counts
    train = max(train, classes)
    validation = min(validation, samples - train)
    return [train, validation, min(test, samples - train - validation)]


def _counts(samples: int, sizes: tuple[float, ...]) -> list[int]:
    fractions = [round(size * 1_000_000) for size in sizes if size <= 1]
    wanted = shares(samples, [*fractions, max(0, 1_000_000 - sum(fractions))])
    rest = iter(wanted)
    counts = [next(rest) if size <= 1 else int(size) for size in sizes]
    if sum(counts) > samples:
        asked = ", ".join(f"{count} {split}" for count, split in zip(counts, SPLITS, strict=True))
        raise DataError(
            f"Found {samples} samples; the splits ask for {sum(counts)} ({asked}). "
            "Choose smaller splits, or shares such as 0.7, 0.1 and 0.2."
        )
    return counts


def rows(columns: dict[str, Iterable[Any]]) -> pa.Table:
    """Index rows from columns; Arrow arrays are taken as they are. Without ``frames``, each sample is one picture."""
    columns = {"frames": np.ones(len(list(columns["key"])), np.int32), **columns}
    return pa.table(
        [
            values if isinstance(values, pa.Array) else pa.array(list(values), field.type)
            for field, values in ((field, columns[field.name]) for field in ROWS)
        ],
        schema=ROWS,
    )
