"""Contact sheets: what is in the page, and that it needs nothing beside it."""

from __future__ import annotations

import base64
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from mvray.inference import contact_sheet
from mvray.inference.contact_sheet import Part, Shot
from mvray.inference.model import Thumbnail


class Read(HTMLParser):
    """The page as a browser takes it: tags with attributes, text, and whether every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.text.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def shot(folder: Path, name: str, width: int = 40, caption: str = "") -> Shot:
    data = io.BytesIO()
    Image.new("RGB", (width, 112), "red").save(data, "JPEG")
    return Shot(Thumbnail(data.getvalue(), width, 112), name, folder / name, caption)


def test_the_page_holds_all_and_leads_to_the_files(tmp_path: Path) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    names = ["a.png", "mit Leer & <Zeichen>.png", "顔.png"]
    for name in names:
        (faces / name).write_bytes(b"")
    parts = [
        Part("Group 01", [shot(faces, name) for name in names], "3 pictures", chapter="Book <1>"),
        Part("Alone", [shot(faces, names[0], width=90, caption="0.12")], faint=True),
    ]
    out = tmp_path / "out"
    read = Read(contact_sheet.page("Groups in <x> & y", ["5 pictures", "how"], parts, out, overview=True))
    assert read.text == [
        "Groups in <x> & y",
        "Groups in <x> & y",
        "5 pictures",
        "how",
        "3",
        "Book <1>",
        "Group 01",
        "3 pictures",
        "Alone",
        "0.12",
    ]
    images = read.all("img")
    assert [(each["width"], each["height"], each["loading"]) for each in images] == [
        *[("40", "112", "lazy")] * 4,
        ("90", "112", "lazy"),
    ]
    for each in images:
        head, _, data = each["src"].partition(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (int(each["width"]), 112)
    overview, *links = read.all("a")
    assert overview["href"] == f"#{read.all('section')[0]['id']}"
    assert [(out / unquote(link["href"])).resolve() for link in links] == [faces / name for name in [*names, names[0]]]
    assert [link["title"] for link in links] == [*names, names[0]]


def test_nothing_is_fetched_from_elsewhere(tmp_path: Path) -> None:
    page = contact_sheet.page("title", [], [Part("one", [shot(tmp_path, "a.png")])], tmp_path)
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)


@pytest.mark.parametrize(("count", "folded"), [(60, 0), (61, 13), (500, 452)])
def test_a_long_part_is_folded(tmp_path: Path, count: int, folded: int) -> None:
    shots = [shot(tmp_path, f"{at}.png") for at in range(count)]
    read = Read(contact_sheet.page("title", [], [Part("long", shots)], tmp_path))
    assert len(read.all("img")) == count
    assert read.text[2:] == ["long", *([f"{folded} more"] if folded else [])]
    whole = Read(contact_sheet.page("title", [], [Part("long", shots, folded=False)], tmp_path))
    assert not whole.all("details")


def test_a_name_of_any_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    read = Read(contact_sheet.page("title", [], [Part("one", [shot(tmp_path, name)])], tmp_path).encode().decode())
    (link,) = read.all("a")
    assert link["href"] == "caf%E9.png"
    assert link["title"] == "caf\ufffd.png"


@pytest.mark.slow
def test_five_thousand_pictures_stay_small(tmp_path: Path) -> None:
    """But for the pictures themselves, a few hundred bytes each."""
    shots = [shot(tmp_path, f"folder/{at:05d}.png") for at in range(5000)]
    page = contact_sheet.page(
        "title", [], [Part(f"Group {at}", shots[at : at + 50]) for at in range(0, 5000, 50)], tmp_path
    )
    pictures = sum(4 * -(-len(each.thumbnail.data) // 3) for each in shots)
    assert (len(page) - pictures) / 5000 < 250
