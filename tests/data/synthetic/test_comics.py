"""Comics are composed whole, in Manga109's layout, the same from the same seed, and by their scripts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import pytest
from defusedxml.ElementTree import parse
from PIL import Image

from mvray.data.synthetic.comics import compose, shifted_of, titles_of

BOXES = ("frame", "face", "body", "text")

pytestmark = pytest.mark.slow  # drawn samples, some seconds each


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("art") / "comics"
    compose(out, titles=2, pages=4, seed=5, processes=1)
    return out


def books(root: Path) -> dict[str, Element]:
    return {title: parse(root / "annotations" / f"{title}.xml").getroot() for title in titles_in(root)}


def titles_in(root: Path) -> list[str]:
    return (root / "books.txt").read_text(encoding="utf-8").split()


def box_of(element: Element) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (int(element.attrib[name]) for name in ("xmin", "ymin", "xmax", "ymax"))
    return x0, y0, x1, y1


def test_has_the_layout_of_manga109(sample: Path) -> None:
    assert {path.name for path in sample.iterdir()} == {
        "images", "annotations", "shifted", "books.txt", "README.txt", "NOTICE.md", "sample.json",
    }  # fmt: skip
    assert "CC-BY-4.0" in (sample / "NOTICE.md").read_text(encoding="utf-8")
    for root, spreads in ((sample, 2), (sample / "shifted", 2)):
        titles = titles_in(root)
        assert titles == titles_in(sample)
        assert len(set(titles)) == 2
        assert {path.name for path in (root / "images").iterdir()} == set(titles)
        assert {path.name for path in (root / "annotations").iterdir()} == {f"{title}.xml" for title in titles}
        for title in titles:
            names = sorted(path.name for path in (root / "images" / title).iterdir())
            assert names == [f"{number:03d}.jpg" for number in range(spreads)]


def test_spreads_are_grey_jpegs_of_manga109s_size(sample: Path) -> None:
    for path in sample.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "L", (1654, 1170))
            grey = np.asarray(image)
        assert (grey < 60).mean() > 0.02, "no ink"
        assert grey.std() > 30, "an empty page"


def test_annotations_are_manga109s(sample: Path) -> None:
    for root in (sample, sample / "shifted"):
        seen: list[str] = []
        for title, book in books(root).items():
            assert (book.tag, book.attrib) == ("book", {"title": title})
            cast = [character.attrib["id"] for character in book.findall("characters/character")]
            seen += cast
            for index, page in enumerate(book.findall("pages/page")):
                assert page.attrib == {"index": str(index), "width": "1654", "height": "1170"}
                assert {element.tag for element in page} == set(BOXES)
                seen += [element.attrib["id"] for element in page]
                assert {element.attrib["character"] for element in page if element.tag in ("face", "body")} <= set(cast)
                assert all(element.text for element in page if element.tag == "text")
        assert len(seen) == len(set(seen)), "an id is used twice"
        assert all(len(name) == 8 and int(name, 16) for name in seen)


def test_boxes_are_inside_the_spread_and_faces_inside_their_bodies(sample: Path) -> None:
    for book in [*books(sample).values(), *books(sample / "shifted").values()]:
        for page in book.findall("pages/page"):
            for element in page:
                x0, y0, x1, y1 = box_of(element)
                assert 0 <= x0 < x1 <= 1654
                assert 0 <= y0 < y1 <= 1170
            for face in page.findall("face"):
                x0, y0, x1, y1 = box_of(face)
                bodies = [box_of(b) for b in page.findall("body") if b.attrib["character"] == face.attrib["character"]]
                assert any(b[0] <= x0 and b[1] <= y0 and x1 <= b[2] and y1 <= b[3] for b in bodies)


def test_characters_are_the_same_in_both_sets(sample: Path) -> None:
    plain, shifted = books(sample), books(sample / "shifted")
    for title, book in plain.items():
        cast, again = ([c.attrib for c in b.findall("characters/character")] for b in (book, shifted[title]))
        assert cast == again
        boxes = [{e.attrib["id"] for e in b.iter() if e.tag in BOXES} for b in (book, shifted[title])]
        assert not boxes[0] & boxes[1]


def test_another_seed_gives_other_titles() -> None:
    assert titles_of(4, seed=0) == titles_of(4, seed=0)
    assert titles_of(4, seed=0) != titles_of(4, seed=1)


def test_titles_by_one_artist_have_no_drawing_in_common() -> None:
    titles = titles_of(28, seed=3)
    assert len({title.name for title in titles}) == 28
    for artist in {title.troupe.artist for title in titles}:
        playing = [d for t in titles if t.troupe.artist == artist for c in t.troupe.cast for d in c.drawings]
        assert len(playing) == len(set(playing))
    assert set(Counter(title.troupe.artist for title in titles[:14]).values()) == {2}


@pytest.mark.parametrize("count", [2, 8, 14, 40])
def test_shifted_titles_have_another_artists_habits(count: int) -> None:
    titles = titles_of(count, seed=1)
    habits = {title.habits: title for title in titles}
    assert len(habits) == count, "two titles have the same habits"
    moved = shifted_of(titles)
    assert [title.troupe for title in moved] == [title.troupe for title in titles]
    assert {title.habits for title in moved} == set(habits)
    for before, after in zip(titles, moved, strict=True):
        assert before.name == after.name
        assert habits[after.habits].troupe.artist != before.troupe.artist
