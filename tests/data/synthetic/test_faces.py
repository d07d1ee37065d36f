"""Sample faces: whole, in AnimeFace's layout, of characters that can be told apart by their faces alone."""

from __future__ import annotations

import csv
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvray.data.synthetic import drawings, heads
from mvray.data.synthetic.faces import compose, works_of
from mvray.data.synthetic.looks import PLACES, Look, distinguishable, looks
from mvray.data.synthetic.portraits import portrait

CHARACTERS, PICTURES, SEED = 5, 4, 3

pytestmark = pytest.mark.slow  # drawn samples, some seconds each


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("art") / "faces"
    compose(out, characters=CHARACTERS, pictures=PICTURES, seed=SEED, processes=1)
    return out


@cache
def cast(count: int) -> tuple[Look, ...]:
    return tuple(looks(count, np.random.default_rng(0)))


def named(artist: str, subject: str) -> Look:
    """Somebody with blue hair, brown skin and red clothes, without anything worn."""
    base = next(b for b in heads.bases() if (b.artist, b.subject) == (artist, subject))
    return Look(base, (70, 120, 214), (150, 98, 66), (206, 54, 62), 0, ())


# -- layout --------------------------------------------------------------------------------------


def test_has_the_layout_of_animeface(sample: Path) -> None:
    assert {path.name for path in sample.iterdir()} == {"thumb", "README.txt", "NOTICE.md", "sample.json"}
    assert "CC-BY-4.0" in (sample / "NOTICE.md").read_text(encoding="utf-8")
    folders = sorted(path.name for path in (sample / "thumb").iterdir())
    assert [name[:4] for name in folders] == [f"{number:03d}_" for number in range(CHARACTERS)]
    assert len({name[4:] for name in folders}) == CHARACTERS
    for folder in (sample / "thumb").iterdir():
        pictures = {path.name for path in folder.glob("face_*_*_*.png")}
        assert PICTURES / 2 <= len(pictures) <= PICTURES
        assert {path.name for path in folder.iterdir()} == pictures | {"color.csv"}
        with (folder / "color.csv").open(encoding="utf-8", newline="") as file:
            rows = {name: tuple(map(int, mean)) for name, *mean in csv.reader(file)}
        assert set(rows) == pictures
        for name, mean in rows.items():
            with Image.open(folder / name) as image:
                assert (image.mode, image.width) == ("RGB", image.height)
                assert 96 <= image.width <= 160
                assert np.abs(np.asarray(image).mean(axis=(0, 1)) - mean).max() <= 0.51


def test_numbers_of_pictures_are_as_in_the_wild() -> None:
    works = works_of(60, 20, 0)
    counts = [work.pictures for work in works]
    assert min(counts) >= 10
    assert max(counts) == 20
    assert 16 < np.mean(counts) < 19.5
    assert len({work.folder for work in works}) == 60


def test_another_seed_gives_other_characters() -> None:
    assert [work.look for work in works_of(4, 2, 0)] != [work.look for work in works_of(4, 2, 1)]
    assert works_of(4, 2, 0) == works_of(4, 2, 0)


# -- characters ----------------------------------------------------------------------------------


def test_no_two_characters_look_alike() -> None:
    for one, other in combinations(cast(60), 2):
        assert distinguishable(one, other), (one, other)
    assert len(looks(1000, np.random.default_rng(1))) == 1000


def test_all_that_is_worn_is_drawn() -> None:
    for subjects in PLACES.values():
        for name, artists in subjects.items():
            for artist in artists:
                assert name in drawings.names(artist), (artist, name)


# -- colours and pictures ------------------------------------------------------------------------


def test_backdrop_and_light_do_not_know_who_it_is() -> None:
    """Two characters with the same random numbers: what a face does not reach, an upper corner, is the same."""
    one, other = named("twemoji", "woman-of-moods"), named("fluent-emoji-flat", "man-of-moods")
    same = 0
    for stream in range(12):
        pair = [np.asarray(portrait(look, 0, np.random.default_rng(stream)))[:5, :5] for look in (one, other)]
        same += int(np.abs(pair[0].mean(axis=(0, 1)) - pair[1].mean(axis=(0, 1))).max() < 12)
    assert same >= 8
