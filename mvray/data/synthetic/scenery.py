"""Backdrops in colour: landscapes, a town, the sea, a room, light out of focus. Legend: H W pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mvray.data.synthetic import drawings
from mvray.data.synthetic.film import HEIGHT, MARGIN_X, MARGIN_Y, WIDTH

FINE = 2
"""Painted at twice the size, then reduced: soft edges."""
BLUR_PX = 1.5
W, H = FINE * (WIDTH + 2 * MARGIN_X), FINE * (HEIGHT + 2 * MARGIN_Y)
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Land:
    """Colours of a landscape from top to bottom, what stands on its horizon, and what is special about it."""

    sky: tuple[Colour, Colour]
    ridges: tuple[Colour, ...]
    ground: tuple[Colour, Colour]
    far: tuple[str, ...]
    special: str = ""


TREES = ("deciduous-tree", "evergreen-tree", "deciduous-tree")
TOWN = ("office-building", "hotel", "hospital", "school", "department-store", "house", "bank", "convenience-store")
LANDS = {
    "meadow": Land(
        ((96, 172, 232), (214, 236, 246)),
        ((142, 190, 150), (116, 178, 110)),
        ((132, 192, 96), (88, 152, 66)),
        (*TREES, "house-with-garden", "church"),
        "clouds",
    ),
    "town": Land(
        ((150, 176, 214), (240, 222, 206)), ((178, 182, 198),), ((158, 156, 160), (112, 112, 120)), TOWN, "road"
    ),
    "beach": Land(
        ((82, 176, 236), (208, 240, 248)), (), ((240, 220, 168), (222, 188, 128)), ("palm-tree",), "sea clouds"
    ),
    "snow": Land(
        ((150, 190, 226), (226, 236, 246)),
        ((168, 190, 214), (202, 216, 232)),
        ((238, 244, 250), (204, 218, 234)),
        ("evergreen-tree", "evergreen-tree", "snow-capped-mountain", "house"),
        "clouds",
    ),
    "desert": Land(
        ((240, 164, 104), (252, 222, 168)),
        ((214, 140, 96), (226, 162, 104)),
        ((232, 180, 116), (204, 142, 84)),
        ("mountain", "palm-tree", "classical-building"),
    ),
    "night": Land(
        ((18, 24, 66), (70, 72, 130)),
        ((40, 44, 88), (32, 38, 70)),
        ((44, 60, 78), (26, 36, 54)),
        ("japanese-castle", "evergreen-tree", "house", "castle"),
        "stars",
    ),
    "autumn": Land(
        ((172, 190, 206), (244, 228, 200)),
        ((176, 132, 108), (200, 124, 66)),
        ((190, 148, 78), (146, 102, 54)),
        (*TREES, "shinto-shrine", "castle"),
        "clouds",
    ),
}
KINDS = (*LANDS, "room", "lights")


def scenery(kind: str, rng: np.random.Generator) -> Image.Image:
    """A backdrop for `film.Film`; ``kind`` is one of KINDS, its details are drawn from ``rng``."""
    if kind == "room":
        image = _room(rng)
    elif kind == "lights":
        image = _lights(rng)
    else:
        image = _land(LANDS[kind], rng)
    # The lens is on the actor: what is drawn into the backdrop is scenery, and looks other than a thing in view.
    image = image.filter(ImageFilter.GaussianBlur(FINE * BLUR_PX))
    tint_3 = rng.uniform(0.94, 1.06, 3) * rng.uniform(0.92, 1.05)
    return Image.fromarray(np.clip(np.asarray(image.reduce(FINE)) * tint_3, 0, 255).astype(np.uint8))


def _land(land: Land, rng: np.random.Generator) -> Image.Image:
    horizon = round(H * rng.uniform(0.5, 0.62))
    picture_HW3 = _ramp(land.sky, horizon)
    if "clouds" in land.special:
        thick_HW1 = np.clip((_noise(rng, (3, 6), (6, 14), (14, 30)) - 0.5) * 3, 0, 0.8)[..., None]
        picture_HW3 += thick_HW1 * (252 - picture_HW3)
    if "stars" in land.special:
        picture_HW3[rng.random((H, W)) < 0.002] = 235
    for i, colour in enumerate(land.ridges):
        top_W = horizon - H * (0.16 - 0.07 * i) * _ridge(rng)
        picture_HW3[np.arange(H)[:, None] >= top_W] = colour
    picture_HW3[horizon:] = _ramp(land.ground, H - horizon)[: H - horizon]
    picture_HW3[horizon:] += 22 * (_noise(rng, (12, 10), (60, 40), (148, 108)) - 0.5)[horizon:, :, None]
    if "sea" in land.special:
        _sea(picture_HW3, horizon, rng)
    if "road" in land.special:
        _road(picture_HW3, horizon)
    image = Image.fromarray(np.clip(picture_HW3, 0, 255).astype(np.uint8))
    if rng.random() < 0.6:
        _disc(image, horizon, (252, 246, 214), rng)
    _far(image, land, horizon, rng)
    return image


def _ramp(colours: tuple[Colour, Colour], height: int) -> np.ndarray:
    """H x W x 3, from one colour to the other over ``height`` rows."""
    part_H1 = np.clip(np.arange(H) / max(height, 1), 0, 1)[:, None]
    rows_H3 = np.array(colours[0]) * (1 - part_H1) + np.array(colours[1]) * part_H1
    return np.repeat(rows_H3[:, None], W, axis=1)


def _noise(rng: np.random.Generator, *cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise, H x W, 0 to 1: random grids of (columns, rows), each with half the weight of the one before."""
    total_HW = np.zeros((H, W))
    for i, (columns, rows) in enumerate(cells):
        grid = Image.fromarray(rng.random((rows, columns)).astype(np.float32))
        total_HW += 0.5**i * np.asarray(grid.resize((W, H), Image.Resampling.BICUBIC))
    return np.asarray(total_HW / (2 - 0.5 ** (len(cells) - 1)))


def _ridge(rng: np.random.Generator) -> np.ndarray:
    """The outline of hills, W values around 1."""
    x_W = np.linspace(0, 2 * np.pi, W)
    waves = [
        rng.uniform(0.1, 0.4) / n * np.sin(n * x_W * rng.uniform(0.7, 1.3) + rng.uniform(0, 6.3)) for n in (1, 2, 5)
    ]
    return np.asarray(1 + np.sum(waves, axis=0))


def _sea(picture_HW3: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    shore = horizon + round(0.13 * H)
    picture_HW3[horizon:shore] = _ramp(((42, 128, 186), (96, 196, 204)), shore - horizon)[: shore - horizon]
    glitter_HW = _noise(rng, (9, 120), (40, 240)) > 0.6
    picture_HW3[horizon:shore][glitter_HW[horizon:shore]] += 32


def _road(picture_HW3: np.ndarray, horizon: int) -> None:
    """A pavement, its kerb, and a dashed line."""
    kerb = horizon + round(0.1 * H)
    picture_HW3[horizon:kerb] += 44
    picture_HW3[kerb : kerb + 4] = (216, 212, 206)
    line = round(0.86 * H)
    picture_HW3[line : line + 5, np.arange(W) % 90 < 50] = (226, 222, 196)


def _disc(image: Image.Image, horizon: int, colour: Colour, rng: np.random.Generator) -> None:
    """Sun or moon."""
    x, y, r = rng.uniform(0.1, 0.9) * W, rng.uniform(0.15, 0.6) * horizon, rng.uniform(12, 24)
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _far(image: Image.Image, land: Land, horizon: int, rng: np.random.Generator) -> None:
    """Drawings on the horizon, in the haze."""
    artist = drawings.artists()[int(rng.integers(4))]
    step = rng.uniform(52, 84) if "road" in land.special else rng.uniform(70, 150)
    for x in np.arange(rng.uniform(0, step), W, step):
        name = land.far[int(rng.integers(len(land.far)))]
        side = round(min(96.0, step * rng.uniform(0.75, 1.15)))
        drawn = drawings.drawing(artist, name).image.resize((side, side), Image.Resampling.LANCZOS)
        alpha = drawn.getchannel("A")
        hazy = Image.blend(drawn.convert("RGB"), Image.new("RGB", drawn.size, land.sky[1]), rng.uniform(0.3, 0.5))
        foot = (alpha.getbbox() or (0, 0, 0, side))[3]
        at = (round(x + rng.uniform(-0.15, 0.15) * step - side / 2), horizon + round(rng.uniform(1, 7)) - foot)
        image.paste(hazy, at, alpha)


def _room(rng: np.random.Generator) -> Image.Image:
    """A papered wall with windows and pictures over a floor of boards."""
    hue_3 = np.array([(226, 206, 176), (182, 206, 196), (206, 188, 206), (190, 204, 224)][int(rng.integers(4))])
    floor = round(H * rng.uniform(0.6, 0.68))
    picture_HW3 = np.tile(hue_3.astype(float), (H, W, 1))
    picture_HW3[:, np.arange(W) % 36 < 18] *= 0.95
    boards_HW1 = np.where(np.arange(H) % 22 < 2, 0.82, 1.0)[:, None, None]
    picture_HW3[floor:] = (boards_HW1 * _ramp(((176, 130, 88), (146, 102, 66)), H - floor))[: H - floor]
    picture_HW3[floor:] += 16 * (_noise(rng, (6, 60), (20, 148)) - 0.5)[floor:, :, None]
    image = Image.fromarray(np.clip(picture_HW3, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, floor - 9, W, floor), fill=(240, 234, 224))
    artist = drawings.artists()[int(rng.integers(4))]
    for x in np.arange(rng.uniform(30, 80), W - 40, rng.uniform(90, 140)):
        _window(image, x, artist, rng)
    return image


def _window(image: Image.Image, x: float, artist: str, rng: np.random.Generator) -> None:
    """A view of the sky, or a framed picture."""
    w, top, h = rng.uniform(46, 70), rng.uniform(0.14, 0.24) * H, rng.uniform(0.24, 0.32) * H
    box = (round(x), round(top), round(x + w), round(top + h))
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.5:
        draw.rectangle(box, fill=(176, 216, 240), outline=(246, 242, 234), width=5)
        draw.line([(round(x + w / 2), box[1]), (round(x + w / 2), box[3])], fill=(246, 242, 234), width=4)
        return
    draw.rectangle(box, fill=(244, 238, 222), outline=(136, 96, 62), width=4)
    side = round(min(w, h) - 18)
    name = ("mount-fuji", "castle", "deciduous-tree", "volcano")[int(rng.integers(4))]
    inner = drawings.drawing(artist, name).image.resize((side, side), Image.Resampling.LANCZOS)
    image.paste(inner, (round(x + (w - side) / 2), round(top + (h - side) / 2)), inner.getchannel("A"))


def _lights(rng: np.random.Generator) -> Image.Image:
    """Coloured lights out of focus over a soft gradient, as a lens with a wide aperture shows them."""
    base_HW1 = _noise(rng, (3, 3), (5, 4))[..., None]
    dark, light = rng.uniform(30, 90, 3), rng.uniform(100, 190, 3)
    image = Image.fromarray((dark * (1 - base_HW1) + light * base_HW1).astype(np.uint8))
    for _ in range(int(rng.integers(14, 26))):
        x, y, r = rng.uniform(0, W), rng.uniform(0, 0.75 * H), rng.uniform(10, 34)
        spot = Image.new("L", image.size)
        ImageDraw.Draw(spot).ellipse((x - r, y - r, x + r, y + r), fill=round(rng.uniform(40, 120)))
        colour = tuple(int(c) for c in rng.uniform(120, 255, 3))
        image.paste(colour, (0, 0), spot.filter(ImageFilter.GaussianBlur(3)))
    grain_HW1 = rng.normal(0, 5, (H, W, 1))
    return Image.fromarray(np.clip(np.asarray(image) + grain_HW1, 0, 255).astype(np.uint8))
