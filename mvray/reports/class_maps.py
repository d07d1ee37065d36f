"""Class maps as people see them: colours over the picture, with names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from mvray.data import colours
from mvray.experiment import IGNORE
from mvray.reports.figures import INK, load_font, picture_png, plain_text

if TYPE_CHECKING:
    from mvray.reports.figures import Picture

_OPACITY = 0.55
_ORANGE = (255, 140, 0)


def _colours() -> Picture:
    """VOC's, but that greys (class 7, person, is one) are orange: over a grey picture nobody would see them."""
    table = colours()
    grey_N = (table == table[:, :1]).all(1) & (table[:, 0] > 0)
    table[grey_N] = _ORANGE
    return table


def painted(image_HWC: Picture, classes_HW: np.ndarray) -> Picture:
    """The classes' colours over a picture (H x W x 3 uint8) of the same size; the background (0) and 255 stay clear.

    A class ends in a line of its full colour.
    """
    table_HWC = _colours()[classes_HW].astype(np.float32)
    inside_HW = (classes_HW != 0) & (classes_HW != IGNORE)
    edge_HW = np.zeros_like(inside_HW)
    edge_HW[:-1] |= classes_HW[1:] != classes_HW[:-1]
    edge_HW[:, :-1] |= classes_HW[:, 1:] != classes_HW[:, :-1]
    opacity_HW1 = (inside_HW * np.where(edge_HW, 1.0, _OPACITY))[..., None]
    mixed: Picture = np.rint(image_HWC * (1 - opacity_HW1) + table_HWC * opacity_HW1).astype(np.uint8)
    return mixed


def painted_on_grey(image_HWC: Picture, classes_HW: np.ndarray) -> Picture:
    """As `painted`, over the picture in light grey, so that colours look as the legend has them."""
    grey_HW = np.asarray(Image.fromarray(image_HWC).convert("L"), np.float32)
    light_HWC = np.repeat(np.rint(255 - 0.6 * (255 - grey_HW)).astype(np.uint8)[..., None], 3, axis=2)
    return painted(light_HWC, classes_HW)


def legend(names: Sequence[str], width: int, shown: Sequence[int] | None = None) -> Image.Image:
    """The classes' colours with their names in rows, ``width`` pixels wide; of ``shown`` alone where that is given.

    The background (0) is white, as `painted` leaves it clear.
    """
    font = load_font(22)
    numbers = range(len(names)) if shown is None else shown
    cells = [(number, plain_text(names[number])) for number in numbers]
    cell = max([110, *(62 + int(font.getlength(name)) for _, name in cells)])
    columns = max(1, (width - 16) // cell)
    image = Image.new("RGB", (width, 12 + 32 * -(-len(cells) // columns)), "white")
    draw = ImageDraw.Draw(image)
    for at, (number, name) in enumerate(cells):
        x, y = 16 + at % columns * cell, 8 + at // columns * 32
        fill = tuple(_colours()[number].tolist()) if number else "white"
        draw.rectangle((x, y, x + 24, y + 24), fill=fill, outline=INK)
        draw.text((x + 32, y), name, fill=INK, font=font)
    return image


def with_legend(sheet_png: Image.Image, names: Sequence[str], shown: Sequence[int] | None = None) -> bytes:
    """A sheet with the legend below it, as PNG."""
    below = legend(names, sheet_png.width, shown)
    whole = Image.new("RGB", (sheet_png.width, sheet_png.height + below.height), "white")
    whole.paste(sheet_png, (0, 0))
    whole.paste(below, (0, sheet_png.height))
    return picture_png(whole)
