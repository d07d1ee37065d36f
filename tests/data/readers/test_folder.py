"""The reader of a folder per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvray.data.bad_files import Note, check
from mvray.data.readers.folder import Folder
from mvray.errors import DataError
from mvray.storage.storage import Storage

Draw = Callable[..., Image.Image]


@pytest.fixture
def artists(tmp_path: Path, drawn_picture: Draw) -> Path:
    root = tmp_path / "artists"
    for name, count in (("Anna", 12), ("Björn", 8)):
        (root / name / "book 1").mkdir(parents=True)
        for i in range(count):
            drawn_picture(60, 80, seed=i).save(root / name / ("book 1" if i % 2 else "") / f"{i}.png")
    return root


def test_classes_are_folders_and_splits_are_drawn(artists: Path) -> None:
    index = Folder(root=str(artists)).index()
    assert index.classes == ("Anna", "Björn")
    assert index.bad == ()
    assert len(index.rows) == 20
    rows = {row["key"]: row for row in index.rows.to_pylist()}
    assert rows["Anna/book 1/1.png"]["group"] == "Anna/book 1"
    assert rows["Anna/0.png"]["label"] == 0
    assert rows["Björn/0.png"]["label"] == 1
    assert Counter((row["label"], row["split"]) for row in rows.values()) == {
        (0, "train"): 8, (0, "validation"): 1, (0, "test"): 3, (1, "train"): 6, (1, "validation"): 1, (1, "test"): 1
    }  # fmt: skip
    assert Folder(root=str(artists)).index().rows.equals(index.rows)
    assert not Folder(root=str(artists), split_seed=1).index().rows.equals(index.rows)


def test_folders_named_like_splits_decide(tmp_path: Path, drawn_picture: Draw) -> None:
    for path in ("train/a/1", "train/b/2", "val/a/3", "val/b/4", "test/a/5"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        drawn_picture(20, 20, seed=1).save(tmp_path / f"{path}.bmp")
    rows = Folder(root=str(tmp_path)).index().rows.to_pylist()
    assert {row["key"]: (row["split"], row["label"]) for row in rows} == {
        "train/a/1.bmp": ("train", 0),
        "train/b/2.bmp": ("train", 1),
        "val/a/3.bmp": ("validation", 0),
        "val/b/4.bmp": ("validation", 1),
        "test/a/5.bmp": ("test", 0),
    }


def test_without_a_validation_folder_it_comes_from_train(tmp_path: Path, drawn_picture: Draw) -> None:
    for i in range(20):
        for path in ("train/a", "test/a"):
            (tmp_path / path).mkdir(parents=True, exist_ok=True)
            drawn_picture(20, 20, seed=1).save(tmp_path / path / f"{i}.bmp")
    for asked in (0.1, 2):
        rows = Folder(root=str(tmp_path), validation=asked).index().rows
        assert Counter(rows["split"].to_pylist()) == {"train": 18, "validation": 2, "test": 20}


def test_a_class_may_be_called_train(tmp_path: Path, drawn_picture: Draw) -> None:
    for name in ("bus", "train"):
        (tmp_path / name).mkdir()
        drawn_picture(20, 20, seed=1).save(tmp_path / name / "1.png")
    assert Folder(root=str(tmp_path)).index().classes == ("bus", "train")


def saved(path: Path, image: Image.Image, **options: object) -> np.ndarray:
    image.save(path, **options)
    return Folder(root=str(path.parent)).read(path.name, "")


def test_every_mode_becomes_grey_or_rgb(tmp_path: Path, drawn_picture: Draw) -> None:
    colour = drawn_picture(40, 30, seed=2, mode="RGB")
    expected = np.asarray(colour)
    assert np.array_equal(saved(tmp_path / "rgb.png", colour), expected)
    assert np.array_equal(saved(tmp_path / "grey.png", colour.convert("L"))[..., 0], np.asarray(colour.convert("L")))
    assert np.array_equal(
        saved(tmp_path / "bits.png", colour.convert("1"))[..., 0], np.asarray(colour.convert("1")) * 255
    )
    palette = colour.quantize(256)
    assert np.array_equal(saved(tmp_path / "palette.gif", palette), np.asarray(palette.convert("RGB")))
    assert np.abs(saved(tmp_path / "cmyk.jpg", colour.convert("CMYK"), quality=100) - expected.astype(int)).mean() < 3
    deep = np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)
    assert np.array_equal(saved(tmp_path / "deep.png", Image.fromarray(deep))[..., 0], deep // 256)


def test_transparency_is_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    assert saved(tmp_path / "a.png", image).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    assert saved(tmp_path / "b.png", palette, transparency=0).tolist() == [[[255] * 3, [9] * 3]]


def test_exif_orientation_is_applied(tmp_path: Path, drawn_picture: Draw) -> None:
    upright = drawn_picture(800, 600, seed=3, mode="RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to the right for viewing
    turned = saved(tmp_path / "a.jpg", upright.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95)
    assert turned.shape == (600, 800, 3)
    assert np.abs(turned.astype(int) - np.asarray(upright)).mean() < 5
    small = Folder(root=str(tmp_path)).read_sized("a.jpg", "", 300, 400, grey=False)
    assert small.shape == (300, 400, 3)  # decoded at half size: 400 is the width as it is seen


def test_large_jpegs_are_decoded_at_a_fraction(tmp_path: Path, drawn_picture: Draw) -> None:
    (tmp_path / "a").mkdir()
    drawn_picture(1600, 1200, seed=4, mode="RGB").save(tmp_path / "a" / "1.jpg")
    source = Folder(root=str(tmp_path))
    assert source.read("a/1.jpg", "").shape == (1200, 1600, 3)
    assert source.read_sized("a/1.jpg", "", 300, 300, grey=False).shape == (300, 400, 3)
    assert source.read_sized("a/1.jpg", "", 301, 300, grey=True).shape == (600, 800, 1)


def test_other_files_are_told_of_and_hidden_ones_are_not(artists: Path, drawn_picture: Draw) -> None:
    (artists / "Anna" / "notes.txt").write_text("x")
    (artists / "Anna" / "cover.psd").write_text("x")
    (artists / "Anna" / ".DS_Store").write_text("x")
    drawn_picture(20, 20, seed=1).save(artists / "stray.png")
    index = Folder(root=str(artists)).index()
    assert len(index.rows) == 20
    assert index.bad == (
        Note("Anna/cover.psd", "3 files are no pictures in a class and are ignored: 1 .psd, 1 .txt, 1 .png"),
    )


def test_five_bad_pictures_of_five_hundred(tmp_path: Path, drawn_picture: Draw) -> None:
    (tmp_path / "a").mkdir()
    drawn_picture(60, 80, seed=1).save(tmp_path / "good.jpg")
    good = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "good.jpg").unlink()
    for i in range(500):
        (tmp_path / "a" / f"{i:03d}.jpg").write_bytes(good)
    huge = bytearray(good)
    at = good.index(b"\xff\xc0") + 5
    huge[at : at + 4] = b"\xff\xff\xff\xff"
    bad = {"000": b"", "001": good[:500], "002": bytes(huge), "003": b"just text", "004": b"\x00\x01\x02\x03"}
    for name, data in bad.items():
        (tmp_path / "a" / f"{name}.jpg").write_bytes(data)
    index = Folder(root=str(tmp_path)).index()
    check(index, 0.01)
    assert [(record.location, record.reason.split(" (")[0]) for record in index.bad] == [
        ("a/000.jpg", "empty"),
        ("a/001.jpg", "truncated"),
        ("a/002.jpg", "65535 x 65535 pixels, more than 100 megapixels"),
        ("a/003.jpg", "not a picture: text that starts with 'just text'"),
        ("a/004.jpg", "not a picture: starts with the bytes 00 01 02 03"),
    ]
    for i in range(5, 50):
        (tmp_path / "a" / f"{i:03d}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"Found 50 of 500 files unreadable \(10.0%\); expected at most 1.0%"):
        check(Folder(root=str(tmp_path)).index(), 0.01)


def test_a_folder_without_classes(tmp_path: Path, drawn_picture: Draw) -> None:
    with pytest.raises(DataError, match=r"Found no folder .*/none; .*--data"):
        Folder(root=str(tmp_path / "none")).index()
    drawn_picture(20, 20, seed=1).save(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"has no folder per class: found stray.png; expected CLASS/PICTURE"):
        Folder(root=str(tmp_path)).index()


@pytest.mark.slow
def test_the_same_from_s3(artists: Path, s3: str) -> None:
    storage = Storage(s3)
    for file in sorted(path for path in artists.rglob("*") if path.is_file()):
        storage.write(file.relative_to(artists).as_posix(), file.read_bytes())
    local, remote = Folder(root=str(artists)), Folder(root=s3)
    assert remote.index().rows.equals(local.index().rows)
    assert np.array_equal(remote.read("Anna/0.png", ""), local.read("Anna/0.png", ""))
