"""Videos as people's devices and programs write them: with sound, cut somewhere, with headers that lie.

What is right is what plain decoding by FFmpeg from the start gives, frame by frame.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from footage import film, numbers_in

from mvray.data.decoding import Unreadable
from mvray.data.readers.videos import Videos
from mvray.data.video.video import Video

pytestmark = pytest.mark.slow  # videos are encoded

COUNT = 40
FAST_VPX = {"deadline": "realtime", "cpu-used": "8"}
CLOSED_GOPS = "log-level=none:keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0:open-gop=0:radl=2"
KINDS: dict[str, dict[str, Any]] = {
    "vp8 opus odd.webm": {"codec": "libvpx", "size": (161, 121), "sound": "libopus", **FAST_VPX},
    "ms-mpeg4v2 odd.avi": {"codec": "msmpeg4v2", "size": (177, 145), "sound": "libmp3lame"},
    "ms-mpeg4v3 odd.avi": {"codec": "msmpeg4", "size": (177, 145), "sound": "libmp3lame"},
    "mpeg4 uneven.mp4": {"times": [33 * i + i // 9 * 80 for i in range(COUNT)], "sound": "aac"},
    "wmv2 mp3.wmv": {"codec": "wmv2", "size": (176, 144), "sound": "libmp3lame"},
    "flv1 aac.flv": {"codec": "flv", "sound": "aac"},
    "mpeg2.ts": {"codec": "mpeg2video", "b_frames": 2, "sound": "mp2"},
    "h264.mts": {"codec": "libx264", "b_frames": 3, "sound": "aac"},
    "h264.m2ts": {"codec": "libx264", "b_frames": 3, "size": (162, 122)},
    "mpeg2.vob": {"codec": "mpeg2video", "b_frames": 2, "sound": "mp2"},
}


def remuxed(
    path: Path, given: Path, keep: Callable[[int], bool] = lambda number: True, shift: int = 0, **options: str
) -> Path:
    """The packets of ``given`` in another file, those of the sound's stream first; of the video only those that
    ``keep`` wants, by their number, ``shift`` units of time later."""
    with av.open(str(given)) as source, av.open(str(path), "w", options=options) as out:
        streams = sorted(source.streams.get(), key=lambda stream: stream.type)
        copies = {stream.index: out.add_stream_from_template(stream) for stream in streams}
        number = -1
        for packet in source.demux():
            if not packet.size:
                continue
            if packet.stream.type == "video":
                number += 1
                if not keep(number):
                    continue
                assert packet.pts is not None
                assert packet.dts is not None
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = copies[packet.stream.index]
            out.mux(packet)
    return path


def plain(path: Path) -> list[int]:
    """The numbers of the frames that FFmpeg gives from the start."""
    with av.open(str(path)) as given:
        return [numbers_in(frame.to_ndarray(format="rgb24")[None])[0] for frame in given.decode(video=0)]


def all_ways(path: Path) -> list[int]:
    """The numbers that `Video` gives, which must be the same in every way of asking."""
    with Video(path) as video:
        numbers = numbers_in(video.frames(range(video.count)))
        assert [numbers_in(video.frames([n]))[0] for n in reversed(range(video.count))] == numbers[::-1]
        assert [numbers_in(frame[None])[0] for _, frame in video.every(1)] == numbers
        assert [numbers_in(frame[None])[0] for _, frame in video.every(5)] == numbers[::5]
    return numbers


@pytest.mark.parametrize("name", KINDS)
def test_with_sound_and_odd_sizes(tmp_path: Path, name: str) -> None:
    path = film(tmp_path / name, COUNT, **KINDS[name])
    with Video(path) as video:
        assert (video.width, video.height) == KINDS[name].get("size", (160, 120))
    assert all_ways(path) == plain(path) == list(range(COUNT))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_sound_may_be_the_first_stream(tmp_path: Path, name: str) -> None:
    whole = film(tmp_path / "whole.mp4", COUNT, "libx264", b_frames=2, sound="aac")
    path = remuxed(tmp_path / name, whole)
    with av.open(str(path)) as given:
        assert [stream.type for stream in given.streams] == ["audio", "video"]
    assert all_ways(path) == list(range(COUNT))


def test_a_fragmented_mp4(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mp4", COUNT, "libx264", b_frames=2)
    path = remuxed(tmp_path / "fragments.mp4", whole, movflags="frag_keyframe+empty_moov+default_base_moof")
    assert all_ways(path) == list(range(COUNT))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "msmpeg4"), ("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.webm", "libvpx")]
)
def test_frames_count_from_the_first_keyframe_that_is_there(tmp_path: Path, name: str, codec: str) -> None:
    """FFmpeg shows something grey for those before it in some codecs, and fails in others."""
    options = {"libvpx": FAST_VPX, "libx264": {"x264-params": "scenecut=0"}}.get(codec, {})
    whole = film(tmp_path / f"whole{Path(name).suffix}", COUNT, codec, (176, 144), **options)
    path = remuxed(tmp_path / name, whole, lambda number: number > 0)
    assert all_ways(path) == list(range(12, COUNT))


def test_leading_frames_count_where_they_can_be_decoded(tmp_path: Path) -> None:
    """A cut at a keyframe that B-frames follow which are shown before it: some need what was cut away, some do not."""
    for params, shown in ((CLOSED_GOPS, range(10, COUNT)), (CLOSED_GOPS.replace("gop=0", "gop=1"), range(12, COUNT))):
        whole = film(tmp_path / "whole.mp4", COUNT, "libx265", **{"x265-params": params})
        with av.open(str(whole)) as given:
            keys = [n for n, packet in enumerate(p for p in given.demux(video=0) if p.size) if packet.is_keyframe]
        path = remuxed(tmp_path / "cut.mkv", whole, lambda number, second=keys[1]: number >= second)
        assert all_ways(path) == plain(path)
        assert plain(path) == list(shown)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_times_below_zero(tmp_path: Path, name: str) -> None:
    """An MP4 file says so that these frames are not shown; others begin early."""
    whole = film(tmp_path / "whole.mp4", COUNT, "libx264", b_frames=2)
    path = remuxed(tmp_path / name, whole, shift=-17 * 512, avoid_negative_ts="disabled")
    numbers = all_ways(path)
    assert numbers == plain(path)
    assert numbers[-1] == COUNT - 1
    assert len(numbers) == (COUNT - 17 if name == "a.mp4" else COUNT)


@pytest.mark.parametrize("said", [0, 10**6, 2**32 - 1])
def test_a_count_in_the_header_that_cannot_be_is_not_believed(tmp_path: Path, said: int) -> None:
    """As programs leave it that stream, or that break off."""
    data = bytearray(film(tmp_path / "a" / "1.avi", COUNT).read_bytes())
    for chunk, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = data.index(chunk) + offset
        data[at : at + 4] = said.to_bytes(4, "little")
    (tmp_path / "a" / "1.avi").write_bytes(data)
    assert Videos(root=str(tmp_path)).index().rows["frames"].to_pylist() == [COUNT]


def test_an_index_without_media_has_no_frames(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mp4", 5, "libx264").read_bytes()
    at = whole.index(b"moov") - 4
    (tmp_path / "a.mp4").write_bytes(whole[at:])
    with pytest.raises(Unreadable, match=r"^has no frames \(an MP4 or MOV file with an index, moov, but without media"):
        Video(tmp_path / "a.mp4")


def test_more_than_eight_bits(tmp_path: Path) -> None:
    path = tmp_path / "ten.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx265", rate=25, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p10le"
        for level in (50, 200):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((120, 160, 3), level, np.uint8))))
        out.mux(stream.encode(None))
    with Video(path) as video:
        assert [int(frame.mean() + 0.5) for frame in video.frames([0, 1])] == pytest.approx([50, 200], abs=2)
