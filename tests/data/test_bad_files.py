"""What cannot be read is found without decoding, named with its reason, and counted."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from mvray.data.bad_files import Note, as_table, check, inspect
from mvray.data.decoding import MAX_MEGAPIXELS, Unreadable, load_pixels, open_picture
from mvray.data.rows import rows
from mvray.errors import DataError
from mvray.experiment.source import BadRecord, Index
from mvray.storage.storage import Storage


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def reasons(tmp_path: Path, files: dict[str, bytes]) -> dict[str, str]:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    storage = Storage(str(tmp_path))
    return inspect(storage, storage.list())


@pytest.fixture
def image(drawn_picture: Callable[..., Image.Image]) -> Image.Image:
    return drawn_picture(400, 300, seed=1, mode="RGB")


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = encoded(Image.new("L", (8, 8)), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


KINDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif"}


def test_good_pictures_of_every_kind_pass(tmp_path: Path, image: Image.Image) -> None:
    files = {f"a.{suffix}": encoded(image, kind) for kind, suffix in KINDS.items()}
    files["progressive.jpg"] = encoded(image, "JPEG", progressive=True)
    files["trailing.jpg"] = files["a.jpg"] + b"\0" * 100  # some scanners and cameras do this
    files["trailing.png"] = files["a.png"] + b"more"
    files["large header.jpg"] = encoded(image, "JPEG", exif=b"Exif\0\0" + b"\0" * 60_000)
    assert reasons(tmp_path, files) == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_truncated_pictures_of_every_kind_are_found(tmp_path: Path, image: Image.Image, kind: str, part: float) -> None:
    data = encoded(image, kind)
    found = reasons(tmp_path, {f"cut.{KINDS[kind]}": data[: int(len(data) * part)]})
    assert list(found) == [f"cut.{KINDS[kind]}"]
    assert "truncated" in found[f"cut.{KINDS[kind]}"] or "header" in found[f"cut.{KINDS[kind]}"]


def test_a_download_padded_with_zeros_is_truncated(tmp_path: Path, image: Image.Image) -> None:
    data = encoded(image, "JPEG")
    found = reasons(tmp_path, {"a.jpg": data[: len(data) // 2] + b"\0" * (len(data) // 2)})
    assert "truncated" in found["a.jpg"]


def test_other_reasons(tmp_path: Path, image: Image.Image) -> None:
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = reasons(
        tmp_path,
        {
            "empty.jpg": b"",
            "text.jpg": b"Dear reader,\nthis is no picture.",
            "page.jpg": b"<!DOCTYPE html><html><body>404" + b" not found" * 5000,
            "japanese.jpg": "これは文章です。".encode() * 3000,
            "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "archive.jpg": b"PK\x03\x04\x00\x01\xfe\xff",
            "huge.jpg": jpeg_of_size(65_000, 65_000),
            "zero.jpg": jpeg_of_size(0, 100),
            "start only.jpg": b"\xff\xd8\xff\xd9",
            "good.jpg": encoded(image, "JPEG"),
        },
    )
    assert found.pop("zero.jpg")
    assert found.pop("start only.jpg")
    assert found == {
        "empty.jpg": "empty (0 bytes)",
        "text.jpg": "not a picture: text that starts with 'Dear reader, this is no picture.'",
        "page.jpg": "not a picture: text that starts with '<!DOCTYPE html><html><body>404 not found'",
        "japanese.jpg": f"not a picture: text that starts with '{'これは文章です。' * 5}'",
        "pointer.jpg": "not a picture: a Git LFS pointer (fetch the real file with git lfs pull)",
        "archive.jpg": "not a picture: starts with the bytes 50 4b 03 04 00 01 fe ff",
        "huge.jpg": f"65000 x 65000 pixels, more than {MAX_MEGAPIXELS} megapixels",
        "link.jpg": "a link to a file that is not there",
    }


def test_a_large_png_of_few_bytes_is_refused_before_decoding(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        import zlib

        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"\0" * 100) + chunk(b"IEND", b"")
    assert "40000 x 40000 pixels" in reasons(tmp_path, {"bomb.png": bomb})["bomb.png"]


def test_only_suspicious_files_are_read_whole(tmp_path: Path, image: Image.Image) -> None:
    big = encoded(image.resize((2000, 1500)), "JPEG", quality=95)
    (tmp_path / "a.jpg").write_bytes(big)
    read: list[str] = []

    class Counting(Storage):
        def read(self, path: str) -> bytes:
            read.append(path)
            return super().read(path)

        def read_range(self, path: str, start: int, length: int) -> bytes:
            read.append(f"{length} bytes of {path}")
            return super().read_range(path, start, length)

    storage = Counting(str(tmp_path))
    assert inspect(storage, storage.list()) == {}
    assert read == ["16384 bytes of a.jpg", "16 bytes of a.jpg"]


def test_broken_in_the_middle_shows_at_decoding(image: Image.Image) -> None:
    data = encoded(image, "PNG")
    broken = data[: len(data) // 2] + b"\0" * 50 + data[len(data) // 2 + 50 :]
    with pytest.raises(Unreadable, match="broken"):
        load_pixels(open_picture(broken))


def index_of(good: int, bad: list[BadRecord]) -> Index:
    names = [f"{i}.jpg" for i in range(good)]
    columns = {"key": names, "location": names, "part": [""] * good, "label": [0] * good, "split": ["train"] * good}
    return Index(
        rows({**columns, "group": [""] * good, "regions": [[]] * good, "bytes": [1] * good}), ("a",), tuple(bad)
    )


def test_five_of_five_hundred_pass_and_six_do_not() -> None:
    bad = [BadRecord(f"bad{i}.jpg", f"reason {i}") for i in range(6)]
    check(index_of(495, bad[:5]), 0.01)
    with pytest.raises(DataError) as caught:
        check(index_of(494, bad), 0.01)
    assert str(caught.value) == (
        "Found 6 of 500 files unreadable (1.2%); expected at most 1.0%:\n"
        "  bad0.jpg: reason 0\n  bad1.jpg: reason 1\n  bad2.jpg: reason 2\n  bad3.jpg: reason 3\n  bad4.jpg: reason 4\n"
        "  and 1 more\nMend or remove these files, or allow more with --set data.max_bad_fraction=0.1."
    )


def test_notes_are_listed_but_not_counted() -> None:
    bad = [Note("annotations/A.xml", "missing"), BadRecord("a.jpg", "empty")]
    check(index_of(99, bad), 0.01)
    assert as_table(bad).to_pylist() == [
        {"location": "annotations/A.xml", "reason": "missing", "left_out": False},
        {"location": "a.jpg", "reason": "empty", "left_out": True},
    ]
    assert as_table([]).schema.types == [pa.string(), pa.string(), pa.bool_()]


def test_nothing_readable_at_all() -> None:
    with pytest.raises(DataError, match=r"Found 1 of 1 files unreadable \(100.0%\)"):
        check(index_of(0, [BadRecord("a.jpg", "empty")]), 0.01)
