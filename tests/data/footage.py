"""Makes videos whose frames carry their number: eight squares, black or white, for its bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

VOP = b"\x00\x00\x01\xb6"
NOT_CODED = VOP + bytes([0b01010000, 0b01011111])  # a picture of MPEG-4 (25 per second) that codes nothing


def numbered(number: int, width: int, height: int) -> np.ndarray:
    """H x W x 3: a grey ramp, and the bits of ``number`` in 4 x 2 squares, white for 1."""
    ramp = np.linspace(60, 120, width, dtype=np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (height, width, 3)).copy()
    for bit in range(8):
        top, left = height * (bit // 4) // 2, width * (bit % 4) // 4
        image[top : top + height // 2, left : left + width // 4] = 230 if number >> bit & 1 else 20
    return image


def numbers_in(clip_THWC: np.ndarray) -> list[int]:
    """The numbers that the frames carry."""
    height, width = clip_THWC.shape[1:3]
    found = np.zeros(len(clip_THWC), int)
    for bit in range(8):
        top, left = height * (bit // 4) // 2, width * (bit % 4) // 4
        middle = clip_THWC[:, top + height // 8 : top + height * 3 // 8, left + width // 16 : left + width * 3 // 16]
        found += (middle.mean((1, 2, 3)) > 125).astype(int) << bit
    return [int(number) for number in found]


def film(
    path: Path,
    count: int = 40,
    codec: str = "mpeg4",
    size: tuple[int, int] = (160, 120),
    gop: int = 12,
    b_frames: int = 0,
    times: Sequence[int] | None = None,
    sound: str = "",
    turned: int = 0,
    first: int = 0,
    **options: str,
) -> Path:
    """A video of ``count`` numbered frames, 25 per second or at ``times`` in milliseconds; with a tone as ``sound``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = {"mjpeg": "yuvj420p", "rawvideo": "bgr24"}.get(codec, "yuv420p" if size[0] % 2 == 0 else "")
    with av.open(str(path), "w") as out:
        tone = out.add_stream(sound, rate=16000, layout="mono") if sound else None
        stream = out.add_stream(codec, rate=25, options={"threads": "1", **options})
        stream.width, stream.height = size
        stream.pix_fmt = pixels or ("yuv444p" if "26" in codec else "yuv420p")
        stream.gop_size, stream.max_b_frames = gop, b_frames
        if codec == "mpeg4" and path.suffix == ".avi":
            stream.codec_context.codec_tag = "XVID"
        if turned:
            stream.set_display_rotation(turned)
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(first + number, *size))
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            out.mux(stream.encode(frame))
            if tone:
                out.mux(tone.encode(_tone(number)))
        out.mux(stream.encode(None))
        if tone:
            out.mux(tone.encode(None))
    return path


def _tone(number: int) -> Any:
    frame = av.AudioFrame.from_ndarray(np.full((1, 640), number % 7 * 1000, np.int16), "s16", "mono")
    frame.sample_rate, frame.pts = 16000, number * 640
    return frame


def packets_of(path: Path) -> list[tuple[bytes, bool]]:
    """The coded frames of a video in the order of the file, and which of them are keyframes."""
    with av.open(str(path)) as given:
        return [(bytes(packet), packet.is_keyframe) for packet in given.demux(video=0) if packet.size]


def remade(path: Path, like: Path, packets: Iterable[tuple[bytes, bool]], spacing: int = 1) -> Path:
    """A file of these packets, each shown after the one before it, with the stream of ``like``."""
    with av.open(str(like)) as given, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for number, (data, is_key) in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, given.streams.video[0].time_base
            packet.pts = packet.dts = number * spacing
            packet.is_keyframe = is_key
            out.mux(packet)
    return path


def packed(path: Path, plain: Path) -> Path:
    """``plain``, MPEG-4 with B-frames in AVI, packed as DivX did: P and B in one packet, then an empty one."""

    def kind(data: bytes) -> int:
        return data[data.rfind(VOP) + 4] >> 6

    coded, out = packets_of(plain), []
    for number, (data, is_key) in enumerate(coded):
        if kind(data) == 0:
            at = data.rfind(VOP)
            data = data[:at] + b"\x00\x00\x01\xb2DivX503b1393p" + data[at:]
        follows_reference = number > 0 and kind(coded[number - 1][0]) != 2
        if kind(data) == 2:
            if not follows_reference:  # the second of two B-frames takes the place of the first, and so on
                out.append((data, False))
            if number + 1 == len(coded) or kind(coded[number + 1][0]) != 2:
                out.append((NOT_CODED, False))
            continue
        if number + 1 < len(coded) and kind(coded[number + 1][0]) == 2:
            data += coded[number + 1][0][coded[number + 1][0].rfind(VOP) :]
        out.append((data, is_key))
    assert len(out) == len(coded)
    return remade(path, plain, out)
