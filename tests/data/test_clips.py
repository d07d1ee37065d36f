"""Clips out of videos whose frames carry their number."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from footage import film, numbers_in
from pycocotools import mask as coco

from mvray.data.clips import ClipDataset
from mvray.data.geometry import ClipView
from mvray.data.loader import dataset, loader
from mvray.data.masks import MaskColumn
from mvray.data.readers.folder import Folder
from mvray.data.readers.videos import Videos
from mvray.errors import DataError, SettingError
from mvray.experiment.inputs import Clips, Masks
from mvray.experiment.steps import Data

CLIPS = Clips(96, 96, frames=8, every=4, short_side=(96, 128), test_side=110)
LONG, SHORT = 60, 10


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    root = tmp_path_factory.mktemp("clips")
    film(root / "run" / "long.avi", LONG)
    film(root / "run" / "short.avi", SHORT, codec="libx264", b_frames=2)
    film(root / "sit" / "wide.mp4", LONG, codec="libx264", size=(240, 100), sound="aac")
    return Videos(root=str(root), train=1.0, validation=0.0, test=0.0)


def row_of(source: Videos, name: str) -> pa.Table:
    rows = source.index().rows
    (at,) = [i for i, key in enumerate(rows["key"].to_pylist()) if name in key]
    return rows.slice(at, 1)


def test_without_training_it_is_the_middle_of_the_video(source: Videos) -> None:
    sample = ClipDataset(source, row_of(source, "long"), Clips(110, 110, 8, 4, (110, 128), 110))[0, 0]
    assert sample["clip"].shape == (3, 8, 110, 110)
    assert sample["clip"].dtype == np.uint8
    first = (LONG - 8 * 4) // 2
    view = ClipView.of(CLIPS, LONG, 120, 160, None)
    assert view.numbers == [first + 4 * i for i in range(8)]
    assert view.scaled_size == (110, 147)
    assert (view.top, view.left, view.mirrored) == (7, 26, False)


def test_frames_are_those_of_the_numbers(source: Videos) -> None:
    """Cut so that the whole frame is seen, the clip's own numbers can be read."""
    whole = Clips(100, 100, frames=8, every=4, short_side=(100, 100), test_side=100, flip=False)
    row = row_of(source, "wide")
    with source.open(row["location"][0].as_py()) as video:
        view = ClipView.of(whole, video.count, video.height, video.width, 5)
        assert numbers_in(video.frames(view.numbers)) == view.numbers


def test_a_short_video_begins_again() -> None:
    for key in (None, 1, 2):
        view = ClipView.of(CLIPS, SHORT, 120, 160, key)
        assert view.numbers == [(4 * i) % SHORT for i in range(8)]
    assert ClipView.of(CLIPS, 1, 120, 160, 3).numbers == [0] * 8


def test_training_draws_time_size_place_and_mirror() -> None:
    views = [ClipView.of(CLIPS, LONG, 120, 160, key) for key in range(3000)]
    firsts = [view.numbers[0] for view in views]
    assert set(firsts) == set(range(LONG - 8 * 4 + 1))
    assert all(b - a == 4 for view in views for a, b in zip(view.numbers, view.numbers[1:], strict=False))
    assert {view.scaled_size[0] for view in views} == set(range(96, 129))
    assert all(0 <= v.top <= v.scaled_size[0] - 96 and 0 <= v.left <= v.scaled_size[1] - 96 for v in views)
    tops = {v.top for v in views if v.scaled_size[0] > 120}
    assert min(tops) == 0
    assert max(tops) > 28
    assert np.mean([view.mirrored for view in views]) == pytest.approx(0.5, abs=0.03)
    assert not any(ClipView.of(Clips(flip=False), 100, 240, 320, key).mirrored for key in range(50))


def test_a_clip_is_a_pure_function_of_seed_epoch_and_row(source: Videos) -> None:
    rows = source.index().rows
    one, same = (ClipDataset(source, rows, CLIPS, seed=3, train=True) for _ in range(2))
    other = ClipDataset(source, rows, CLIPS, seed=4, train=True)
    np.testing.assert_array_equal(one[0, 5]["clip"], same[0, 5]["clip"])
    assert any((one[0, 5]["clip"] != each["clip"]).any() for each in (one[0, 6], other[0, 5]))
    (batch,) = loader(one, [[2, 0]], epoch=5, workers=2)
    assert batch["clip"].shape == (2, 3, 8, 96, 96)
    np.testing.assert_array_equal(batch["clip"][1].numpy(), one[0, 5]["clip"])


@pytest.mark.parametrize("key_seed", range(6))
def test_masks_lie_on_what_they_are_masks_of(tmp_path: Path, key_seed: int) -> None:
    """A white square moves over black; its mask goes through the same time, scale, crop and mirror."""
    path, count, keys = tmp_path / "a" / "square.avi", 50, []
    path.parent.mkdir()
    truth = []
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25, options={"threads": "1", "qmin": "1", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for t in range(count):
            image = np.zeros((120, 160, 3), np.uint8)
            image[30 : 30 + 40, 2 * t : 2 * t + 50] = 255
            truth.append(image[..., 0] > 0)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        out.mux(stream.encode())
    keys = ["a/square.avi"] * count
    masks = [
        [{"rle": coco.encode(np.asfortranarray(m.astype(np.uint8)))["counts"], "label": 0, "score": 1.0, "box": None}]
        for m in truth
    ]
    kind = pa.list_(
        pa.struct([("rle", pa.binary()), ("label", pa.int16()), ("score", pa.float32()), ("box", pa.null())])
    )
    fields = [pa.field("key", pa.string()), *(pa.field(n, pa.int32()) for n in ("frame", "height", "width"))]
    fields.append(pa.field("masks", kind, metadata={"classes": json.dumps(["thing"])}))
    values = [keys, range(count), [120] * count, [160] * count, masks]
    arrays = [pa.array(list(v), f.type) for v, f in zip(values, fields, strict=True)]
    column = MaskColumn(pa.table(arrays, schema=pa.schema(fields)), Masks())
    source = Videos(root=str(tmp_path), train=1.0, validation=0.0, test=0.0)
    data = Data(source, CLIPS)
    sample = dataset(data, source.index().rows, {"masks": column}, seed=key_seed, train=True)[0, key_seed]
    white, masked = sample["clip"].mean(0) > 127, sample["masks"] > 0
    assert masked.any()
    assert (white & masked).sum() / (white | masked).sum() > 0.93


def test_videos_that_break_while_decoding_are_replaced_and_named(source: Videos, tmp_path: Path) -> None:
    root = tmp_path / "broken"
    film(root / "a" / "good.avi", 40)
    bad = film(root / "a" / "bad.avi", 40)
    videos = Videos(root=str(root), train=1.0, validation=0.0, test=0.0)
    rows = videos.index().rows
    bad.write_bytes(b"not a video")
    samples = ClipDataset(videos, rows, CLIPS, train=True)
    at = rows["key"].to_pylist().index("a/bad.avi")
    sample = samples[at, 0]
    assert (int(sample["bad"]), int(sample["index"])) == (at, 1 - at)
    assert list(samples.failures) == [at]
    with pytest.raises(DataError, match=r"None of 1 videos can be decoded, first a/bad.avi: not a video"):
        ClipDataset(videos, rows.slice(at, 1), CLIPS)[0, 0]


def test_clips_of_a_source_of_pictures_are_refused(drawings: Path) -> None:
    pictures = Folder(root=str(drawings))
    with pytest.raises(SettingError, match="Folder has pictures, not videos"):
        dataset(Data(pictures, Clips()), pictures.index().rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "pictures.frames is 0; expected a value above 0"),
        ({"short_side": (200, 300)}, r"pictures.short_side is \(200, 300\); expected at least height and width, 224"),
        ({"test_side": 100}, "pictures.test_side is 100; expected at least"),
        ({"short_side": (300, 256)}, "and least <= most"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Clips(**settings)
