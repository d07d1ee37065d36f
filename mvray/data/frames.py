"""Frames of samples one after another, as they are: for what looks at every frame (FrameGenerator).

Videos are decoded ahead in threads, each into a short queue, so memory does not grow with their number
or length.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mvray.data.decoding import Unreadable
from mvray.data.readers.base import FileSource, VideoSource
from mvray.experiment import Frame

if TYPE_CHECKING:
    import pyarrow as pa

    from mvray.experiment import Source

AHEAD_FRAMES = 8
"""How many frames of each video that is being decoded wait to be taken."""
_END = object()


class _Reader(threading.Thread):
    """Decodes one sample into a queue: frames, then _END or the Unreadable."""

    def __init__(self, source: Source, row: dict[str, Any], every: int, stop: threading.Event) -> None:
        super().__init__(name="decode", daemon=True)
        self._source, self._row, self._every, self._ended = source, row, every, stop
        self.frames: queue.Queue[Any] = queue.Queue(AHEAD_FRAMES)

    def run(self) -> None:
        try:
            for number, pixels in _frames_of(self._source, self._row["location"], self._row["part"], self._every):
                if not self._put(Frame(self._row["key"], number, pixels)):
                    return
            self._put(_END)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> bool:
        """False where nobody listens any more."""
        while not self._ended.is_set():
            try:
                self.frames.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


def _frames_of(source: Source, location: str, part: str, every: int) -> Iterator[tuple[int, np.ndarray]]:
    if isinstance(source, VideoSource):
        with source.open(location, once=True) as video:
            yield from video.every(every)
    else:
        image_HWC = source.read(location, part)
        yield 0, np.ascontiguousarray(np.broadcast_to(image_HWC, (*image_HWC.shape[:2], 3)))


def frames(source: Source, rows: pa.Table, every: int = 1, workers: int = 2) -> Iterator[Frame | tuple[int, str]]:
    """Every ``every``-th frame of the samples ``rows``, in order; for one that cannot be read, (row, reason).

    A video whose decoding fails in the middle gives frames before it gives its reason.
    """
    if isinstance(source, FileSource):
        source.expect(rows)
    stop = threading.Event()
    waiting = deque(enumerate(rows.select(["key", "location", "part"]).to_pylist()))
    readers: deque[tuple[int, _Reader]] = deque()
    try:
        while waiting or readers:
            while waiting and len(readers) < max(1, workers):
                number, row = waiting.popleft()
                readers.append((number, _Reader(source, row, every, stop)))
                readers[-1][1].start()
            number, reader = readers[0]
            item = reader.frames.get()
            if isinstance(item, Frame):
                yield item
                continue
            readers.popleft()
            if isinstance(item, Unreadable):
                yield number, item.reason
            elif isinstance(item, BaseException):
                raise item
    finally:
        stop.set()
        for _, reader in readers:
            reader.join()
