"""Pictures of one character as face crops of an anime have them. Legend: H W pixels.

The expression, the turn of the head, the crop, light, surroundings and the file's quality are drawn
for each picture alike, whoever is on it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mvray.data.synthetic import heads
from mvray.data.synthetic.dressing import FINE, MARGIN, dress
from mvray.data.synthetic.heads import Face
from mvray.data.synthetic.looks import Look, Worn
from mvray.data.synthetic.surroundings import INK, behind, put_before

LEAST_SIDE, SIDE = 96, 160
TAKEN_OFF = 0.2
"""How often one of several things is not worn."""


@dataclass(frozen=True)
class Mood:
    """How a face differs from how it is drawn, in parts of its width: eyes more or less open (a factor), corners
    of the mouth down, mouth larger (a factor), face turned to the side and down."""

    eyes: float
    corners: float
    mouth: float
    aside: float
    down: float


def portrait(look: Look, seed: int, rng: np.random.Generator) -> Image.Image:
    """One picture of the character, RGB, LEAST_SIDE to SIDE pixels high and wide."""
    side = SIDE if rng.random() < 0.5 else int(rng.integers(LEAST_SIDE, SIDE))
    name = look.base.names[int(rng.integers(len(look.base.names)))]
    worn = look.worn
    if len(worn) > 1 and rng.random() < TAKEN_OFF:
        worn = (worn[int(rng.integers(len(worn)))],)
    figure = _figure(look, name, worn, side, rng)
    image = behind(side, seed, rng)
    _paste_figure(image, figure, rng)
    put_before(image, rng)
    return _printed(_lit(image, rng), rng)


@lru_cache(24)
def _dressed(look: Look, name: str, worn: tuple[Worn, ...]) -> np.ndarray:
    return np.asarray(dress(look, name, worn)).astype(np.float32)


# -- pose ----------------------------------------------------------------------------------------


def _figure(look: Look, name: str, worn: tuple[Worn, ...], side: int, rng: np.random.Generator) -> Image.Image:
    """The character as the crop shows him, RGBA."""
    face = heads.face_of(look.base.artist, name, look.base.person)
    x_HW, y_HW = _crop(face, side, look.base.person, rng)
    mood = Mood(
        eyes=float(rng.choice([1.0, 1.0, 0.55, 1.25])) * rng.uniform(0.9, 1.1),
        corners=rng.normal(0, 0.07),
        mouth=rng.uniform(0.75, 1.5),
        aside=float(np.clip(rng.normal(0, 0.09), -0.2, 0.2)),
        down=float(np.clip(rng.normal(0, 0.05), -0.12, 0.12)),
    )
    dx_HW, dy_HW = _moved(face, mood, x_HW, y_HW)
    rgba_HW4 = _sampled(_dressed(look, name, worn), FINE * (x_HW + dx_HW + MARGIN), FINE * (y_HW + dy_HW + MARGIN))
    colour_HW3 = rgba_HW4[..., :3] * (255 / np.maximum(rgba_HW4[..., 3:], 1))
    straight_HW4 = np.concatenate([colour_HW3, rgba_HW4[..., 3:]], axis=-1)
    return Image.fromarray(np.clip(straight_HW4, 0, 255).astype(np.uint8))


def _crop(face: Face, side: int, person: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which place of the drawing each pixel shows: a box around the face, as unsteady as a detector's, seen
    a little from the side, turned, mirrored in half of the pictures."""
    v_HW, u_HW = np.mgrid[-0.5 : 0.5 : side * 1j, -0.5 : 0.5 : side * 1j].astype(np.float32)
    width = face.width * (rng.uniform(1.45, 2.15) if person else rng.uniform(1.25, 1.7))
    depth_HW = 1 + rng.normal(0, 0.1) * u_HW + rng.normal(0, 0.08) * v_HW
    turn = np.deg2rad(np.clip(rng.normal(0, 11), -32, 32))
    aspect, shear = rng.uniform(0.92, 1.09), rng.normal(0, 0.06)
    u_HW, v_HW = u_HW / depth_HW, v_HW / depth_HW
    u_HW, v_HW = (u_HW * np.cos(turn) - v_HW * np.sin(turn)) * aspect, u_HW * np.sin(turn) + v_HW * np.cos(turn)
    u_HW = (u_HW + shear * v_HW) * rng.choice([-1, 1])
    # Hair and hats are more than a chin: the box's middle is at the eyes rather than below them.
    middle_y = face.eyes if person else (face.top + face.bottom) / 2
    x, y = face.middle + rng.normal(0, 0.07) * face.width, middle_y + rng.normal(0, 0.07) * face.width
    return x + width * u_HW, y + width * v_HW


def _moved(face: Face, mood: Mood, x_HW: np.ndarray, y_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far to look aside and down from each place of the drawing, so that the face has this mood."""
    w, middle = face.width, (face.top + face.bottom) / 2
    a_HW, b_HW = (x_HW - face.middle) / w, (y_HW - middle) / w
    # What is nearer to the eye moves further when a head turns.
    near_HW = np.clip(1 - (a_HW / 0.75) ** 2 - (b_HW / 0.9) ** 2, 0, 1)
    dx_HW, dy_HW = -mood.aside * w * near_HW, -mood.down * w * near_HW
    from_eyes_HW = (y_HW - face.eyes) / w
    lids_HW = _bump(from_eyes_HW / 0.2) * _bump(a_HW / 0.55)
    dy_HW = dy_HW + lids_HW * from_eyes_HW * w * (1 / mood.eyes - 1)
    mouth_y = face.eyes + 0.55 * (face.bottom - face.eyes)
    from_mouth_HW = (y_HW - mouth_y) / w
    lips_HW = _bump(from_mouth_HW / 0.22) * _bump(a_HW / 0.4)
    dy_HW = dy_HW + lips_HW * w * (from_mouth_HW * (1 / mood.mouth - 1) - mood.corners * ((a_HW / 0.2) ** 2 - 0.5))
    return dx_HW, dy_HW


def _bump(x_HW: np.ndarray) -> np.ndarray:
    """1 in the middle, 0 from -1 and 1 on, smoothly."""
    return np.asarray(np.clip(1 - x_HW**2, 0, 1) ** 2)


def _sampled(image_HW4: np.ndarray, x_HW: np.ndarray, y_HW: np.ndarray) -> np.ndarray:
    """The picture's values between its pixels; nothing is beyond its edge."""
    high, wide = image_HW4.shape[:2]
    x_HW, y_HW = np.clip(x_HW - 0.5, 0, wide - 1.001), np.clip(y_HW - 0.5, 0, high - 1.001)
    left_HW, top_HW = x_HW.astype(int), y_HW.astype(int)
    fx_HW1, fy_HW1 = (x_HW - left_HW)[..., None], (y_HW - top_HW)[..., None]
    upper_HW4 = image_HW4[top_HW, left_HW] * (1 - fx_HW1) + image_HW4[top_HW, left_HW + 1] * fx_HW1
    lower_HW4 = image_HW4[top_HW + 1, left_HW] * (1 - fx_HW1) + image_HW4[top_HW + 1, left_HW + 1] * fx_HW1
    return np.asarray(upper_HW4 * (1 - fy_HW1) + lower_HW4 * fy_HW1)


# -- style, light, print -------------------------------------------------------------------------


def _paste_figure(image: Image.Image, figure: Image.Image, rng: np.random.Generator) -> None:
    """Put the figure before its backdrop, with lines, outline and shadow of this picture."""
    colours, mask = figure.convert("RGB"), figure.getchannel("A")
    kind = rng.random()
    if kind < 0.16:
        colours = colours.filter(ImageFilter.MinFilter(3))  # thick lines
    elif kind < 0.3:
        colours = colours.filter(ImageFilter.MaxFilter(3))  # thin lines
    elif kind < 0.42:
        colours = colours.filter(ImageFilter.MedianFilter(5))  # a brush's
    if rng.random() < 0.35:
        shade = _shade(image.width, rng)
        colours = Image.composite(colours, ImageEnhance.Brightness(colours).enhance(rng.uniform(0.55, 0.8)), shade)
    if rng.random() < 0.55:
        outline = mask.filter(ImageFilter.MaxFilter(int(rng.choice([3, 3, 5]))))
        image.paste(INK if rng.random() < 0.8 else (250, 250, 250), (0, 0), outline)
    image.paste(colours, (0, 0), mask)


def _shade(side: int, rng: np.random.Generator) -> Image.Image:
    """Light on one side with a hard or soft edge: 255 where the light falls."""
    y_HW, x_HW = np.mgrid[-0.5 : 0.5 : side * 1j, -0.5 : 0.5 : side * 1j]
    turn, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-1.5, 1.5)
    u_HW, v_HW = x_HW * np.cos(turn) + y_HW * np.sin(turn), y_HW * np.cos(turn) - x_HW * np.sin(turn)
    lit_HW = (u_HW + bend * v_HW**2 - rng.uniform(-0.05, 0.2)) * (40 if rng.random() < 0.6 else 4)
    return Image.fromarray((255 * np.clip(0.5 - lit_HW, 0, 1)).astype(np.uint8))


def _lit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and colour of the light; one picture of eight is grey or sepia."""
    part_HW3 = np.asarray(image).astype(np.float32) / 255
    part_HW3 = part_HW3 ** rng.uniform(0.72, 1.4)
    cast_3 = rng.uniform(0.68, 1.0, 3) if rng.random() < 0.25 else rng.uniform(0.9, 1.06, 3)
    part_HW3 = part_HW3 * cast_3 * rng.uniform(0.85, 1.12)
    part_HW3 = 0.5 + (part_HW3 - 0.5) * rng.uniform(0.75, 1.2)
    picture = Image.fromarray(np.clip(part_HW3 * 255, 0, 255).astype(np.uint8))
    if (kind := rng.random()) < 0.12:
        grey = ImageOps.grayscale(picture)
        return grey.convert("RGB") if kind < 0.09 else ImageOps.colorize(grey, (40, 26, 16), (255, 240, 214))
    return ImageEnhance.Color(picture).enhance(rng.uniform(0.65, 1.3))


def _printed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur of a small original, grain, and what JPEG leaves of it."""
    side: Any = image.width
    if (kind := rng.random()) < 0.25:
        small = round(side * rng.uniform(0.42, 0.75))
        image = image.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BICUBIC)
    elif kind < 0.45:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3)))
    if rng.random() < 0.3:
        grain_HW1 = rng.normal(0, rng.uniform(2, 9), (side, side, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + grain_HW1, 0, 255).astype(np.uint8))
    if rng.random() < 0.8:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(30, 93)))
        image = Image.open(file).convert("RGB")
    return image
