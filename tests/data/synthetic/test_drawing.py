"""The pieces that pages are made of: subjects, faces, ink, screens, panels."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mvray.data.synthetic import drawings, subjects
from mvray.data.synthetic.casting import casts, face_of
from mvray.data.synthetic.habits import GRIDS, habits_of
from mvray.data.synthetic.ink import sprite
from mvray.data.synthetic.panels import Polygon, panels_of

PAGE = (40.0, 50.0, 780.0, 1100.0)


def test_every_subject_was_drawn() -> None:
    drawn = frozenset().union(*(drawings.names(artist) for artist in drawings.artists()))
    lists = [value for value in vars(subjects).values() if isinstance(value, tuple)]
    assert {name for names in lists for name in names if name not in subjects.BUSTS} <= drawn
    assert {name for family in subjects.FAMILIES.values() for name in family} <= drawn
    for artist, names in subjects.HEADS_OF.items():
        assert set(names) <= drawings.names(artist)


def test_every_artist_has_two_casts() -> None:
    assert len(drawings.artists()) == 7
    assert min(casts(artist) for artist in drawings.artists()) >= 2


def test_heads_are_all_face_and_figures_have_none() -> None:
    assert face_of("noto", "fox") == drawings.extent("noto", "fox")
    assert face_of("noto", "woman-running") is None


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("angle_deg", [0.0, -20.0, 65.0])
def test_boxes_follow_a_sprite(angle_deg: float, mirror: bool) -> None:
    """A disk that fills its drawing, and one dark eye of an alien, left of the middle."""
    disk = sprite("twemoji", "full-moon", 256, angle_deg, mirror)
    found = disk.body.point(lambda v: 255 * (v >= 128)).getbbox()
    assert found is not None
    whole = disk.follow(drawings.extent("twemoji", "full-moon"))
    assert np.abs(np.subtract(found, whole)).max() <= 3 + 2  # the outline, and rounding
    image = drawings.drawing("noto", "alien").image
    dark = np.asarray(image.convert("L")) < 70
    ys, xs = np.nonzero((dark & (np.asarray(image.getchannel("A")) > 200))[:, :60])
    made = sprite("noto", "alien", 256, angle_deg, mirror)
    x0, y0, x1, y1 = made.follow((xs.min(), ys.min(), xs.max(), ys.max()))
    x, y = round((x0 + x1) / 2), round((y0 + y1) / 2)
    around = np.asarray(made.image)[y - 8 : y + 8, x - 8 : x + 8]
    assert around.mean() < 80, "not the eye"
    assert np.asarray(made.image)[np.asarray(made.body) > 128].mean() > 110, "the alien is dark all over"


@pytest.mark.slow
def test_panels_fill_the_page_without_touching() -> None:
    rng = np.random.default_rng(0)
    habits = habits_of(10, rng)
    assert {habit.grid for habit in habits} == set(GRIDS)
    for habit in habits:
        for count in range(1, 9):
            panels = panels_of(habit, PAGE, count, rng)
            assert len(panels) == count
            masks = [_mask(panel) for panel in panels]
            assert all(mask.sum() > 60 * 60 for mask in masks)
            assert not any((a & b).any() for a, b in combinations(masks, 2))
            assert sum(mask.sum() for mask in masks) > 0.6 * (PAGE[2] - PAGE[0]) * (PAGE[3] - PAGE[1])
            assert not any(mask[:50].any() or mask[1101:].any() or mask[:, 781:].any() for mask in masks)


def _mask(panel: Polygon) -> np.ndarray:
    image = Image.new("1", (827, 1170))
    ImageDraw.Draw(image).polygon(panel, 1)
    return np.asarray(image)
