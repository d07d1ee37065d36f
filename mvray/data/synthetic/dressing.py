"""Draw a character in his own colours with what he wears. Legend: H W pixels of a drawing, P some of them,
N colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw

from mvray.data.synthetic import drawings, heads
from mvray.data.synthetic.drawings import SIDE
from mvray.data.synthetic.heads import Colour, Face
from mvray.data.synthetic.looks import Look, Worn

FINE = 2
"""Painted at twice the drawing's size: what is worn keeps its edges when it shrinks."""
MARGIN = 64
"""Around a drawing, in its pixels: room for hats and shoulders."""
NEAR, RAMP = 10.0, 8.0
"""A colour this near to the artist's hair, skin or cloth is changed as a whole; further off by less and less."""
EDGE = 24.0
"""A colour this near to the line between two of them is a mixture of both."""
LUMA_3 = np.array((0.3, 0.59, 0.11))


def dress(look: Look, name: str, worn: Sequence[Worn]) -> Image.Image:
    """One of the character's drawings in his colours with what he wears: premultiplied, FINE pixels to one of
    the drawing's, MARGIN of them around it."""
    base = look.base
    face = heads.face_of(base.artist, name, base.person)
    image = recolour(look, name) if base.person else turn_hue(_art(base.artist, name), look.fur_deg)
    side = FINE * (SIDE + 2 * MARGIN)
    canvas = Image.new("RGBA", (side, side))
    if name in heads.ALONE:
        _shoulders(canvas, face, look)
    for garment in worn:
        if garment.place == "ears":
            _put(canvas, face, garment)  # behind the cheeks
    large = image.convert("RGBa").resize((FINE * SIDE, FINE * SIDE), Image.Resampling.LANCZOS)
    canvas.alpha_composite(large.convert("RGBA"), (FINE * MARGIN, FINE * MARGIN))
    for garment in worn:
        if garment.place != "ears":
            _put(canvas, face, garment)
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
    image = turn_hue(_art(worn.artist, worn.name), worn.turn_deg).crop(drawings.extent(worn.artist, worn.name))
    if worn.name == "glasses":
        image = _see_through(image)
    w, brow = face.width, face.eyes - face.crown
    as_drawn = image.height / image.width
    width, aspect, x, y, held = {
        "hat": (1.4 * w, as_drawn, 0.0, face.crown + 0.45 * brow, 1.0),
        "eyes": (1.05 * w, as_drawn, 0.0, face.eyes, 0.5),
        "ears": (2.0 * w, 0.68, 0.0, face.eyes + 0.45 * w, 1.0),
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


def turn_hue(image: Image.Image, by_deg: int) -> Image.Image:
    """The picture with its hues turned; what has none gets a tint, so that grey and white change too."""
    if by_deg == 0:
        return image
    hue, saturation, value = image.convert("RGB").convert("HSV").split()
    hue = hue.point([(h + round(by_deg * 256 / 360)) % 256 for h in range(256)])
    saturation = saturation.point([max(s, 80) for s in range(256)])
    recoloured = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    recoloured.putalpha(image.getchannel("A"))
    return recoloured


@dataclass(frozen=True)
class Paint:
    """One of the artist's colours, and what becomes of it. ``kind`` is skin, shade (of skin), hair or cloth."""

    kind: str
    old: Colour
    new: Colour


@lru_cache(32)
def recolour(look: Look, name: str) -> Image.Image:
    """A person's drawing with the look's hair, skin and clothes in place of those that the artist always paints."""
    rgba_HW4 = np.array(_art(look.base.artist, name)).astype(np.float32)
    flat_P4 = rgba_HW4.reshape(-1, 4)
    mouth_P = _mouth(look, name).reshape(-1)
    paints = _paints(look)
    for where_P, used in (
        (~mouth_P, paints),
        (mouth_P, [paint for paint in paints if paint.kind != "hair"]),
    ):
        flat_P4[where_P, :3] = _repainted(flat_P4[where_P, :3], used)
    return Image.fromarray(np.clip(rgba_HW4, 0, 255).astype(np.uint8))


def _mouth(look: Look, name: str) -> np.ndarray:
    """Where lips are, which some artists paint in the colour of hair: H x W, bool. Nowhere in a bearded face."""
    y_HW, x_HW = np.mgrid[:SIDE, :SIDE]
    face = heads.face_of(look.base.artist, name, look.base.person)
    low_HW = (y_HW > face.eyes + 0.2 * face.width) & (y_HW < face.bottom)
    return np.asarray(low_HW & (abs(x_HW - face.middle) < 0.3 * face.width) & (look.base.subject not in heads.BEARDED))


def _paints(look: Look) -> list[Paint]:
    """A shade stays as much darker as it was."""
    artist, moods = look.base.artist, look.base.subject.endswith("-of-moods")
    skin, *shades = heads.SKIN[artist]
    paints = [Paint("skin", skin, look.skin)]
    paints += [Paint("shade", old, _as_dark(look.skin, old, skin)) for old in shades]
    if look.base.subject not in heads.OLD:
        hairs = heads.HAIR[artist]
        paints += [Paint("hair", old, _as_dark(look.hair, old, hairs[0])) for old in hairs]
    if moods:
        paints += [Paint("cloth", old, look.cloth) for old in heads.CLOTHES[artist]]
    return paints


def _as_dark(colour: Colour, old: Colour, as_to: Colour) -> Colour:
    return _shaded(colour, float(np.clip((LUMA_3 @ old) / (LUMA_3 @ as_to), 0.75, 1.25)))


def _repainted(rgb_P3: np.ndarray, paints: Sequence[Paint]) -> np.ndarray:
    from_N3 = np.array([paint.old for paint in paints], np.float32)
    by_N3 = np.array([paint.new for paint in paints], np.float32) - from_N3
    off_PN = np.linalg.norm(_tone(rgb_P3)[:, None] - _tone(from_N3), axis=-1)
    sure_P1 = np.clip((NEAR + RAMP - off_PN.min(axis=-1)) / RAMP, 0, 1)[:, None]
    change_P3 = sure_P1 * by_N3[off_PN.argmin(axis=-1)]
    unsure_P = sure_P1[:, 0] < 1
    pairs = [
        (i, j) for i, j in combinations(range(len(paints)), 2)
        if paints[i].kind != paints[j].kind and "shade" not in (paints[i].kind, paints[j].kind)
    ]  # fmt: skip
    change_P3[unsure_P] += (1 - sure_P1[unsure_P]) * _between(rgb_P3[unsure_P], from_N3, by_N3, pairs)
    return np.asarray(rgb_P3 + change_P3)


def _tone(rgb: np.ndarray) -> np.ndarray:
    """Colours as a part of their brightness and two differences: grey eyes are far from brown hair."""
    return np.stack([0.6 * (rgb @ LUMA_3), rgb[..., 0] - rgb[..., 1], rgb[..., 1] - rgb[..., 2]], axis=-1)


def _between(
    rgb_P3: np.ndarray, from_N3: np.ndarray, by_N3: np.ndarray, pairs: Sequence[tuple[int, int]]
) -> np.ndarray:
    """The change of pixels on the edge of two colours: each lies on the line between them, and changes as they do."""
    best_P, change_P3 = np.full(len(rgb_P3), EDGE, np.float32), np.zeros_like(rgb_P3)
    for i, j in pairs:
        way = from_N3[j] - from_N3[i]
        part_P1 = np.clip((rgb_P3 - from_N3[i]) @ way / max(float(way @ way), 1.0), 0, 1)[:, None]
        off_P = np.linalg.norm(rgb_P3 - from_N3[i] - part_P1 * way, axis=-1)
        nearer_P = off_P < best_P
        weight_P1 = np.clip((EDGE - off_P) / (EDGE / 2), 0, 1)[:, None]
        change_P3[nearer_P] = (weight_P1 * ((1 - part_P1) * by_N3[i] + part_P1 * by_N3[j]))[nearer_P]
        best_P = np.minimum(best_P, off_P)
    return change_P3
