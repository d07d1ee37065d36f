"""The reader of a folder of videos per class."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from footage import film, numbers_in
from PIL import Image

from mvray import Job
from mvray.data.bad_files import Note, check
from mvray.data.decoding import Unreadable
from mvray.data.readers.folder import Folder
from mvray.data.readers.ucf101 import UCF101
from mvray.data.readers.videos import SUFFIXES, Videos
from mvray.data.rows import ROWS
from mvray.errors import DataError
from mvray.experiment.overrides import replaced
from mvray.experiment.steps import Data, Train
from mvray.methods import classifier
from mvray.storage.storage import Storage


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, four kinds of files."""
    root = tmp_path_factory.mktemp("clips")
    for i in range(6):
        film(root / "run" / f"{i}.avi", 8 + i, first=10 * i)
        film(root / "walk" / "outside" / f"{i}.mp4", 9, "libx264", (64, 48))
    film(root / "walk" / "7.webm", 5, "libvpx", deadline="realtime", **{"cpu-used": "8"})
    film(root / "walk" / "8.MPG", 6, "mpeg1video")
    return root


def test_rows(clips: Path) -> None:
    index = Videos(root=str(clips)).index()
    assert index.rows.schema == ROWS
    assert index.classes == ("run", "walk")
    assert index.bad == ()
    rows = {row["key"]: row for row in index.rows.to_pylist()}
    assert len(rows) == 14
    assert {key: row["frames"] for key, row in rows.items() if row["label"] == 0} == {
        f"run/{i}.avi": 8 + i for i in range(6)
    }
    assert (rows["walk/7.webm"]["frames"], rows["walk/8.MPG"]["frames"]) == (5, 6)  # their headers do not say
    one = rows["walk/outside/3.mp4"]
    assert one["bytes"] == (clips / "walk/outside/3.mp4").stat().st_size
    assert (one["location"], one["group"], one["label"]) == ("walk/outside/3.mp4", "walk/outside", 1)
    assert Counter(row["split"] for row in rows.values()) == {"train": 10, "validation": 1, "test": 3}


def test_set_source() -> None:
    job = Job("job", (Train("a", classifier.Config(), Data(Folder(root="/data"))),))
    changed = replaced(job, {"source": "videos", "source.test": "0.3", "source.train": "0.6"})
    assert next(changed.walk()).data.source == Videos(root="/data", train=0.6, test=0.3)
    changed = replaced(job, {"source": "ucf101", "source.split": "2", "source.classes": "YoYo,Run"})
    assert next(changed.walk()).data.source == UCF101(root="/data", split=2, classes=("YoYo", "Run"))


def test_frames_of_a_location(clips: Path) -> None:
    source = Videos(root=str(clips))
    with source.open("run/2.avi") as video:
        assert numbers_in(video.frames([0, 9])) == [20, 29]
        table = video.table
    with pickle.loads(pickle.dumps(source)).open("run/2.avi") as video:  # noqa: S301 (our own)
        assert video.table == table
    with source.open("run/2.avi") as video:
        assert video.table is table  # the packets were not read again
    middle = source.read("run/3.avi", "")
    assert middle.shape == (120, 160, 3)
    assert numbers_in(middle[None]) == [35]


def test_folders_named_like_splits_decide(tmp_path: Path) -> None:
    for path in ("train/a/1.avi", "train/b/2.avi", "val/a/3.avi", "test/b/deep/4.avi"):
        film(tmp_path / path, 2)
    rows = Videos(root=str(tmp_path)).index().rows.to_pylist()
    assert {row["key"]: (row["split"], row["label"]) for row in rows} == {
        "train/a/1.avi": ("train", 0),
        "train/b/2.avi": ("train", 1),
        "val/a/3.avi": ("validation", 0),
        "test/b/deep/4.avi": ("test", 1),
    }


def test_without_a_validation_folder_it_comes_from_train(tmp_path: Path) -> None:
    data = film(tmp_path / "one.avi", 1).read_bytes()
    (tmp_path / "one.avi").unlink()
    for i in range(20):
        for path in ("train/a", "test/a"):
            (tmp_path / path).mkdir(parents=True, exist_ok=True)
            (tmp_path / path / f"{i}.avi").write_bytes(data)
    for asked in (0.1, 2):
        rows = Videos(root=str(tmp_path), validation=asked).index().rows
        assert Counter(rows["split"].to_pylist()) == {"train": 18, "validation": 2, "test": 20}


def test_bad_videos_are_left_out_with_their_reason(tmp_path: Path) -> None:
    good = film(tmp_path / "a" / "good.avi").read_bytes()
    files = {
        "cut.avi": good[:3000],
        "empty.avi": b"",
        "not.mp4": b"<html>404</html>",
        "zero.avi": good[: good.index(b"movi") + 4],
    }
    for name, data in files.items():
        (tmp_path / "a" / name).write_bytes(data)
    (tmp_path / "a" / "link.avi").symlink_to(tmp_path / "nowhere.avi")
    with av.open(str(tmp_path / "a" / "sound.mkv"), "w") as out:
        tone = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        out.mux(tone.encode(frame))
        out.mux(tone.encode(None))
    index = Videos(root=str(tmp_path)).index()
    assert index.rows["key"].to_pylist() == ["a/good.avi"]
    reasons = {record.location: record.reason for record in index.bad}
    assert reasons.pop("a/cut.avi").startswith("truncated (3000 bytes, but its header says ")
    assert reasons.pop("a/zero.avi").startswith("truncated (")
    assert reasons == {
        "a/empty.avi": "empty (0 bytes)",
        "a/link.avi": "a link to a file that is not there",
        "a/not.mp4": "not a video: text that starts with '<html>404</html>'",
        "a/sound.mkv": "has sound, but no video",
    }
    with pytest.raises(DataError, match=r"Found 6 of 7 files unreadable"):
        check(index, 0.01)


def test_a_file_that_vanished_is_unreadable(tmp_path: Path) -> None:
    film(tmp_path / "a" / "1.avi", 2)
    source = Videos(root=str(tmp_path))
    source.index()
    (tmp_path / "a" / "1.avi").unlink()
    with pytest.raises(Unreadable, match="the file is not there any more"):
        source.open("a/1.avi")


def test_other_files_are_told_of_and_hidden_ones_are_not(tmp_path: Path) -> None:
    film(tmp_path / "a" / "1.avi", 2)
    film(tmp_path / "stray.mp4", 2)
    for name in ("a/notes.txt", "a/.DS_Store", "__MACOSX/a/1.avi"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    Image.new("L", (4, 4)).save(tmp_path / "a" / "1.jpg")
    index = Videos(root=str(tmp_path)).index()
    assert index.rows["key"].to_pylist() == ["a/1.avi"]
    assert index.bad == (Note("a/1.jpg", "3 files are no videos in a class and are ignored: 1 .jpg, 1 .txt, 1 .mp4"),)


def test_a_folder_without_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Found no folder .*/none; expected videos there. Check the path \(--data\)"):
        Videos(root=str(tmp_path / "none")).index()
    film(tmp_path / "stray.avi", 2)
    with pytest.raises(DataError, match=r"has no folder per class: found stray.avi; expected CLASS/VIDEO with the suf"):
        Videos(root=str(tmp_path)).index()


def test_every_suffix_is_one_that_can_be_opened(tmp_path: Path) -> None:
    codecs = {".webm": "libvpx", ".wmv": "wmv2", ".asf": "wmv2", ".flv": "flv", ".mpg": "mpeg1video"}
    codecs |= dict.fromkeys((".mpeg", ".vob", ".ts", ".mts", ".m2ts"), "mpeg2video")
    for suffix in set(SUFFIXES) - {".ogv"}:  # the FFmpeg here cannot write Theora
        film(tmp_path / "a" / f"1{suffix}", 12, codecs.get(suffix, "mpeg4"), (176, 144))
    index = Videos(root=str(tmp_path)).index()
    assert index.bad == ()
    assert index.rows["frames"].to_pylist() == [12] * (len(SUFFIXES) - 1)


@pytest.mark.slow
def test_the_same_from_s3(clips: Path, s3: str) -> None:
    storage = Storage(s3)
    for file in sorted(path for path in clips.rglob("*") if path.is_file()):
        storage.write(file.relative_to(clips).as_posix(), file.read_bytes())
    local, remote = Videos(root=str(clips)), Videos(root=s3)
    assert remote.index().rows.equals(local.index().rows)
    for location in ("run/0.avi", "walk/outside/1.mp4", "walk/7.webm"):
        assert np.array_equal(remote.read(location, ""), local.read(location, ""))
