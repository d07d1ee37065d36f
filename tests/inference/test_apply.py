"""`mvray apply`: class maps of anyone's pictures, in their own size."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvray.data import colours, dataset
from mvray.data.readers import Pairs
from mvray.data.readers.folder import Folder
from mvray.errors import DataError
from mvray.experiment import Data, Facts, MethodConfig, Pictures, Train
from mvray.inference.apply import apply, class_map
from mvray.inference.model import network_input
from mvray.nn import CRF, Method
from mvray.reports import class_maps

CLASSES = ("background", "dark", "light")


class Brightness(Method):
    """The class is what the picture's grey says: 0 below 80, 1 below 160, 2 above; padding must not be seen."""

    def forward(self, batch, phase):
        raise NotImplementedError

    def predict(self, batch):
        raise NotImplementedError

    def class_maps(self, images_BCHW):
        grey = images_BCHW.float().mean(1)
        return torch.stack([grey < 80, (grey >= 80) & (grey < 160), grey >= 160], 1).float()


def picture(height: int, width: int) -> np.ndarray:
    rows = np.linspace(0, 3, height, endpoint=False).astype(int)
    return np.broadcast_to(np.array([40, 120, 220], np.uint8)[rows][:, None, None], (height, width, 3))


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("size", [(48, 64), (12, 9), (300, 400), (1, 200), (90, 3)])
def test_a_map_has_the_size_of_its_picture(fit: str, size: tuple[int, int]) -> None:
    pictures = Pictures(48, 64, 3, fit=fit)
    step = Train("seg", MethodConfigOf(), Data(Pairs(), pictures), select="last")
    classes_HW = class_map(Brightness(), picture(*size), step, Facts.of(CLASSES, pictures, 1))
    assert classes_HW.shape == size
    if size[0] > 2:
        expected = np.linspace(0, 3, size[0], endpoint=False).astype(int)
        assert (classes_HW[:, size[1] // 2] == expected).mean() > 0.9


class MethodConfigOf(MethodConfig):
    kind = "brightness"

    def build(self, facts):
        return Brightness()


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures(30, 40, 3, fit="pad")
    step = Train("seg", MethodConfigOf(), Data(Pairs(), pictures), select="last")
    loaded = (Brightness(), step, Facts.of(CLASSES, pictures, 1))
    monkeypatch.setattr(sys.modules["mvray.inference.apply"], "load_step", lambda path: loaded)
    files = tmp_path / "in"
    (files / "more").mkdir(parents=True)
    Image.fromarray(picture(60, 50)).save(files / "a.png")
    Image.fromarray(picture(20, 30)).convert("L").save(files / "more/a.png")
    (files / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    for _ in range(2):  # again into the same folder
        said = apply("step", [files], tmp_path / "out")
    assert said[-1] == "2 pictures, 1 left out."
    assert "broken.png" in said[0]
    out = tmp_path / "out"
    first = Image.open(out / "maps/a.png")
    assert (first.mode, first.size) == ("P", (50, 60))
    assert set(np.unique(np.asarray(first))) == {0, 1, 2}
    assert first.getpalette()[3:9] == colours(3)[1:].ravel().tolist() == [128, 0, 0, 0, 128, 0]
    assert sorted(file.name for file in (out / "overlays").iterdir()) == sorted(
        file.name for file in (out / "maps").iterdir()
    )
    table = list(csv.DictReader((out / "areas.csv").read_text().splitlines()))
    assert [row["width"] for row in table] == ["50", "30"]
    assert sum(float(table[0][name]) for name in CLASSES) == pytest.approx(1, abs=1e-4)
    assert float(table[0]["dark"]) == pytest.approx(1 / 3, abs=0.05)
    assert (out / "classes.csv").read_text().splitlines()[2] == "1,dark,128,0,0"
    assert (out / "sheet.png").stat().st_size > 1000
    with pytest.raises(DataError, match=r"None of .* is a picture that can be read"):
        apply("step", [files / "broken.png"], tmp_path / "other")


def test_the_background_stays_as_it_is_and_classes_have_their_colour() -> None:
    image = np.full((10, 10, 3), 100, np.uint8)
    classes_HW = np.zeros((10, 10), np.uint8)
    classes_HW[5:] = 1
    shown = class_maps.painted(image, classes_HW)
    assert (shown[:4] == 100).all()
    assert shown[7, 7, 0] > 100 > shown[7, 7, 1]
    assert colours()[255].tolist() == [224, 224, 192]
    assert class_maps.legend(CLASSES, 400).size[0] == 400


def test_the_crf_takes_single_pixels_away() -> None:
    pictures = Pictures(48, 64, 3)
    step = Train("seg", MethodConfigOf(), Data(Pairs(), pictures), select="last")
    facts, specked = Facts.of(CLASSES, pictures, 1), picture(48, 64).copy()
    specked[8, 10:50:8] = 82  # of the next class, and nearly of the colour around
    crf = CRF(10, 3.0, 3.0, 4.0, 67.0, 60.0)
    softer = Brightness()
    softer.class_maps = lambda images: (Brightness().class_maps(images) * 2).softmax(1)  # type: ignore[method-assign]
    plain, with_crf = class_map(softer, specked, step, facts), class_map(softer, specked, step, facts, crf)
    assert (plain[8] == 1).sum() == 5
    assert not with_crf[8].any()
    assert (with_crf == class_map(softer, picture(48, 64), step, facts)).mean() > 0.95


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_pictures_of_others_are_seen_as_the_steps_own(tmp_path: Path, fit: str) -> None:
    """As a data set gives them when it is tested."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 90, 3), np.uint8)
    (tmp_path / "one").mkdir()
    Image.fromarray(pixels).save(tmp_path / "one" / "0.png")
    pictures = Pictures(48, 64, 3, fit=fit)
    source = Folder(root=str(tmp_path), train=1.0, validation=0.0, test=0.0)
    own = dataset(Data(source, pictures), source.index().rows)[0, 0]["image"]
    seen = network_input(Image.fromarray(pixels), pictures, Facts.of(("one",), pictures, 1))
    assert np.array_equal(seen, own)
