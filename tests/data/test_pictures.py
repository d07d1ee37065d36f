"""From files to batches: geometry, maps, bad samples, order, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from mvray.data import sampler
from mvray.data.columns import Column, map_field
from mvray.data.geometry import View, cut_view, sample_key
from mvray.data.loader import loader
from mvray.data.pictures import PictureDataset
from mvray.data.readers.folder import Folder
from mvray.data.readers.manga109 import Manga109
from mvray.errors import DataError
from mvray.experiment.inputs import Pictures
from mvray.nn import draws

Draw = Callable[..., Image.Image]
COUNT = 12


@pytest.fixture
def source(tmp_path: Path, drawn_picture: Draw) -> Folder:
    for i in range(COUNT):
        folder = tmp_path / "set" / f"class{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        drawn_picture(90, 120, seed=i, mode="RGB").save(folder / f"{i:02d}.png")
    return Folder(root=str(tmp_path / "set"), train=1, validation=0, test=0)


def maps(keys: list[str], kind: str = "float16") -> Column:
    values = np.random.default_rng(0).random((len(keys), 5, 4))
    flat = (values * 255 if kind == "uint8" else values).astype(kind).reshape(len(keys), -1)
    schema = pa.schema([pa.field("key", pa.string()), map_field("map", 5, 4, kind)])
    return Column(pa.table({"key": keys, "map": list(flat)}, schema=schema), "map")


def test_a_sample_without_augmentation(source: Folder) -> None:
    rows = source.index().rows
    dataset = PictureDataset(source, rows, Pictures(120, 90, 3, flip=True, crop_scale=(0.5, 0.9)))
    assert len(dataset) == COUNT
    for row in range(COUNT):
        sample = dataset[row, 0]
        expected = source.read(rows["location"][row].as_py(), "")
        assert np.array_equal(sample["image"], expected.transpose(2, 0, 1))
        assert (sample["label"], sample["index"], sample["bad"]) == (rows["label"][row].as_py(), row, -1)
        assert {name: value.dtype for name, value in sample.items()} == {
            "image": np.uint8, "label": np.int64, "index": np.int64, "draw": np.int64, "bad": np.int64
        }  # fmt: skip


@pytest.mark.parametrize(("height", "width", "channels"), [(60, 45, 3), (60, 45, 1), (200, 200, 1), (120, 90, 1)])
def test_size_and_channels(source: Folder, height: int, width: int, channels: int) -> None:
    rows = source.index().rows
    image = PictureDataset(source, rows, Pictures(height, width, channels))[3, 0]["image"]
    original = Image.open(Path(source.root) / rows["location"][3].as_py()).convert("L" if channels == 1 else "RGB")
    expected = np.asarray(original.resize((width, height), Image.Resampling.BILINEAR)).reshape(height, width, channels)
    assert image.shape == (channels, height, width)
    assert np.abs(image.transpose(1, 2, 0).astype(int) - expected).mean() < 2


def test_grey_pictures_in_colour(tmp_path: Path, drawn_picture: Draw) -> None:
    (tmp_path / "a").mkdir()
    drawn_picture(30, 40, seed=1).save(tmp_path / "a" / "1.png")
    source = Folder(root=str(tmp_path), train=1, validation=0, test=0)
    image = PictureDataset(source, source.index().rows, Pictures(40, 30, 3))[0, 0]["image"]
    assert image.shape == (3, 40, 30)
    assert np.array_equal(image[0], image[2])


def test_pages_of_manga109(tmp_path: Path, comics: Callable[..., Path]) -> None:
    source = Manga109(root=str(comics({"ARMS": 2})), train=1, validation=0, test=0)
    rows = source.index().rows
    dataset = PictureDataset(source, rows, Pictures(585, 414, 1))
    for row in range(4):
        expected = source.read(rows["location"][row].as_py(), rows["part"][row].as_py())
        assert np.array_equal(dataset[row, 0]["image"][0], expected[..., 0])


def test_keys_are_a_pure_function_of_seed_epoch_and_row(source: Folder) -> None:
    keys = {sample_key(seed, epoch, row) for seed in range(3) for epoch in range(5) for row in range(1000)}
    assert len(keys) == 3 * 5 * 1000
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert abs(np.mean([key > 0 for key in keys]) - 0.5) < 0.02
    rows = source.index().rows
    pictures = Pictures(60, 45, 3, flip=True, crop_scale=(0.3, 0.9))
    one, same = (PictureDataset(source, rows, pictures, seed=7, train=True) for _ in range(2))
    other = PictureDataset(source, rows, pictures, seed=8, train=True)
    assert one[2, 5]["draw"] == sample_key(7, 5, 2)
    assert np.array_equal(one[2, 5]["image"], same[2, 5]["image"])
    assert not np.array_equal(one[2, 5]["image"], one[2, 6]["image"])
    assert not np.array_equal(one[2, 5]["image"], other[2, 5]["image"])


def test_geometry_is_drawn_as_nn_draws_draws_it() -> None:
    keys = [sample_key(0, 0, row) for row in range(50)]
    theirs = draws.uniform(torch.tensor(keys), -1, (4,))
    pictures = Pictures(10, 10, 1, flip=True, crop_scale=(0.25, 1.0))
    for key, (mirror, scale, x, y) in zip(keys, theirs.double().tolist(), strict=True):
        view = View.random(pictures, key)
        side = (0.25 + 0.75 * scale) ** 0.5
        assert view.mirrored == (mirror < 0.5)
        assert (view.x0, view.y0) == pytest.approx((x * (1 - side), y * (1 - side)), abs=1e-6)
        assert (view.x1 - view.x0, view.y1 - view.y0) == pytest.approx((side, side), abs=1e-6)


def test_views_stay_inside_and_keep_their_share() -> None:
    pictures = Pictures(10, 10, 1, flip=True, crop_scale=(0.2, 0.6))
    views = [View.random(pictures, sample_key(1, 0, row)) for row in range(2000)]
    areas = [(view.x1 - view.x0) * (view.y1 - view.y0) for view in views]
    assert 0.2 <= min(areas) < 0.21
    assert 0.59 < max(areas) <= 0.6 + 1e-9
    assert all(0 <= v.x0 < v.x1 <= 1 + 1e-9 and 0 <= v.y0 < v.y1 <= 1 + 1e-9 for v in views)
    assert np.mean([view.mirrored for view in views]) == pytest.approx(0.5, abs=0.05)
    still = Pictures(10, 10, 1)
    assert {View.random(still, sample_key(1, 0, row)) for row in range(50)} == {View()}


@pytest.mark.parametrize("kind", ["float16", "uint8"])
def test_maps_are_joined_by_key_and_enlarged_as_torch_does(source: Folder, kind: str) -> None:
    rows = source.index().rows
    column = maps(rows["key"].to_pylist()[::-1], kind)
    dataset = PictureDataset(source, rows, Pictures(120, 90, 3), {"map": column})
    for row in (0, 5):
        stored = torch.from_numpy(column[COUNT - 1 - row].astype(np.float32)) / (255 if kind == "uint8" else 1)
        expected = torch.nn.functional.interpolate(stored[None, None], size=(120, 90), mode="bilinear")[0, 0]
        heat = dataset[row, 0]["map"]
        assert heat.dtype == np.float32
        torch.testing.assert_close(torch.tensor(heat), expected, atol=1e-6, rtol=0)


def test_maps_go_through_the_geometry_of_the_image(tmp_path: Path) -> None:
    """A picture that is its own map, enlarged: image and map show the same after any crop and flip."""
    small = np.linspace(0, 1, 5)[:, None] * 0.5 + np.linspace(0, 1, 4) ** 2 * 0.5
    large = torch.nn.functional.interpolate(torch.from_numpy(small)[None, None], size=(400, 320), mode="bilinear")
    (tmp_path / "a").mkdir()
    Image.fromarray((large[0, 0].numpy() * 255).round().astype(np.uint8)).save(tmp_path / "a" / "1.png")
    source = Folder(root=str(tmp_path), train=1, validation=0, test=0)
    rows = source.index().rows
    schema = pa.schema([pa.field("key", pa.string()), map_field("map", 5, 4)])
    table = pa.table({"key": rows["key"], "map": [small.astype(np.float16).reshape(-1)]}, schema=schema)
    pictures = Pictures(100, 80, 1, flip=True, crop_scale=(0.1, 0.9))
    dataset = PictureDataset(source, rows, pictures, {"map": Column(table, "map")}, train=True)
    seen_mirrored = set()
    for epoch in range(20):
        sample = dataset[0, epoch]
        assert np.abs(sample["image"][0] / 255 - sample["map"]).max() < 0.02
        seen_mirrored.add(View.random(pictures, int(sample["draw"])).mirrored)
    assert seen_mirrored == {True, False}


def test_crop_and_flip_by_hand() -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert np.array_equal(cut_view(picture, 6, 8, View(mirrored=True)), picture[:, ::-1])
    assert np.array_equal(cut_view(picture, 3, 4, View(0.25, 0.5, 0.75, 1.0)), picture[3:6, 2:6])
    assert np.array_equal(
        cut_view(picture, 3, 4, View(0.25, 0.5, 0.75, 1.0, mirrored=True)), picture[3:6, 2:6][:, ::-1]
    )


def test_other_columns_stay_as_they_are(source: Folder) -> None:
    rows = source.index().rows
    vectors = pa.array(list(np.arange(COUNT * 3, dtype=np.float32).reshape(COUNT, 3)), pa.list_(pa.float32(), 3))
    table = pa.table({"key": rows["key"], "feature": vectors, "cluster": np.arange(COUNT)})
    columns = {name: Column(table, name) for name in ("feature", "cluster")}
    (batch,) = loader(PictureDataset(source, rows, Pictures(60, 45, 3), columns), [[4, 2]])
    assert batch["feature"].tolist() == [[12, 13, 14], [6, 7, 8]]
    assert batch["cluster"].tolist() == [4, 2]


def test_samples_without_a_column_value(source: Folder) -> None:
    rows = source.index().rows
    column = maps(rows["key"].to_pylist()[2:])
    with pytest.raises(DataError, match=r"Found no 'map' for 2 of 12 samples"):
        PictureDataset(source, rows, Pictures(60, 45, 3), {"map": column})
    dataset = PictureDataset(source, rows, Pictures(60, 45, 3), {"map": column}, max_bad_fraction=0.2)
    assert dataset.failures == {0: "has no 'map'", 1: "has no 'map'"}
    sample = dataset[0, 0]
    assert (sample["index"], sample["bad"]) == (2, 0)
    assert np.array_equal(sample["map"], dataset[2, 0]["map"])


def broken(source: Folder, rows: pa.Table, *which: int) -> None:
    """Damage files so that only decoding shows it."""
    for row in which:
        file = Path(source.root) / rows["location"][row].as_py()
        data = file.read_bytes()
        file.write_bytes(data[:-200] + b"\0" * 100 + data[-100:])


@pytest.mark.parametrize("workers", [0, 3])
def test_a_sample_that_cannot_be_decoded_is_replaced_by_the_next(source: Folder, workers: int) -> None:
    rows = source.index().rows
    broken(source, rows, 3, 4, 11)
    dataset = PictureDataset(source, rows, Pictures(60, 45, 3), train=True)
    (batch,) = loader(dataset, [[2, 3, 4, 11, 5]], epoch=1, workers=workers)
    assert batch["index"].tolist() == [2, 5, 5, 0, 5]
    assert batch["bad"].tolist() == [-1, 3, 4, 11, -1]
    assert batch["draw"].tolist() == [sample_key(0, 1, row) for row in (2, 3, 4, 11, 5)]
    assert batch["label"].tolist() == [rows["label"][row].as_py() for row in (2, 5, 5, 0, 5)]
    assert torch.equal(batch["image"][1], batch["image"][4])
    assert sorted(dataset.failures) == [3, 4, 11]
    assert all("broken" in reason for reason in dataset.failures.values())
    assert source.index().bad == ()  # the cheap look did not see it


def test_a_file_that_vanished_is_replaced_too(source: Folder) -> None:
    rows = source.index().rows
    (Path(source.root) / rows["location"][1].as_py()).unlink()
    dataset = PictureDataset(source, rows, Pictures(60, 45, 3))
    assert dataset[1, 0]["index"] == 2
    assert dataset.failures == {1: "the file is not there any more"}


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_can_be_decoded(source: Folder, workers: int) -> None:
    rows = source.index().rows
    broken(source, rows, *range(COUNT))
    with pytest.raises(DataError, match="None of 12 pictures can be decoded, first class"):
        list(loader(PictureDataset(source, rows, Pictures(60, 45, 3)), [[0, 1], [2, 3]], workers=workers))


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_threads_change_nothing(source: Folder, workers: int) -> None:
    rows = source.index().rows
    pictures = Pictures(60, 45, 3, flip=True, crop_scale=(0.3, 1.0))
    dataset = PictureDataset(source, rows, pictures, {"map": maps(rows["key"].to_pylist())}, seed=1, train=True)
    order = [batch for epoch in range(3) for batch in sampler.order(COUNT, 5, epoch=epoch)] + [np.array([1])]
    alone, together = list(loader(dataset, order, 2, workers=0)), list(loader(dataset, order, 2, workers=workers))
    assert [batch["index"].tolist() for batch in together] == [batch.tolist() for batch in order]
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert together[0]["image"].shape == (5, 3, 60, 45)
    assert together[0]["map"].shape == (5, 60, 45)
    assert together[0]["label"].dtype == torch.int64


def test_closing_ends_the_threads_and_little_is_read_ahead(source: Folder) -> None:
    rows = source.index().rows
    asked: list[int] = []

    def order() -> object:
        for start in range(10_000):
            asked.append(start)
            yield [start % COUNT]

    batches = loader(PictureDataset(source, rows, Pictures(60, 45, 3)), order(), workers=2)
    assert next(batches)["index"].tolist() == [0]
    assert any(thread.name.startswith("decode") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())
    assert len(asked) < 20


@pytest.mark.gpu
def test_batches_are_pinned_where_asked(source: Folder) -> None:
    dataset = PictureDataset(source, source.index().rows, Pictures(60, 45, 3))
    (batch,) = loader(dataset, [[0, 1]], pin=True)
    assert all(tensor.is_pinned() for tensor in batch.values())
