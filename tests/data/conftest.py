"""Small data sets in the public layouts, made of real JPEG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw


def drawing(width: int, height: int, seed: int, mode: str = "L") -> Image.Image:
    """Ink on paper: smooth enough for JPEG, different everywhere."""
    draw = np.random.default_rng(seed)
    image = Image.new(mode, (width, height), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(40):
        x, y = draw.integers(0, width), draw.integers(0, height)
        side = int(draw.integers(10, max(11, width // 4)))
        ink = tuple(int(v) for v in draw.integers(0, 200, 3)) if mode == "RGB" else int(draw.integers(0, 200))
        pen.ellipse((x, y, x + side, y + side), outline=ink, width=4)
    return image


def page_xml(
    number: int, boxes: list[tuple[str, str, int, int, int, int]], width: int = 1654, height: int = 1170
) -> str:
    items = "".join(
        f'<{kind} id="{i:08x}" xmin="{x0}" ymin="{y0}" xmax="{x1}" ymax="{y1}"'
        + (f' character="{who}"' if who else "")
        + (">テキスト</text>" if kind == "text" else "/>")
        for i, (kind, who, x0, y0, x1, y1) in enumerate(boxes)
    )
    return f'<page index="{number}" width="{width}" height="{height}">{items}</page>'


def book_xml(title: str, pages: list[str]) -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><book title="{title}"><characters>'
        f'<character id="00000001" name="誰か"/></characters><pages>{"".join(pages)}</pages></book>'
    )


BOXES = [
    ("frame", "", 100, 100, 1500, 1000),  # spans the fold
    ("face", "00000001", 200, 220, 300, 340),  # on the left page
    ("body", "00000001", 1000, 200, 1400, 900),  # on the right page
    ("text", "", 1654, 1170, 1700, 1200),  # outside
]


@pytest.fixture
def xml_of() -> Callable[..., str]:
    """A work's annotations: title, pages, and the boxes that are on every page."""
    return lambda title, pages, boxes: book_xml(title, [page_xml(number, boxes) for number in range(pages)])


@pytest.fixture
def drawn_picture() -> Callable[..., Image.Image]:
    """A picture of width x height, its own for each seed."""
    return drawing


@pytest.fixture
def comics(tmp_path: Path) -> Callable[..., Path]:
    """Make ROOT/images/TITLE/NNN.jpg and ROOT/annotations/TITLE.xml; returns ROOT."""

    def make(
        titles: dict[str, int],
        root: Path = tmp_path / "comics",
        size: tuple[int, int] = (1654, 1170),
        annotations: str = "annotations",
    ) -> Path:
        for title, spreads in titles.items():
            (root / "images" / title).mkdir(parents=True)
            for number in range(spreads):
                drawing(*size, seed=len(title) * 1000 + number).save(root / "images" / title / f"{number:03d}.jpg")
            if annotations:
                (root / annotations).mkdir(exist_ok=True)
                pages = [page_xml(number, BOXES) for number in range(spreads)]
                (root / annotations / f"{title}.xml").write_text(book_xml(title, pages), encoding="utf-8")
        return root

    return make
