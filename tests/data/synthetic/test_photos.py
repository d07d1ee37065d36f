"""`make photos`: what tests/photos.py composes, out of small packages made here."""

from __future__ import annotations

import csv
import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import photos
import pytest
from PIL import Image

from mvray.data.readers import VOC2012
from mvray.data.synthetic import drawings


def resource_file(files: dict[str, bytes]) -> bytes:
    """A Qt resource file, version 2, with one folder; every other file compressed."""
    names, content, nodes = b"", b"", []

    def named(name: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        return at

    for number, (name, data) in enumerate(files.items()):
        packed = struct.pack(">I", len(data)) + zlib.compress(data) if number % 2 else data
        nodes.append(struct.pack(">IHIIQ", named(name), number % 2, 0, len(content), 0))
        content += struct.pack(">I", len(packed)) + packed
    root = struct.pack(">IHIIQ", 0, 2, 1, 1, 0)
    tree = root + struct.pack(">IHIIQ", named("resource"), 2, len(nodes), 2, 0) + b"".join(nodes)
    start = 20
    head = struct.pack(">4s4I", b"qres", 2, start, start + len(tree), start + len(tree) + len(content))
    return head + tree + content + names


def saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings with so much grain that they count as photographs, three of a class, and one without."""
    folder = tmp_path_factory.mktemp("packages")
    rng = np.random.default_rng(0)
    subjects = iter(sorted(drawings.names(drawings.artists()[0])))
    for places in photos.FOLDERS.values():
        place = folder / photos.STAMPS_AT / places[0]
        (place / "cartoon").mkdir(parents=True)
        for _ in range(3):
            name = next(subjects)
            rgba_HW4 = np.array(drawings.drawing(drawings.artists()[0], name).image)
            rgba_HW4[..., :3] = (rgba_HW4[..., :3] + rng.normal(0, 25, rgba_HW4[..., :3].shape)).clip(0, 255)
            Image.fromarray(rgba_HW4).save(place / f"{name}.png")
            Image.fromarray(rgba_HW4).save(place / "cartoon" / f"{name}.png")
        Image.new("RGBA", (40, 40), "red").save(place / "flat.png")
    grounds = {
        f"place{i}.webp": saved(Image.fromarray(rng.integers(0, 256, (300, 320, 3), np.uint8)), "WEBP")
        for i in range(3)
    }
    file = folder / photos.GROUNDS_AT
    file.parent.mkdir(parents=True)
    file.write_bytes(resource_file({**grounds, "icon.webp": saved(Image.new("RGB", (40, 40)), "WEBP"), "a.qml": b"x"}))
    for name in (photos.STAMPS, photos.GROUNDS):
        (folder / "usr/share/doc" / name).mkdir(parents=True)
        (folder / "usr/share/doc" / name / "copyright").write_text(f"terms of {name}\n")
    return folder


def test_a_resource_file_is_unpacked() -> None:
    files = {"a.txt": b"plain", "b.txt": b"packed" * 9}
    unpacked = dict(photos.resources(resource_file(files)))
    assert unpacked == {f"resource/{name}": data for name, data in files.items()}


def test_photographs_are_composed_in_vocs_layout(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "photos"
    photos.compose(out, packages, ["stamps 1", "grounds 2"], pictures=10, size=64, seed=1, processes=1)
    source = VOC2012(root=str(out), validation=0.0)
    index = source.index()
    assert index.bad == ()
    assert index.classes == ("background", "bird", "mammal", "flower", "produce", "sign")
    for row in index.rows.to_pylist():
        classes_HW = source.read_target(row["targets"]["mask"]["location"], "mask")
        assert set(np.unique(classes_HW)) - {0, 255} == set(np.flatnonzero(row["labels"]))
    with (out / "composed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown: dict[str, set[str]] = {"train": set(), "val": set()}
    for row in rows:
        shown[row["list"]] |= {row["ground"], *row["drawings"].split()}
    assert not shown["train"] & shown["val"]
    stamps = {stamp for stamp in shown["train"] | shown["val"] if "/" in stamp}
    assert not [stamp for stamp in stamps if "cartoon" in stamp]
    assert {stamp for stamp in stamps if stamp.endswith("flat")} <= {"town/roadsigns/flat"}
    text = (out / "LICENCES.txt").read_text()
    assert "terms of tuxpaint-stamps-default" in text
    assert "terms of gcompris-qt-data" in text
    assert all(f"{stamp}.png" in text for stamp in stamps)
    record = (out / "sample.json").read_bytes()
    photos.compose(tmp_path / "again", packages, ["stamps 1", "grounds 2"], 10, 64, seed=1, processes=1)
    assert (tmp_path / "again/sample.json").read_bytes() == record


def test_without_debians_tools_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["photos.py", str(tmp_path / "out")])
    assert photos.main() == 2
    assert capsys.readouterr().err.startswith("There is no apt-get here; expected Debian or Ubuntu")
