"""Draw a character in his own colours with what he wears. Legend: H W pixels of a drawing, P some of them,
N colours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw

from mvray.samples import drawings, heads
from mvray.samples.drawings import SIDE
from mvray.samples.heads import Colour, Face
from mvray.samples.looks import Look, Worn

FINE = 2
"""Painted at twice the drawing's size: what is worn keeps its edges when it shrinks."""
MARGIN = 64
"""Around a drawing, in its pixels: room for hats and shoulders."""
NEAR, RAMP = 14.0, 10.0
"""A colour this near to the artist's hair, skin or cloth is changed as a whole; further off by less and less."""
LUMA_3 = np.array((0.3, 0.59, 0.11))


def dressed(look: Look, name: str, worn: Sequence[Worn]) -> Image.Image:
    """One of the character's drawings in his colours with what he wears: premultiplied, FINE pixels to one of
    the drawing's, MARGIN of them around it."""
    base = look.base
    face = heads.face_of(base.artist, name, base.person)
    image = recoloured(look, name) if base.person else turned(_art(base.artist, name), look.fur_deg)
    canvas = Image.new("RGBA", (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN))
    canvas = canvas.resize((FINE * canvas.width, FINE * canvas.height))
    if name in heads.ALONE:
        _shoulders(canvas, face, look)
    large = image.convert("RGBa").resize((FINE * SIDE, FINE * SIDE), Image.Resampling.LANCZOS)
    canvas.alpha_composite(large.convert("RGBA"), (FINE * MARGIN, FINE * MARGIN))
    for each in worn:
        _put(canvas, face, each)
    return canvas.convert("RGBa")


def _art(artist: str, name: str) -> Image.Image:
    return drawings.drawing(artist, name).image


def _shoulders(canvas: Image.Image, face: Face, look: Look) -> None:
    """A head that is drawn alone gets a neck and shoulders."""
    parts = Image.new("RGBA", (2 * canvas.width, 2 * canvas.height))
    draw, scale = ImageDraw.Draw(parts), 2.0 * FINE
    x, y, w = (scale * v for v in (face.middle + MARGIN, face.bottom + MARGIN, face.width))
    neck = look.skin if look.base.person else look.cloth
    draw.rectangle((x - 0.24 * w, y - 0.3 * w, x + 0.24 * w, y + 0.4 * w), fill=(*_shaded(neck, 0.8), 255))
    draw.ellipse((x - 0.85 * w, y + 0.16 * w, x + 0.85 * w, y + 1.7 * w), fill=(*look.cloth, 255))
    canvas.alpha_composite(parts.reduce(2))


def _shaded(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(factor * part)) for part in colour)
    return red, green, blue


def _put(canvas: Image.Image, face: Face, worn: Worn) -> None:
    """What is worn, cut at what is drawn of it, where it belongs on this face."""
    image = turned(_art(worn.artist, worn.name), worn.turn_deg).crop(drawings.extent(worn.artist, worn.name))
    if worn.name == "glasses":
        image = _see_through(image)
    w, brow = face.width, face.eyes - face.crown
    as_drawn = image.height / image.width
    width, aspect, x, y, held = {
        "hat": (1.3 * w, as_drawn, 0.0, face.crown + 0.3 * brow, 1.0),
        "eyes": (1.05 * w, as_drawn, 0.0, face.eyes, 0.5),
        "ears": (1.9 * w, 0.7, 0.0, face.eyes + 0.42 * w, 1.0),
        "side": (0.55 * w, as_drawn, 0.48 * w, face.crown + 0.3 * brow, 0.5),
        "chin": (0.5 * w, as_drawn, 0.0, face.bottom + 0.26 * w, 0.5),
    }[worn.place]
    wide, high = round(FINE * width), round(FINE * width * aspect)
    small = image.convert("RGBa").resize((wide, high), Image.Resampling.LANCZOS).convert("RGBA")
    at = (FINE * (face.middle + x + MARGIN) - wide / 2, FINE * (y + MARGIN) - held * high)
    layer = Image.new("RGBA", canvas.size)
    layer.paste(small, (round(at[0]), round(at[1])))
    canvas.alpha_composite(layer)


def _see_through(image: Image.Image) -> Image.Image:
    """Glasses whose lenses let the eyes be seen: what is bright in them is glass."""
    rgba_HW4 = np.array(image)
    glass_HW = rgba_HW4[..., :3].max(axis=-1) > 150
    rgba_HW4[..., 3][glass_HW] //= 4
    return Image.fromarray(rgba_HW4)


# -- colours -------------------------------------------------------------------------------------


def turned(image: Image.Image, by_deg: int) -> Image.Image:
    """The picture with its hues turned; what has none gets a tint, so that grey and white change too."""
    if by_deg == 0:
        return image
    hue, saturation, value = image.convert("RGB").convert("HSV").split()
    hue = hue.point([(h + round(by_deg * 256 / 360)) % 256 for h in range(256)])
    saturation = saturation.point([max(s, 80) for s in range(256)])
    made = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    made.putalpha(image.getchannel("A"))
    return made


@lru_cache(32)
def recoloured(look: Look, name: str) -> Image.Image:
    """A person's drawing with the look's hair, skin and clothes in place of those that the artist always paints."""
    rgba_HW4 = np.array(_art(look.base.artist, name)).astype(np.float32)
    rgb_HW3 = rgba_HW4[..., :3]
    kinds = _paint(look)
    from_N3 = np.array([old for old, _ in kinds], np.float32)
    by_N3 = np.array([new for _, new in kinds], np.float32) - from_N3
    off_HWN = np.linalg.norm(_tone(rgb_HW3)[..., None, :] - _tone(from_N3), axis=-1)
    sure_HW1 = np.clip((NEAR + RAMP - off_HWN.min(axis=-1)) / RAMP, 0, 1)[..., None]
    change_HW3 = sure_HW1 * by_N3[off_HWN.argmin(axis=-1)]
    unsure_HW = (sure_HW1[..., 0] < 1) & (rgba_HW4[..., 3] > 0)
    change_HW3[unsure_HW] += (1 - sure_HW1[unsure_HW]) * _between(rgb_HW3[unsure_HW], from_N3, by_N3)
    rgba_HW4[..., :3] = rgb_HW3 + change_HW3
    return Image.fromarray(np.clip(rgba_HW4, 0, 255).astype(np.uint8))


def _tone(rgb: np.ndarray) -> np.ndarray:
    """Colours as half their brightness and two differences: grey eyes are far from brown hair."""
    return np.stack([0.6 * (rgb @ LUMA_3), rgb[..., 0] - rgb[..., 1], rgb[..., 1] - rgb[..., 2]], axis=-1)


def _paint(look: Look) -> list[tuple[Colour, Colour]]:
    """The artist's colours and what becomes of each; a shade stays as much darker as it was."""
    artist, moods = look.base.artist, look.base.subject.endswith("-of-moods")
    made = []
    for olds, new in (
        (heads.SKIN[artist], look.skin),
        (() if look.base.subject in heads.OLD else heads.HAIR[artist], look.hair),
        (heads.CLOTHES.get(artist, ()) if moods else (), look.cloth),
    ):
        made += [(old, _shaded(new, float(np.clip(LUMA_3 @ old / (LUMA_3 @ olds[0]), 0.75, 1.25)))) for old in olds]
    return made


def _between(rgb_P3: np.ndarray, from_N3: np.ndarray, by_N3: np.ndarray) -> np.ndarray:
    """The change of pixels on the edge of two colours: each lies on the line between them, and changes as they do."""
    best_P, change_P3 = np.full(len(rgb_P3), 36.0, np.float32), np.zeros_like(rgb_P3)
    for i, j in combinations(range(len(from_N3)), 2):
        way = from_N3[j] - from_N3[i]
        part_P1 = np.clip((rgb_P3 - from_N3[i]) @ way / max(float(way @ way), 1.0), 0, 1)[:, None]
        off_P = np.linalg.norm(rgb_P3 - from_N3[i] - part_P1 * way, axis=-1)
        nearer_P = off_P < best_P
        weight_P1 = np.clip((36 - off_P) / 18, 0, 1)[:, None]
        change_P3[nearer_P] = (weight_P1 * ((1 - part_P1) * by_N3[i] + part_P1 * by_N3[j]))[nearer_P]
        best_P = np.minimum(best_P, off_P)
    return change_P3
