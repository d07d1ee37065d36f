"""Frames by number, exactly, in the codecs and containers that people have."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from footage import NOT_CODED, film, numbered, numbers_in, packed, packets_of, remade
from PIL import Image

from mvray.data.decoding import Unreadable
from mvray.data.video.video import Video

COUNT = 40
OPEN_GOP = "open-gop=1:keyint=12:bframes=3:b-adapt=0:b-pyramid=normal"
FAST_VPX = {"deadline": "realtime", "cpu-used": "8"}
HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "12", "deadline": "good", "cpu-used": "5"}  # frames that are not shown
KINDS: dict[str, dict[str, Any]] = {
    "xvid.avi": {},
    "b-frames.avi": {"b_frames": 2, "bf": "2", "b_strategy": "0"},
    "odd.avi": {"size": (161, 121)},
    "ms-mpeg4v3.avi": {"codec": "msmpeg4", "size": (176, 144)},
    "ms-mpeg4v2.avi": {"codec": "msmpeg4v2", "size": (176, 144)},
    "mjpeg.avi": {"codec": "mjpeg", "size": (161, 121)},
    "raw.avi": {"codec": "rawvideo"},
    "h264.avi": {"codec": "libx264", "b_frames": 3},
    "mp3.avi": {"sound": "libmp3lame"},
    "h264.mp4": {"codec": "libx264", "b_frames": 3},
    "odd.mp4": {"codec": "libx264", "size": (161, 121)},
    "hevc.mp4": {"codec": "libx265", "x265-params": "log-level=none:keyint=12:bframes=3"},
    "open gop.mp4": {"codec": "libx264", "x264-params": OPEN_GOP},
    "open gop.mkv": {"codec": "libx264", "x264-params": OPEN_GOP},
    "no keyframes.mkv": {"codec": "libx264", "x264-params": "intra-refresh=1:keyint=12:bframes=0"},
    "aac.mp4": {"codec": "libx264", "sound": "aac", "b_frames": 2},
    "late.mov": {"codec": "libx264", "b_frames": 2, "times": [5000 + 33 * i for i in range(COUNT)]},
    "uneven.mp4": {"codec": "libx264", "b_frames": 2, "times": [40 * i + i * i % 37 for i in range(COUNT)]},
    "uneven.mkv": {"codec": "libx264", "b_frames": 2, "times": [33 * i + i // 7 * 100 for i in range(COUNT)]},
    "vp8.webm": {"codec": "libvpx", **FAST_VPX},
    "vp8 hidden.webm": {"codec": "libvpx", "arnr-maxframes": "5", **HIDDEN},
    "vp9.webm": {"codec": "libvpx-vp9", "size": (161, 121), **FAST_VPX},
    "vp9 hidden.webm": {"codec": "libvpx-vp9", **HIDDEN},
    "wmv2.wmv": {"codec": "wmv2"},
    "flv1.flv": {"codec": "flv"},
    "mpeg1.mpg": {"codec": "mpeg1video", "b_frames": 2},
    "mpeg2.mpg": {"codec": "mpeg2video", "b_frames": 2},
}
COUNTED = {"h264.avi"}  # its times are wrong, so frames are counted


def read_alone(video: Video) -> list[int]:
    """Each frame by a call of its own, from the last to the first."""
    return [numbers_in(video.frames([n]))[0] for n in reversed(range(video.count))][::-1]


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_the_one_that_was_asked_for(tmp_path: Path, name: str) -> None:
    path = film(tmp_path / name, COUNT, **KINDS[name])
    width, height = KINDS[name].get("size", (160, 120))
    with Video(path) as video:
        assert (video.count, video.height, video.width) == (COUNT, height, width)
        assert bool(video.table.times) == (name not in COUNTED)
        asked = [random.Random(name).randrange(COUNT) for _ in range(12)]
        assert numbers_in(video.frames(asked)) == asked  # in any order, some twice
        assert numbers_in(video.frames(range(3, COUNT, 4))) == list(range(3, COUNT, 4))
        assert read_alone(video) == list(range(COUNT))
        assert [(n, *numbers_in(frame[None])) for n, frame in video.every(1)] == [(n, n) for n in range(COUNT)]
        assert [(n, *numbers_in(frame[None])) for n, frame in video.every(7)] == [(n, n) for n in range(0, COUNT, 7)]


@pytest.mark.parametrize("b_frames", [1, 2])
def test_packed_b_frames(tmp_path: Path, b_frames: int) -> None:
    """As DivX and XviD wrote them into AVI: a player shows them well, but their times are out of order."""
    plain = film(tmp_path / "plain.avi", COUNT, b_frames=b_frames, bf=str(b_frames), b_strategy="0")
    path = packed(tmp_path / "packed.avi", plain)
    with av.open(str(path)) as given:
        times = [frame.pts for frame in given.decode(video=0)]
        assert times != sorted(times), "this file is not the difficult case"
    with Video(path) as video:
        assert len(video.table.unpacked) > 0
        assert len(video.table.key_times) > 2
        assert read_alone(video) == list(range(COUNT))
        assert numbers_in(video.frames(range(COUNT))) == list(range(COUNT))


def test_a_frame_that_codes_nothing_shows_the_one_before(tmp_path: Path) -> None:
    plain = film(tmp_path / "plain.avi", 20)
    coded = packets_of(plain)
    path = remade(tmp_path / "dropped.avi", plain, [*coded[:5], (NOT_CODED, False), *coded[5:]])
    shown = [*range(5), 4, *range(5, 20)]
    with Video(path) as video:
        assert video.count == 21
        assert read_alone(video) == shown
        assert numbers_in(video.frames([5, 6, 12])) == [4, 5, 11]
        assert [numbers_in(frame[None])[0] for _, frame in video.every(1)] == shown


def test_times_that_lie_are_not_believed(tmp_path: Path) -> None:
    """Each picture has a time of its own, but in the order of decoding; only the decoder's order is true."""
    plain = film(tmp_path / "plain.mp4", COUNT, "libx264", b_frames=3, **{"x264-params": "b-adapt=0:bframes=3"})
    path = remade(tmp_path / "lies.mkv", plain, packets_of(plain), spacing=512)
    for asked in (range(COUNT), [7, 6], range(2, COUNT, 5)):
        with Video(path) as video:
            assert len(video.table.times) == COUNT
            assert numbers_in(video.frames(asked)) == list(asked)
            assert len(video.table.times) == 0
    with Video(path) as video:
        assert [numbers_in(frame[None])[0] for _, frame in video.every(1)] == list(range(COUNT))


def test_packed_b_frames_with_times_that_do_not_count_packets(tmp_path: Path) -> None:
    plain = film(tmp_path / "plain.avi", COUNT, b_frames=1, bf="1", b_strategy="0")
    path = remade(tmp_path / "packed.mkv", plain, packets_of(packed(tmp_path / "packed.avi", plain)))
    with Video(path) as video:
        assert len(video.table.times) == 0
        assert read_alone(video) == list(range(COUNT))


def test_one_frame(tmp_path: Path) -> None:
    for name, codec in (("one.avi", "mpeg4"), ("one.mp4", "libx264"), ("one.webm", "libvpx")):
        with Video(film(tmp_path / name, 1, codec)) as video:
            assert video.count == 1
            assert numbers_in(video.frames([0, 0])) == [0, 0]


@pytest.mark.parametrize("turned", [90, 180, 270])
def test_frames_are_upright(tmp_path: Path, turned: int) -> None:
    with Video(film(tmp_path / "phone.mp4", 20, "libx264", turned=turned)) as video:
        assert (video.height, video.width) == ((160, 120) if turned % 180 else (120, 160))
        lying = np.rot90(video.frames([13, 2]), -turned // 90, axes=(1, 2))
        assert numbers_in(lying) == [13, 2]
        assert video.frames([1], 80, 60).shape == (1, 80, 60, 3)


def test_frames_cut_away_by_an_edit_list_do_not_count(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mp4", 30, "libx264", b_frames=2)
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as given, av.open(str(cut), "w", options={"avoid_negative_ts": "disabled"}) as out:
        source = given.streams.video[0]
        stream = out.add_stream_from_template(source)
        frame = round(1 / (25 * source.time_base))
        for packet in given.demux(source):
            if packet.size:
                packet.pts, packet.dts = packet.pts - 17 * frame, packet.dts - 17 * frame
                packet.stream = stream
                out.mux(packet)
    with Video(cut) as video:
        assert video.count == 13
        assert read_alone(video) == list(range(17, 30))


def test_bytes_and_open_files_are_read_alike(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", COUNT, "libx264", b_frames=2)
    with Video(path) as local, Video(path.read_bytes()) as given, path.open("rb") as file, Video(file) as opened:
        assert local.table == given.table == opened.table
        expected = local.frames([30, 4])
        assert np.array_equal(given.frames([30, 4]), expected)
        assert np.array_equal(opened.frames([30, 4]), expected)


def test_a_table_is_not_made_twice(tmp_path: Path) -> None:
    path = film(tmp_path / "a.avi", COUNT)
    with Video(path) as video:
        table = video.table
    data = bytearray(path.read_bytes())
    with Video(bytes(data), table) as video:
        assert video.table is table
        assert numbers_in(video.frames([25])) == [25]


def test_decoding_starts_at_the_last_keyframe(tmp_path: Path) -> None:
    """The first frames cannot be decoded any more, and the others do not need them."""
    path = film(tmp_path / "a.webm", COUNT, "libvpx-vp9", **FAST_VPX)
    data = path.read_bytes()
    for coded, _ in packets_of(path)[:12]:
        data = data.replace(coded, b"\xff" * len(coded))
    with Video(data) as video:
        assert video.count == COUNT
        assert numbers_in(video.frames([12, 39])) == [12, 39]
        with pytest.raises(Unreadable, match=r"^cannot be decoded from the start on \(.+\)$"):
            video.frames([39, 5])


def test_sizes(tmp_path: Path) -> None:
    with Video(film(tmp_path / "a.avi", 3)) as video:
        assert numbers_in(video.frames([2, 1], 240, 161)) == [2, 1]
        assert video.frames([0], width=80).shape == (1, 120, 80, 3)
        assert video.frames([], 60, 80).shape == (0, 60, 80, 3)
        with pytest.raises(IndexError, match="There is no frame 3; the video has 3"):
            video.frames([0, 3])


@pytest.mark.parametrize("size", [(320, 240), (200, 150), (161, 121), (112, 84), (80, 60)])
def test_scaling_is_as_good_as_pillow(
    tmp_path: Path, drawn_picture: Callable[..., Image.Image], size: tuple[int, int]
) -> None:
    """Mean absolute difference in grey levels to Pillow's bilinear filter of the frame at its own size."""
    colour = drawn_picture(160, 120, seed=5, mode="RGB")
    with av.open(str(tmp_path / "a.avi"), "w") as out:
        stream = out.add_stream("mjpeg", rate=25, options={"qmin": "1", "qmax": "1"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuvj420p"
        for drawing in (colour, colour.convert("L").convert("RGB")):
            out.mux(stream.encode(av.VideoFrame.from_image(drawing)))
        out.mux(stream.encode(None))
    with Video(tmp_path / "a.avi") as video:
        own = video.frames([0, 1])
        assert np.abs(own[1] - np.asarray(colour.convert("L"), int)[..., None]).mean() < 2
        expected = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR), int) for frame in own]
        difference = np.abs(video.frames([0, 1], size[1], size[0]) - np.stack(expected)).mean((1, 2, 3))
    assert difference[1] < 0.5
    assert difference[0] < 3  # of colour, the video has half the resolution, and here it is interpolated


def bad_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Files that are not right, and what is said of them."""
    avi = film(folder / "good.avi").read_bytes()
    raw = film(folder / "raw.avi", 2, "rawvideo", (16, 16)).read_bytes()
    mp4 = film(folder / "good.mp4", codec="libx264").read_bytes()
    webm = film(folder / "good.webm", codec="libvpx", **FAST_VPX).read_bytes()
    with (
        av.open(str(folder / "fast.mp4"), "w", options={"movflags": "faststart"}) as out,
        av.open(str(folder / "good.mp4")) as given,
    ):
        stream = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    index_first = (folder / "fast.mp4").read_bytes()
    with av.open(str(folder / "sound.m4a"), "w", format="mp4") as out:
        tone = out.add_stream("aac", rate=16000, layout="mono")
        for i in range(5):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            out.mux(tone.encode(frame))
        out.mux(tone.encode(None))
    for name in ("none.avi", "none.mp4", "none.webm"):
        with av.open(str(folder / name), "w") as out:
            stream = out.add_stream({"avi": "mpeg4", "mp4": "mpeg4", "webm": "libvpx"}[name[5:]], rate=25)
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            stream.codec_context.open()
            out.start_encoding()
    Image.fromarray(numbered(1, 160, 120)).save(folder / "picture.jpg")
    size = raw.index(b"strf") + 12
    assert raw[size : size + 4] == (16).to_bytes(4, "little")
    huge = raw[:size] + (12_000).to_bytes(4, "little") * 2 + raw[size + 8 :]
    assert b"XVID" in avi
    return {
        "nothing.avi": (b"", r"empty \(0 bytes\)"),
        "text.avi": (b"Dear reader", "not a video: text that starts with 'Dear reader'"),
        "lfs.mp4": (b"version https://git-lfs.github.com/spec/v1\n", r"not a video: a Git LFS pointer \(fetch .*"),
        "playlist.avi": (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "not a video: text that starts with '#EXTM3U .*"),
        "picture.avi": ((folder / "picture.jpg").read_bytes(), "not a video: a picture"),
        "noise.mp4": (bytes(range(255, 155, -1)), "not a video: starts with the bytes ff fe fd fc fb fa f9 f8"),
        "cut.avi": (avi[: len(avi) // 2], rf"truncated \({len(avi) // 2} bytes, but its header says {len(avi)}\)"),
        "cut.mp4": (mp4[: len(mp4) // 3], r"truncated \(.* bytes of an MP4 or MOV file, without its index, moov\)"),
        "index first.mp4": (index_first[:-500], r"truncated \(\d+ bytes, but its header says \d+\)"),
        "cut.webm": (webm[: len(webm) // 2], r"truncated \(\d+ bytes, but its header says \d+\)"),
        "header.avi": (avi[:40] + b"\xff" * (len(avi) - 40), r"(broken header|has no|truncated).*"),
        "sound.mp4": ((folder / "sound.m4a").read_bytes(), "has sound, but no video"),
        "none.avi": ((folder / "none.avi").read_bytes(), "has no frames.*"),
        "none.mp4": ((folder / "none.mp4").read_bytes(), "has no .*"),
        "none.webm": ((folder / "none.webm").read_bytes(), "has no .*"),
        "huge.avi": (huge, "12000 x 12000 pixels, more than 100 megapixels"),
        "codec.avi": (avi.replace(b"XVID", b"ZZZZ"), r"its codec is unknown here \(FFmpeg .*\)"),
    }


def test_what_cannot_be_read_is_said_in_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In our words alone: FFmpeg prints nothing."""
    bad = bad_files(tmp_path / "made")
    capfd.readouterr()
    for name, (data, reason) in bad.items():
        (tmp_path / name).write_bytes(data)
        for given in (tmp_path / name, data):
            with pytest.raises(Unreadable, match=f"^{reason}$"), Video(given) as video:
                video.frames([video.count // 2])
    assert capfd.readouterr() == ("", "")


def test_videos_in_threads(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", COUNT, "libx264", b_frames=2)

    def read(start: int) -> list[int]:
        with Video(path) as video:
            return numbers_in(video.frames(range(start, COUNT, 3)))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(12))) == [list(range(start, COUNT, 3)) for start in range(12)]
