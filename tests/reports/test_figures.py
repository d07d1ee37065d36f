"""Pictures are opened again and their pixels looked at; the pictures in them are the sample drawings."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import mvray
from mvray.reports import figures


@pytest.fixture(scope="module")
def drawings():
    rows = pq.read_table(Path(mvray.__file__).parent / "data/synthetic/drawings.parquet", columns=["image"]).slice(0, 6)
    found = []
    for content in rows["image"].to_pylist():
        drawing = Image.open(io.BytesIO(content)).convert("RGBA")
        white = Image.new("RGBA", drawing.size, "white")
        white.alpha_composite(drawing)
        found.append(np.asarray(white.convert("RGB")))
    return found


def opened(png):
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    return np.asarray(picture.convert("RGB"))


def test_overlay_is_red_where_the_map_is_high_and_blue_where_it_is_low(drawings):
    grey_HW1 = drawings[0].mean(2, keepdims=True).astype(np.uint8)
    map_HW = np.zeros((4, 4))
    map_HW[0, 0] = 1
    for picture in (drawings[0], grey_HW1, np.full((300, 200, 1), 255, np.uint8)):
        shown = figures.overlay(picture, map_HW).astype(int)
        height, width = picture.shape[:2]
        assert shown.shape == (height, width, 3)
        red, _, blue = shown[2, 2]
        assert red > blue + 50
        red, _, blue = shown[-3, -3]
        assert blue > red + 20


def test_sheet_shows_every_picture_where_it_belongs(drawings):
    rows = [[drawings[0], None, drawings[1]], [drawings[2], drawings[3], drawings[4]]]
    shown = opened(figures.sheet(rows, ["page", "plain", "a title that is far too long for " * 9], ["", ""], "S"))
    assert shown.shape[1] == 1600
    side, pad = 512, figures.PAD_PX
    left = shown.shape[1] - 3 * (side + pad)
    top = shown.shape[0] - 2 * (side + pad)
    for i, row in enumerate(rows):
        for j, drawing in enumerate(row):
            y, x = top + i * (side + pad), left + j * (side + pad)
            cell = shown[y + 5 : y + side - 5, x + 5 : x + side - 5]
            if drawing is None:
                assert (cell == 255).all()
            else:
                same = Image.fromarray(drawing).resize((side, side), Image.Resampling.LANCZOS)
                difference = np.abs(cell.astype(int) - np.asarray(same)[5:-5, 5:-5]).mean()
                assert difference < 3, (i, j, difference)


ROW = {"values": {"a": [0.84, None, 0.86]}, "mean": {"a": 0.85}, "interval95": {"a": [0.8, 0.9]}, "paper": {"a": 0.852}}
BARE = {"values": {"a": [None]}, "mean": {}, "interval95": {"a": None}, "paper": {}}


def test_names_are_never_read_as_formulas_and_strange_letters_do_no_harm():
    name = r"$\frac{1}$ 漫画 \x $"
    counts = np.eye(2, dtype=int)
    for png in (
        figures.confusion_matrix(counts, [name, "b"], name),
        figures.confusion_matrix(np.zeros((101, 101), int), [name] * 101, "no samples"),
        figures.curves({name: [(0, 1.0)], "empty": []}, name, name),
        figures.comparison([{"name": name, **ROW}, {"name": "B", **BARE}], "a", name),
        figures.empty_figure(name, name),
        figures.sheet([[np.zeros((4, 4, 3), np.uint8)]], [name], [name], name),
    ):
        assert opened(png).size > 0
