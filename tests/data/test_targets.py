"""Targets, labels and colours of samples: one view for the picture, its class map, and what was made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from mvray.data.colour import jittered
from mvray.data.columns import ClassesColumn, as_png, classes_field
from mvray.data.geometry import PADDING, View, cut_view
from mvray.data.loader import dataset
from mvray.data.readers.pairs import Pairs
from mvray.errors import DataError, SettingError
from mvray.experiment import IGNORE
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Data

CLASSES, COUNT, HEIGHT, WIDTH = 4, 6, 50, 70
PADDED = Pictures(64, 80, 3, flip=True, fit="pad")
CHANGES = ((PADDED, 1.0), (replace(PADDED, size_range=(0.5, 2.0)), None), (Pictures(64, 80, 3, True, (0.3, 0.9)), None))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pictures whose grey is 60 times the class of each pixel, in blocks of 10."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(COUNT):
        classes_HW = rng.integers(0, CLASSES, (HEIGHT // 10, WIDTH // 10)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
        Image.fromarray(classes_HW * 60).convert("RGB").save(tmp_path / f"images/{i}.png")
        Image.fromarray(classes_HW).save(tmp_path / f"masks/{i}.png")
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\nbird\n")
    return tmp_path


def source_of(root: Path) -> Pairs:
    return Pairs(root=str(root), train=1, validation=0, test=0)


def inner(classes_HW: np.ndarray) -> np.ndarray:
    """Where all pixels up to 3 away are of one class: a picture that is scaled has its own grey there."""
    shifted = np.stack([np.roll(classes_HW, (dy, dx), (0, 1)) for dy in (-3, 0, 3) for dx in (-3, 0, 3)])
    same: np.ndarray = (shifted == shifted[:1]).all(0)
    same[:3], same[-3:], same[:, :3], same[:, -3:] = False, False, False, False
    return same


@pytest.mark.parametrize(("pictures", "scale"), CHANGES)
def test_a_class_map_goes_through_the_view_of_its_picture(root: Path, pictures: Pictures, scale: float | None) -> None:
    source = source_of(root)
    samples = dataset(Data(source, pictures), source.index().rows, seed=3, train=True, targets=("mask",))
    seen = set()
    for row, epoch in np.ndindex(COUNT, 4):
        sample = samples[row, epoch]
        grey_HW, classes_HW = sample["image"][1].astype(int), sample["mask"]
        assert classes_HW.shape == (64, 80)
        assert classes_HW.dtype == np.uint8
        padding = classes_HW == IGNORE
        sure = ~padding if scale else inner(classes_HW) & ~padding
        np.testing.assert_array_equal(grey_HW[sure], 60 * classes_HW[sure].astype(int))
        assert set(np.unique(sample["image"][0][inner(classes_HW) & padding])) <= {PADDING[0]}
        seen |= {float(padding.mean().round(2))}
    assert (seen == {0.0}) == (pictures.fit == "stretch")
    assert np.array_equal(samples[0, 0]["mask"], samples[0, 0]["mask"])


def test_evaluation_sees_the_whole_picture_unscaled_or_made_to_fit(root: Path) -> None:
    source = source_of(root)
    rows = source.index().rows
    for pictures in (PADDED, replace(PADDED, height=25, width=35)):
        sample = dataset(Data(source, pictures), rows, targets=("mask",))[1, 0]
        whole = source.read_target("masks/1.png", "mask")
        if pictures is PADDED:
            assert np.array_equal(sample["mask"][7:57, 5:75], whole)
            assert (sample["mask"] == IGNORE).sum() == 64 * 80 - HEIGHT * WIDTH
        else:
            assert np.array_equal(sample["mask"], cut_view(whole, 25, 35, View(), Image.Resampling.NEAREST))


def test_class_maps_that_were_made_of_padded_pictures_are_cut_as_targets_are(root: Path) -> None:
    """A column holds what evaluation saw, padding and all; training cuts the same part out of it."""
    source = source_of(root)
    rows = source.index().rows
    whole = dataset(Data(source, PADDED), rows, targets=("mask",))
    files = [as_png(whole[row, 0]["mask"]) for row in range(COUNT)]
    table = pa.table({"key": rows["key"], "made": files}, pa.schema([("key", pa.string()), classes_field("made")]))
    columns = {"made": ClassesColumn(table, "made", PADDED)}
    for pictures in (PADDED, replace(PADDED, height=40, width=30), replace(PADDED, size_range=(2.0, 2.0))):
        samples = dataset(Data(source, pictures), rows, columns, train=True, targets=("mask",))
        for row in range(COUNT):
            sample = samples[row, 5]
            assert np.array_equal(sample["made"], sample["mask"])


def test_what_is_not_a_class_map_is_left_out_with_the_reason(root: Path) -> None:
    (root / "masks/0.png").unlink()
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "masks/1.png")
    Image.new("L", (WIDTH, HEIGHT), 254).save(root / "masks/2.png")
    Image.new("L", (WIDTH, HEIGHT + 1)).save(root / "masks/3.png")
    source = source_of(root)
    index = source.index()
    assert {record.location: record.reason for record in index.bad} == {
        "images/0.png": "has no class map masks/0.png",
        "masks/1.png": "pixels of 8 bits of RGB; expected a palette or 8 bits of grey, whose values are classes",
        "masks/3.png": f"its class map is {WIDTH} x {HEIGHT + 1} pixels, the picture images/3.png {WIDTH} x {HEIGHT}",
    }
    samples = dataset(Data(source, PADDED), index.rows, targets=("mask",))
    Image.new("L", (WIDTH, HEIGHT - 1)).save(root / "masks/4.png")  # after the index was made
    assert [int(samples[row, 0]["bad"]) for row in range(len(samples))] == [0, 1, -1]
    assert samples.failures == {
        0: "its mask masks/2.png holds the values 254; expected 0 to 3, or 255 for none",
        1: f"its mask is {WIDTH} x {HEIGHT - 1} pixels, the picture {WIDTH} x {HEIGHT}",
    }


def test_colours_are_classes_by_a_table(root: Path) -> None:
    table = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 255: (224, 224, 192)}
    expected = {}
    for file in (root / "masks").iterdir():
        classes_HW = np.array(Image.open(file))
        classes_HW[:2] = 255
        expected[file.name] = classes_HW
        colours = np.array([table.get(i, (0, 0, 0)) for i in range(256)], np.uint8)
        Image.fromarray(colours[classes_HW]).save(file)
    names = ("background", "cat", "dog", "bird")
    lines = [f"{r} {g} {b} {'ignore' if i == 255 else names[i]}" for i, (r, g, b) in table.items()]
    (root / "colours.txt").write_text("\n".join(lines))
    (root / "classes.txt").unlink()
    source = source_of(root)
    assert source.index().classes == names
    for name, classes_HW in expected.items():
        assert np.array_equal(source.read_target(f"masks/{name}", "mask"), classes_HW)
    (root / "colours.txt").write_text("\n".join(lines[:3]))
    message = r"first masks/0.png: holds the colours \(128, 128, 0\), \(224, 224, 192\), which are not in the table"
    with pytest.raises(DataError, match=message):
        source_of(root).index()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0 0\n1 1 1 cat\n2 2 2 dog", "line 1: '0 0 0'; expected RED GREEN BLUE NAME"),
        ("0 0 300 cat\n1 1 1 dog", "line 1: '0 0 300 cat'; expected RED"),
        ("0 0 0 cat", "names 1 classes; expected 2 to 254"),
    ],
)
def test_a_table_of_colours_that_is_none_is_refused(root: Path, text: str, message: str) -> None:
    (root / "colours.txt").write_text(text)
    (root / "classes.txt").unlink()
    with pytest.raises(DataError, match=message):
        source_of(root).index()


def test_settings_that_do_not_belong_together_are_refused() -> None:
    for settings, message in (
        ({"fit": "cut"}, "fit is 'cut'; expected stretch or pad"),
        ({"size_range": (0.5, 2.0)}, "size_range is .* belongs to pictures.fit=pad"),
        ({"fit": "pad", "crop_scale": (0.5, 1.0)}, "crop_scale is .* belongs to pictures.fit=stretch"),
        ({"jitter": (0.0, 0.0, 0.0, 0.6)}, "hue from 0 to 0.5"),
    ):
        with pytest.raises(SettingError, match=message):
            Pictures(**settings)


def test_colours_change_as_torchvision_changes_them() -> None:
    from torchvision.transforms import v2

    picture = np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8)
    assert np.array_equal(jittered(picture, (0.0, 0.0, 0.0, 0.0), 1), picture)
    assert np.array_equal(jittered(picture, (0.3, 0.3, 0.3, 0.1), 7), jittered(picture, (0.3, 0.3, 0.3, 0.1), 7))
    factors = []
    for key in range(200):
        changed = jittered(picture, (0.4, 0.0, 0.0, 0.0), key).astype(float)
        factor = np.median(changed[picture == 100]) / 100
        expected = v2.functional.adjust_brightness(torch.from_numpy(picture), factor).numpy()
        assert np.abs(changed - expected).max() <= 3  # the factor is known to half a grey value of 100
        factors.append(factor)
    assert 0.6 <= min(factors) < 0.65
    assert 1.35 < max(factors) <= 1.4
    grey = picture[:1]
    assert np.array_equal(jittered(grey, (0.0, 0.0, 1.0, 0.5), 3), grey)
