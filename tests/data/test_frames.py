"""Frames of many samples as one stream."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from footage import film, numbers_in

from mvray.data.frames import AHEAD_FRAMES, frames
from mvray.data.readers.folder import Folder
from mvray.data.readers.videos import Videos
from mvray.experiment.contracts import Frame


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    root = tmp_path_factory.mktemp("frames")
    film(root / "a" / "one.avi", 25)
    film(root / "a" / "two.mp4", 31, codec="libx264", b_frames=2)
    film(root / "b" / "three.webm", 7, codec="libvpx", size=(96, 64))
    return Videos(root=str(root), train=1.0, validation=0.0, test=0.0)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("every", [1, 6])
def test_every_kth_frame_of_every_video_in_order(source: Videos, workers: int, every: int) -> None:
    rows = source.index().rows
    found = list(frames(source, rows, every, workers))
    assert all(isinstance(each, Frame) for each in found)
    expected = [
        (key, number)
        for key, count in zip(rows["key"].to_pylist(), (25, 31, 7), strict=True)
        for number in range(0, count, every)
    ]
    assert [(frame.key, frame.number) for frame in found] == expected
    for frame in found:
        assert numbers_in(frame.pixels[None]) == [frame.number]
    assert found[-1].pixels.shape == (64, 96, 3)


def test_a_video_that_cannot_be_read_is_named_and_the_others_go_on(source: Videos, tmp_path: Path) -> None:
    good, bad = film(tmp_path / "a" / "good.avi", 5), film(tmp_path / "a" / "bad.avi", 5)
    videos = Videos(root=str(tmp_path), train=1.0, validation=0.0, test=0.0)
    rows = videos.index().rows
    bad.unlink()
    found = list(frames(videos, rows, workers=2))
    assert found[0] == (0, "the file is not there any more")
    assert [frame.key for frame in found[1:]] == [f"a/{good.name}"] * 5


def test_pictures_are_one_frame_each(drawings: Path) -> None:
    pictures = Folder(root=str(drawings))
    rows = pictures.index().rows.slice(0, 5)
    found = list(frames(pictures, rows))
    assert [(frame.key, frame.number) for frame in found] == [(key, 0) for key in rows["key"].to_pylist()]
    np.testing.assert_array_equal(found[2].pixels[..., 1], pictures.read(rows["location"][2].as_py(), "")[..., 0])


def test_little_is_decoded_ahead_and_closing_ends_the_threads(source: Videos) -> None:
    before = threading.active_count()
    stream = frames(source, source.index().rows, workers=2)
    next(stream)
    assert threading.active_count() == before + 2
    stream.close()
    assert threading.active_count() == before
    assert AHEAD_FRAMES < 25
