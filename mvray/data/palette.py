"""Class maps as palette PNG files in VOC's colours, which programs read as numbers and people as colours."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def colours(count: int = 256) -> np.ndarray:
    """VOC's colour of each class, count x 3 uint8: its number's bits, three by three, from the highest bit down."""
    numbers = np.arange(count)
    table = np.zeros((count, 3), np.uint8)
    for step in range(8):
        for channel in range(3):
            table[:, channel] |= ((numbers >> (3 * step + channel) & 1) << (7 - step)).astype(np.uint8)
    return table


def palette_png(classes_HW: np.ndarray) -> bytes:
    """A class map (uint8) as a palette PNG, 255 in VOC's colour of boundaries."""
    image = Image.fromarray(classes_HW).convert("P")
    image.putpalette(colours().tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
