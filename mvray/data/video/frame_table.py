"""Which frames a video has and where decoding can start, from its packets, without decoding them."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mvray.data.decoding import Unreadable

if TYPE_CHECKING:
    from av.packet import Packet as Coded

_VOP = b"\x00\x00\x01\xb6"  # what each picture of MPEG-4 part 2 starts with; the two bits after it are its kind
_INTRA, _BIDIRECTIONAL = 0, 2


@dataclass(frozen=True)
class FrameTable:
    """The frames of a video in the order in which they are shown.

    ``times`` has the time of each in the stream's own units, ascending; it is empty where the times in
    the file cannot be trusted, and frames must be counted from the start. For each place where decoding
    can start, ``key_numbers`` has the first frame that is whole from there, and ``key_times`` where to
    seek. ``unpacked`` has the times of MPEG-4 with packed B-frames, by decoding time. ``turned`` is by
    how many degrees a frame is turned to the left to be upright: 0, 90, 180 or 270.
    """

    count: int
    times: Sequence[int]
    key_numbers: Sequence[int]
    key_times: Sequence[int]
    unpacked: Sequence[int] = ()
    turned: int = 0

    def number(self, time: int | None) -> int | None:
        """The number of the frame shown at ``time``; None where no frame has that time."""
        at = bisect_left(self.times, time) if time is not None else self.count
        return at if at < self.count and self.times[at] == time else None

    def key(self, number: int) -> int:
        """The last place where decoding can start for frame ``number``."""
        return max(0, bisect_right(self.key_numbers, number) - 1)

    def unpacked_time(self, decoded_at: int | None) -> int | None:
        """When the unpacked picture is shown; None where that is not known."""
        return self.unpacked[decoded_at] if decoded_at is not None and decoded_at < len(self.unpacked) else None


def counted(count: int, turned: int) -> FrameTable:
    """The table of a video whose times cannot be trusted, once its frames were counted."""
    return FrameTable(count, (), (0,), (0,), (), turned)


@dataclass(frozen=True)
class Packet:
    """What is known of a packet: when it is shown and decoded, whether decoding can start there, how many
    pictures it has and, for MPEG-4, of which kind the first is."""

    shown_at: int | None
    decoded_at: int | None
    is_key: bool
    is_shown: bool = True
    pictures: int = 1
    kind: int = -1

    @classmethod
    def of(cls, packet: Coded[Any], codec: str) -> Packet:
        is_key, is_shown, pictures, kind = packet.is_keyframe, not packet.is_discard, 1, -1
        if codec == "mpeg4":
            data = bytes(packet)
            pictures, at = data.count(_VOP), data.find(_VOP) + len(_VOP)
            kind = data[at] >> 6 if pictures and at < len(data) else -1
            is_key = is_key and kind == _INTRA  # some AVI files mark every picture
        elif codec == "vp8":
            is_shown = is_shown and bool(memoryview(packet)[0] & 0x10)  # else it only serves as a reference
        return cls(packet.pts, packet.dts, is_key, is_shown, pictures, kind)


def leading(packets: Sequence[Packet]) -> set[int]:
    """The times of frames shown before the first key frame but coded after it, as B-frames at the start of MPEG-2."""
    first = next((at for at, packet in enumerate(packets) if packet.is_key), len(packets))
    start = packets[first].shown_at if first < len(packets) else None
    times = (packet.shown_at for packet in packets[first:] if packet.is_shown)
    return {time for time in times if time is not None and start is not None and time < start}


def table_of(
    packets: Sequence[Packet], turned: int, guessed: bool = False, decodable: Set[int] = frozenset()
) -> FrameTable | None:
    """None where the packets do not have a time of their own each. Raises Unreadable where none is shown.

    Of what is shown before the first key, only what is ``decodable`` (times) counts.

    AVI has no times at which frames are shown. Where FFmpeg ``guessed`` them, they are trusted only as
    long as frames are shown in the order in which they are decoded.
    """
    if guessed and any(packet.shown_at != packet.decoded_at for packet in packets):
        return None
    keys = sorted({packet.shown_at for packet in packets if packet.is_key and packet.shown_at is not None})
    shown = sorted(packet.shown_at for packet in packets if packet.is_shown and packet.shown_at is not None)
    if len(shown) < sum(packet.is_shown for packet in packets) or len(set(shown)) < len(shown) or not keys:
        return None
    before = bisect_left(shown, keys[0])
    shown[:before] = [time for time in shown[:before] if time in decodable]
    if not shown:
        raise Unreadable("has no frames")
    numbers = array("q", (bisect_left(shown, key) for key in keys))
    return FrameTable(len(shown), _short(shown), numbers, array("q", keys), (), turned)


def unpacked_table(packets: Sequence[Packet], turned: int) -> FrameTable | None:
    """As table_of, for packets of MPEG-4 that FFmpeg's filter unpacked: one picture each, but wrong times.

    DivX and XviD packed a P-frame and the B-frame before it into one packet of an AVI file, and let an
    empty one follow; many files of UCF101 are like that. The kinds of the pictures say their order.
    """
    shown: list[Packet] = []
    reference: list[Packet] = []  # is shown when the next one comes
    for packet in packets:
        if packet.kind == _BIDIRECTIONAL:
            shown.append(packet)
        else:
            shown += reference
            reference = [packet]
    shown += reference
    order = {packet.decoded_at: number for number, packet in enumerate(shown) if packet.decoded_at is not None}
    keys = [packet.decoded_at for packet in packets if packet.is_key and packet.decoded_at is not None]
    if len(order) < len(packets) or not keys or not 0 <= min(order) <= max(order) < 4 * len(packets):
        return None  # an AVI file counts its packets; here are gaps
    times = array("q", (order.get(decoded_at, -1) for decoded_at in range(max(order) + 1)))
    numbers = array("q", (order[key] for key in keys))
    return FrameTable(len(order), range(len(order)), numbers, array("q", keys), times, turned)


def _short(times: list[int]) -> Sequence[int]:
    """The same numbers, as a range where they are evenly spaced, as in most videos."""
    step = times[1] - times[0] if len(times) > 1 else 1
    even = range(times[0], times[0] + step * len(times), step)
    return even if times == list(even) else array("q", times)
