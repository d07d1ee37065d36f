"""One video: how many frames it has, and the frames themselves by number.

Frame n is the n-th that is shown, whatever the times say. To find it without decoding what comes
before, the packets are read once without decoding (frame_table.py), and decoding starts at the last
keyframe before it. Each frame that comes out of the decoder has its time, which is compared with the
table. Shapes: T frames, H x W pixels.

TorchCodec 0.17 was measured in PyAV's place and left out: it took 0.9 to 1.2 times as long, and gave other
frames than a player for MPEG-4 with B-frames in AVI (tests/benchmarks/RESULTS.md).
"""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from mvray.data.decoding import MAX_MEGAPIXELS, Unreadable
from mvray.data.video.frame_table import FrameTable, Packet, counted, leading, table_of, unpacked_table
from mvray.data.video.video_file import check_whole, why_not

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# FFmpeg knows others, some of which open other files.
_CONTAINERS = "avi,mov,matroska,webm,mpeg,mpegts,mpegvideo,m4v,asf,flv,ogg"
_TURNING = ("mov", "matroska")  # the containers that can say that a video lies on its side
_SEEK_FRAMES = 4  # a seek takes as long as decoding some frames


class _Unordered(Exception):
    """Frames came out of the decoder in another order than their times say."""


class Video:
    """The frames of a video, upright, RGB; ``file`` is a local path, its bytes, or an open file.

    Give ``table`` back to another Video of the same file to spare reading its packets again. One thread
    decodes: run several videos in threads, each used by one at a time; FFmpeg works without the
    interpreter lock. The sample aspect ratio is ignored, and so is mirroring. A frame that codes nothing
    (some encoders drop frames so) shows the one before it. Raises Unreadable, with the reason in words,
    here and wherever frames are read.
    """

    def __init__(self, file: str | Path | bytes | IO[bytes], table: FrameTable | None = None) -> None:
        self._file, self._table = file, table
        self._container: Any = None
        self._fresh = False
        with _open_file(file) as opened:
            check_whole(opened)
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def header_count(self) -> int:
        """How many frames the header says there are; 0 where it does not say."""
        return int(self._stream.frames)

    @property
    def table(self) -> FrameTable:
        """Which frames there are; the packets are read at first use."""
        if self._table is None:
            self._table = self._made_table()
        return self._table

    @property
    def count(self) -> int:
        return self.table.count

    @property
    def height(self) -> int:
        return self._size[1 if self.table.turned % 180 else 0]

    @property
    def width(self) -> int:
        return self._size[0 if self.table.turned % 180 else 1]

    def frames(self, numbers: Sequence[int], height: int | None = None, width: int | None = None) -> np.ndarray:
        """The frames ``numbers``, in any order and as often as asked, T x H x W x 3 uint8.

        They get ``height`` x ``width`` while they become RGB: bilinear, over all the pixels that fall
        together where they get smaller. Raises IndexError for a number that does not exist.
        """
        if wrong := [number for number in numbers if not 0 <= number < self.count]:
            raise IndexError(f"There is no frame {wrong[0]}; the video has {self.count}.")
        try:
            return self._clip(numbers, height or self.height, width or self.width)
        except _Unordered:
            numbers = self._count_instead(numbers)
            return self._clip(numbers, height or self.height, width or self.width)

    def every(self, step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """(number, H x W x 3) of every ``step``-th frame from the first on, in the memory of a few frames."""
        numbers: Sequence[int] = range(0, self.count, step)
        done = 0
        try:
            for frame in self._frames_at(numbers):
                yield numbers[done], self._rgb(frame, self.height, self.width)
                done += 1
        except _Unordered:
            numbers = numbers[done:]
            for number, frame in zip(numbers, self._frames_at(self._count_instead(numbers)), strict=True):
                yield number, self._rgb(frame, self.height, self.width)

    def _clip(self, numbers: Sequence[int], height: int, width: int) -> np.ndarray:
        clip_THWC = np.empty((len(numbers), height, width, 3), np.uint8)
        places: dict[int, list[int]] = {}
        for place in sorted(range(len(numbers)), key=numbers.__getitem__):
            places.setdefault(numbers[place], []).append(place)
        for frame, taking in zip(self._frames_at(list(places)), places.values(), strict=True):
            clip_THWC[taking] = self._rgb(frame, height, width)
        return clip_THWC

    def _rgb(self, frame: VideoFrame, height: int, width: int) -> np.ndarray:
        from av.video.reformatter import Interpolation

        turns = self.table.turned // 90
        if turns % 2:
            height, width = width, height
        # Without full chroma, swscale rounds roughly at even widths: 2 grey levels off Pillow's filter, not 0.1.
        how = int(Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT)
        image_HWC = frame.reformat(width, height, "rgb24", interpolation=how, threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(image_HWC, turns)) if turns else image_HWC

    # -- finding frames --------------------------------------------------------------------------

    def _frames_at(self, numbers: Sequence[int]) -> Iterator[VideoFrame]:
        """The frame of each of ``numbers``, which ascend."""
        table = self.table
        sparing = None
        if table.times and len(numbers) < table.count:
            sparing = {table.times[number] for number in numbers}
        run: _Run | None = None
        for number in numbers:
            key = table.key(number)
            if run is None or table.key_numbers[key] > run.number + _SEEK_FRAMES:
                run = self._run(key, sparing)
            while run.reach(number) > number and run.before is None and key >= 0:
                key -= 1  # the seek led too far, or the decoder shows nothing yet that soon after this key
                run = self._run(key, sparing)
            if run.number != number and sparing is not None:
                sparing = None  # what was spared may be what is shown here
                run = self._run(table.key(number), sparing)
                run.reach(number)
            if run.number != number:
                run.look_ahead()  # out of order, or really not there?
            frame = run.frame if run.number == number else run.before
            if frame is None:
                raise Unreadable(f"frame {number} cannot be decoded")
            yield frame

    def _run(self, key: int, sparing: Set[int] | None) -> _Run:
        """Decoding from a key on; -1 is the start of the file."""
        import av

        table = self.table
        if key < 0 or not table.times:
            self._open()
        elif key > 0 or not self._fresh:
            try:
                self._container.seek(table.key_times[key], stream=self._stream)
            except av.error.FFmpegError:  # a container that cannot seek
                self._open()
        self._fresh = False
        return _Run(self._decode(table, sparing))

    def _decode(self, table: FrameTable, sparing: Set[int] | None = None) -> Iterator[tuple[int, VideoFrame]]:
        """(number, frame) from here on. Frames at other times than ``sparing`` may be left out where no other
        needs them, which spares decoding most B-frames. Raises Unreadable and _Unordered."""
        import av

        number, started = -1, not table.times
        try:
            for packet in chain(self._packets(bool(table.unpacked)), (None,)):
                if packet is not None:
                    started = started or packet.is_keyframe
                    if not started:
                        continue
                    if table.unpacked:
                        packet.pts = table.unpacked_time(packet.dts)
                    self._context.skip_frame = "NONREF" if sparing and packet.pts not in sparing else "DEFAULT"
                for frame in self._context.decode(packet):
                    if table.times and frame.pts is not None and frame.pts < table.times[0]:
                        continue  # leads to the first key, but cannot be decoded without what came before
                    last, by_time = number, table.number(frame.pts) if table.times else number + 1
                    if by_time is None or by_time <= last:
                        raise _Unordered
                    number = by_time
                    yield number, frame
        except av.error.FFmpegError as error:
            place = f"after frame {number}" if number >= 0 else "from the start on"
            raise Unreadable(f"cannot be decoded {place} ({error.strerror})") from error

    def _packets(self, unpack: bool) -> Iterator[Any]:
        import av

        coded = (packet for packet in self._container.demux(self._stream) if packet.size)
        if not unpack:
            yield from coded
            return
        unpacker = av.bitstream.BitStreamFilterContext("mpeg4_unpack_bframes", self._stream)
        for packet in coded:
            yield from unpacker.filter(packet)

    # -- the table -------------------------------------------------------------------------------

    def _made_table(self) -> FrameTable:
        import av

        try:
            packets, turned = self._read_packets()
            if not packets:
                raise Unreadable("has no frames")
            if max(packet.pictures for packet in packets) > 1:
                self._open()
                unpacked = [Packet.of(packet, "mpeg4") for packet in self._packets(unpack=True)]
                table = unpacked_table(unpacked, turned)
            else:
                guessed = self._container.format.name == "avi" and self._context.name != "mpeg4"
                table = table_of(packets, turned, guessed, self._leading(packets))
        except av.error.FFmpegError as error:
            raise Unreadable(f"truncated or broken ({error.strerror})") from error
        self._fresh = False
        return table or self._counted_table(turned)

    def _read_packets(self) -> tuple[list[Packet], int]:
        """All packets, and by how many degrees frames are turned, which only a decoded frame says."""
        import av

        self._fresh = False
        turned = None if set(_TURNING) & set(self._container.format.name.split(",")) else 0
        packets = []
        for packet in self._packets(unpack=False):
            packets.append(Packet.of(packet, self._context.name))
            if turned is None:
                with suppress(av.error.FFmpegError):  # a broken frame says nothing here; who asks for it is told
                    for frame in self._context.decode(packet)[:1]:
                        turned = round(frame.rotation / 90) * 90 % 360
        return packets, turned or 0

    def _leading(self, packets: Sequence[Packet]) -> set[int]:
        """When frames are shown that come before the first key, but are coded after it and can be decoded."""
        import av

        times, early, started = leading(packets), set[int](), False
        if not times:
            return early
        self._open()
        for packet in chain(self._packets(unpack=False), (None,)):
            started = started or packet is None or packet.is_keyframe
            with suppress(av.error.FFmpegError):  # as above
                for frame in self._context.decode(packet) if started else ():
                    if frame.pts not in times:
                        return early
                    early.add(frame.pts)
        return early

    def _count_instead(self, numbers: Sequence[int]) -> list[int]:
        """Trust the file's times no more. There may be fewer frames than packets, which ``numbers`` counted."""
        self._table = self._counted_table(self.table.turned)
        return [min(number, self._table.count - 1) for number in numbers]

    def _counted_table(self, turned: int) -> FrameTable:
        self._open()
        count = sum(1 for _ in self._decode(counted(sys.maxsize, turned)))
        if not count:
            raise Unreadable("has no frames")
        return counted(count, turned)

    # -- opening ---------------------------------------------------------------------------------

    def _open(self) -> None:
        import av

        if self._container is not None:
            self.close()
        file = self._file
        if isinstance(file, str | Path):
            source: Any = f"file:{Path(file).absolute()}"
        else:
            source = io.BytesIO(file) if isinstance(file, bytes) else file
        try:
            self._container = av.open(source, container_options={"format_whitelist": _CONTAINERS})
        except av.error.EOFError as error:
            raise Unreadable("has no frames (it ends after its header)") from error
        except (av.error.FFmpegError, ValueError) as error:
            with _open_file(file) as opened:
                raise Unreadable(why_not(opened) or f"broken header ({getattr(error, 'strerror', error)})") from error
        try:
            self._stream = _video_stream(self._container)
        except Unreadable:
            self.close()
            raise
        self._context = self._stream.codec_context
        self._size: tuple[int, int] = (self._context.height, self._context.width)
        self._context.thread_type, self._context.thread_count = "NONE", 1
        self._fresh = True


class _Run:
    """Frames one after another: the last one, its number, and the one before it (None at the start)."""

    def __init__(self, frames: Iterator[tuple[int, VideoFrame]]) -> None:
        self._frames = chain(frames, repeat((sys.maxsize, None)))
        self._ahead: deque[tuple[int, VideoFrame | None]] = deque()
        self.number = -1
        self.frame: VideoFrame | None = None
        self.before: VideoFrame | None = None

    def reach(self, number: int) -> int:
        """Go on until the frame ``number`` or a later one; returns its number, or one beyond all at the end."""
        while self.number < number:
            self.before = self.frame or self.before
            self.number, self.frame = self._ahead.popleft() if self._ahead else next(self._frames)
        return self.number

    def look_ahead(self) -> None:
        """Raises _Unordered where the next frame should have come before."""
        if not self._ahead:
            self._ahead.append(next(self._frames))


@contextmanager
def _open_file(file: str | Path | bytes | IO[bytes]) -> Iterator[IO[bytes]]:
    """The file at its start; a file that the caller opened stays open."""
    if isinstance(file, str | Path | bytes):
        with io.BytesIO(file) if isinstance(file, bytes) else Path(file).open("rb") as opened:
            yield opened
    else:
        file.seek(0)
        yield file
        file.seek(0)


def _video_stream(container: Any) -> Any:
    import av

    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise Unreadable("has sound, but no video" if container.streams.audio else "has no video")
    context = streams[0].codec_context
    if context is None:
        raise Unreadable("its codec is unknown here (FFmpeg cannot decode it)")
    if not context.width or not context.height:
        raise Unreadable("has no frames (not even a size is known)")
    if context.width * context.height > MAX_MEGAPIXELS * 1_000_000:
        raise Unreadable(f"{context.width} x {context.height} pixels, more than {MAX_MEGAPIXELS} megapixels")
    return streams[0]
