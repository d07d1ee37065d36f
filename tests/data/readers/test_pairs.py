"""Folders of pairs as people have them: what is read right, and what is refused by name."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvray.data.loader import dataset
from mvray.data.readers import Pairs
from mvray.errors import DataError
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Data

WIDTH, HEIGHT = 30, 20
NAMES = "abcdef"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name in NAMES:
        save(tmp_path, name)
    (tmp_path / "classes.txt").write_text("background\nthing\n")
    return tmp_path


def halves(width: int, height: int, right: int = 1) -> np.ndarray:
    classes_HW = np.zeros((height, width), np.uint8)
    classes_HW[:, width // 2 :] = right
    return classes_HW


def save(
    root: Path, name: str, size: tuple[int, int] = (WIDTH, HEIGHT), mode: str = "RGB", orientation: int = 1
) -> None:
    """A picture that is light where its class map is 1, both as they are stored."""
    classes_HW = halves(*size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(classes_HW * 200).convert(mode).save(root / f"images/{name}.jpg", quality=95, exif=exif)
    Image.fromarray(classes_HW).save(root / f"masks/{name}.png")


def source_of(root: Path, **settings: float) -> Pairs:
    return Pairs(root=str(root), **({"train": 1, "validation": 0, "test": 0} | settings))


def reasons(root: Path) -> dict[str, str]:
    return {record.location: record.reason for record in source_of(root).index().bad}


def grey_png(values_HW: np.ndarray, bits: int) -> bytes:
    """A grey PNG of few bits, as Pillow does not write it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values_HW.shape
    bits_HWb = (values_HW[..., None] >> np.arange(bits)[::-1]) & 1
    lines = np.packbits(bits_HWb.reshape(height, -1).astype(np.uint8), axis=1)
    data = b"".join(b"\0" + line.tobytes() for line in lines)
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_a_grey_picture_and_one_of_one_line(root: Path) -> None:
    save(root, "a", mode="L")
    save(root, "b", size=(2000, 1))
    save(root, "c", size=(1, 2000))
    source = source_of(root)
    rows = source.index().rows
    for train in (False, True):
        pictures = Pictures(64, 64, 3, fit="pad", **({"size_range": (0.5, 2.0)} if train else {}))
        samples = dataset(Data(source, pictures), rows, train=train, targets=("mask",))
        for row in range(3):
            sample = samples[row, 0]
            assert sample["image"].shape == (3, 64, 64)
            assert sample["mask"].shape == (64, 64)
            assert set(np.unique(sample["mask"])) <= {0, 1, 255}
            assert (sample["mask"] != 255).any()
        assert samples.failures == {}


def test_class_maps_of_other_kinds(root: Path) -> None:
    classes_HW = halves(WIDTH, HEIGHT)
    Image.fromarray(classes_HW.astype(np.uint16)).save(root / "masks/a.png")
    (root / "masks/b.png").write_bytes(grey_png(classes_HW, 4))
    (root / "masks/c.png").write_bytes(grey_png(classes_HW, 1))
    Image.fromarray(classes_HW * 255).convert("RGBA").save(root / "masks/d.png")
    (root / "masks/e.png").unlink()
    Image.fromarray(classes_HW).save(root / "masks/e.bmp")
    (root / "masks/f.png").write_bytes((root / "masks/f.png").read_bytes()[:-20])
    expected = "expected a palette or 8 bits of grey, whose values are classes"
    assert reasons(root) == {
        "masks/a.png": f"pixels of 16 bits of grey; {expected}",
        "masks/b.png": f"pixels of 4 bits of grey; {expected}",
        "masks/d.png": f"pixels of 8 bits of RGB with transparency; {expected}",
        "masks/e.bmp": "not a PNG file: starts with the bytes " + (root / "masks/e.bmp").read_bytes()[:8].hex(" "),
        "masks/f.png": "truncated",
    }
    assert np.array_equal(source_of(root).read_target("masks/c.png", "mask"), classes_HW)


def test_a_picture_that_is_turned(root: Path) -> None:
    """A class map as large as the upright picture is right; one whose size does not tell is refused."""
    save(root, "a", orientation=6)  # stored lying, seen standing, its class map as it is stored
    save(root, "b", orientation=6)
    Image.fromarray(halves(HEIGHT, WIDTH)).save(root / "masks/b.png")
    save(root, "c", orientation=3)
    save(root, "d", size=(20, 20), orientation=8)
    told = "its class map perhaps not; expected one without. Save it upright."
    assert reasons(root) == {
        "masks/a.png": f"its class map is {WIDTH} x {HEIGHT} pixels, the picture images/a.jpg {HEIGHT} x {WIDTH}",
        "masks/c.png": f"the picture images/c.jpg is turned by its EXIF orientation 3, {told}",
        "masks/d.png": f"the picture images/d.jpg is turned by its EXIF orientation 8, {told}",
    }
    assert source_of(root).read("images/b.jpg", "").shape[:2] == (WIDTH, HEIGHT)


def test_white_for_things_is_refused_and_read_by_a_table(root: Path) -> None:
    for name in NAMES:
        Image.fromarray(halves(WIDTH, HEIGHT, 255)).save(root / f"masks/{name}.png")
    with pytest.raises(
        DataError, match=r"6 class maps .* nothing but 0 and 255, which counts for nothing.*colours.txt"
    ):
        source_of(root).index()
    (root / "colours.txt").write_text("0 0 0 background\n255 255 255 thing\n")
    source = source_of(root)
    assert source.index().bad == ()
    assert np.array_equal(source.read_target("masks/a.png", "mask"), halves(WIDTH, HEIGHT))


def test_names_that_are_there_twice_are_left_out(root: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images/a.png")
    (root / "images/b.json").write_text("{}")
    (root / "images/._c.jpg").write_bytes(b"x")
    assert reasons(root) == {
        "images/a.jpg": "there is images/a.png, too: which one is meant?",
        "images/a.png": "there is images/a.jpg, too: which one is meant?",
    }


def test_folders_may_be_splits(root: Path) -> None:
    for number, name in enumerate(NAMES):
        split = ("train", "train", "train", "train", "val", "test")[number]
        for folder, suffix in (("images", "jpg"), ("masks", "png")):
            (root / folder / split).mkdir(exist_ok=True)
            (root / f"{folder}/{name}.{suffix}").rename(root / f"{folder}/{split}/{name}.{suffix}")

    def splits(**settings: float) -> dict[str, str]:
        rows = source_of(root, **settings).index().rows
        return dict(zip(rows["key"].to_pylist(), rows["split"].to_pylist(), strict=True))

    trained = dict.fromkeys([f"train/{name}" for name in "abcd"], "train")
    assert splits() == {**trained, "val/e": "validation", "test/f": "test"}
    for folder in ("images", "masks"):
        (root / folder / "val").rename(root / folder / "more")
    assert sorted(splits(train=0.5, test=0.5).values()) == ["test"] * 3 + ["train"] * 3, "folders of any other names"
    for folder in ("images", "masks"):
        shutil.rmtree(root / folder / "more")
    assert sorted(splits(train=0.5, validation=0.25).values()) == ["test", "train", "train", "train", "validation"]
