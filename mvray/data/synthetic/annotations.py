"""Annotations of a comic as Manga109 writes them (Aizawa et al. 2020): one XML file per title."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

WIDTH, HEIGHT = 1654, 1170
"""A double-page spread of Manga109 in pixels."""

Rect = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Region:
    """A box of an annotation, in whole pixels: ``kind`` is frame, face, body or text; ``who`` an
    index into the cast (face, body), ``words`` what is written (text)."""

    kind: str
    box: tuple[int, int, int, int]
    who: int = -1
    words: str = ""


def inside(box: Rect, corner: tuple[int, int] = (0, 0)) -> tuple[int, int, int, int]:
    """The box moved by ``corner``, in whole pixels, cut at the spread's edges."""
    x0, y0, x1, y1 = (v + corner[i % 2] for i, v in enumerate(box))
    return (
        max(0, min(WIDTH - 1, math.floor(x0))),
        max(0, min(HEIGHT - 1, math.floor(y0))),
        max(1, min(WIDTH, math.ceil(x1))),
        max(1, min(HEIGHT, math.ceil(y1))),
    )


def book_xml(title: str, cast: Sequence[str], pages: Sequence[Sequence[Region]], first_id: int, first_box: int) -> str:
    """The XML of one title. Characters get the ids from ``first_id`` on, boxes those from
    ``first_box``: eight hexadecimal digits, unique in the data set."""
    ids = [f"{first_id + i:08x}" for i in range(len(cast))]
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f"<book title={quoteattr(title)}>", "    <characters>"]
    lines += [
        f"        <character id={quoteattr(i)} name={quoteattr(name)}/>" for i, name in zip(ids, cast, strict=True)
    ]
    lines += ["    </characters>", "    <pages>"]
    for index, regions in enumerate(pages):
        lines.append(f'        <page index="{index}" width="{WIDTH}" height="{HEIGHT}">')
        lines += [f"            {_element(region, first_box + i, ids)}" for i, region in enumerate(regions)]
        lines.append("        </page>")
        first_box += len(regions)
    return "\n".join([*lines, "    </pages>", "</book>", ""])


def _element(region: Region, number: int, ids: Sequence[str]) -> str:
    x0, y0, x1, y1 = region.box
    start = f'{region.kind} id="{number:08x}" xmin="{x0}" ymin="{y0}" xmax="{x1}" ymax="{y1}"'
    if region.kind == "text":
        return f"<{start}>{escape(region.words)}</text>"
    return f'<{start} character="{ids[region.who]}"/>' if region.who >= 0 else f"<{start}/>"
