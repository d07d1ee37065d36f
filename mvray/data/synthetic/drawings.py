"""The art: 5,368 drawings by seven artists in drawings.parquet (licences: NOTICE.md beside it)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

ART = Path(__file__).with_name("drawings.parquet")
NOTICE = Path(__file__).with_name("NOTICE.md")
SIDE = 128
"""Height and width of every drawing in pixels."""


@dataclass(frozen=True)
class Drawing:
    """One drawing: ``image`` is RGBA, 128 x 128, and its alpha is the exact mask of the object."""

    artist: str
    name: str
    category: str
    image: Image.Image


@cache
def _shelf() -> dict[str, dict[str, tuple[str, bytes]]]:
    """artist -> name -> (category, WebP bytes). Read once per process (11 MB)."""
    shelf: dict[str, dict[str, tuple[str, bytes]]] = {}
    for row in pq.read_table(ART).to_pylist():
        shelf.setdefault(row["artist"], {})[row["name"]] = (row["category"], row["image"])
    return shelf


def artists() -> tuple[str, ...]:
    """The seven artists, the one with the most drawings first."""
    return tuple(sorted(_shelf(), key=lambda artist: (-len(_shelf()[artist]), artist)))


def names(artist: str) -> frozenset[str]:
    """The subjects that ``artist`` drew."""
    return frozenset(_shelf()[artist])


@cache
def drawing(artist: str, name: str) -> Drawing:
    """One artist's drawing of one subject, decoded; a KeyError where the artist did not draw it."""
    category, webp = _shelf()[artist][name]
    return Drawing(artist, name, category, Image.open(io.BytesIO(webp)).convert("RGBA"))


@cache
def extent(artist: str, name: str) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is drawn (alpha at least one half), in the drawing's pixels."""
    return drawing(artist, name).image.getchannel("A").point(lambda a: 255 * (a >= SIDE)).getbbox() or (
        0,
        0,
        SIDE,
        SIDE,
    )


@cache
def is_card(artist: str, name: str) -> bool:
    """Whether the drawing is a filled rectangle: a picture of a scene rather than of an object."""
    alpha = np.asarray(drawing(artist, name).image.getchannel("A"))
    x0, y0, x1, y1 = extent(artist, name)
    return bool((alpha[y0:y1, x0:x1] >= SIDE).mean() > 0.93)
