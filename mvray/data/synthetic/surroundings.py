"""What is behind and before a face in a sample of faces; none of it knows whose face it is. Legend: H W pixels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mvray.data.synthetic import drawings, subjects, words
from mvray.data.synthetic.balloons import font
from mvray.data.synthetic.dressing import turn_hue
from mvray.data.synthetic.scenery import KINDS, scenery

SCENES = 24
"""Sceneries of a sample; a picture shows a part of one of them."""
INK = (24, 22, 28)


def behind(side: int, seed: int, rng: np.random.Generator) -> Image.Image:
    """A square backdrop, RGB: scenery, one colour, two that run into each other, a pattern, or lines of focus."""
    kind = rng.choice(5, p=[0.35, 0.2, 0.2, 0.13, 0.12])
    if kind == 0:
        return _part_of_scene(side, seed, rng)
    one, two = (_colour(rng) for _ in range(2))
    if kind == 1:
        return Image.new("RGB", (side, side), one)
    if kind == 2:
        return _gradient(side, one, two, rng)
    if kind == 3:
        return _pattern(side, one, two, rng)
    return _focus(side, one, rng)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Any colour; white paper and dark ones more often than chance would have them."""
    if (kind := rng.random()) < 0.3:
        grey = int(rng.integers(236, 256)) if kind < 0.22 else int(rng.integers(8, 60))
        return grey, grey, grey
    red, green, blue = (int(v) for v in rng.integers(30, 256, 3))
    return red, green, blue


@lru_cache(SCENES)
def _scene(seed: int, number: int) -> Image.Image:
    rng = np.random.default_rng(np.random.SeedSequence([seed, 3, number]))
    return scenery(KINDS[number % len(KINDS)], rng)


def _part_of_scene(side: int, seed: int, rng: np.random.Generator) -> Image.Image:
    whole = _scene(seed, int(rng.integers(SCENES)))
    cut = int(rng.integers(60, whole.height))
    x, y = int(rng.integers(whole.width - cut)), int(rng.integers(whole.height - cut))
    return whole.resize((side, side), Image.Resampling.BICUBIC, (x, y, x + cut, y + cut))


def _gradient(side: int, one: tuple[int, ...], two: tuple[int, ...], rng: np.random.Generator) -> Image.Image:
    y_HW, x_HW = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    turn = rng.uniform(0, 2 * np.pi)
    part_HW = x_HW * np.cos(turn) + y_HW * np.sin(turn) if rng.random() < 0.7 else 2 * np.hypot(x_HW, y_HW) - 1
    part_HW1 = np.clip((part_HW + 1) / 2, 0, 1)[..., None]
    return Image.fromarray((np.array(one) * part_HW1 + np.array(two) * (1 - part_HW1)).astype(np.uint8))


def _pattern(side: int, one: tuple[int, ...], two: tuple[int, ...], rng: np.random.Generator) -> Image.Image:
    y_HW, x_HW = np.mgrid[:side, :side] * (2 * np.pi / rng.uniform(8, 34))
    turn = rng.uniform(0, np.pi)
    u_HW, v_HW = x_HW * np.cos(turn) + y_HW * np.sin(turn), y_HW * np.cos(turn) - x_HW * np.sin(turn)
    wave_HW = (np.cos(u_HW), np.cos(u_HW) + np.cos(v_HW) - 0.6, np.cos(u_HW) * np.cos(v_HW))[int(rng.integers(3))]
    part_HW1 = np.clip(wave_HW * 3 + 0.5, 0, 1)[..., None]
    return Image.fromarray((np.array(one) * part_HW1 + np.array(two) * (1 - part_HW1)).astype(np.uint8))


def _focus(side: int, one: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """Lines that run towards the face, as comics draw surprise; or lines of speed."""
    image = Image.new("RGB", (side, side), one)
    draw, ink = ImageDraw.Draw(image), (INK if sum(one) > 330 else (250, 250, 250))
    for _ in range(int(rng.integers(18, 60))):
        if rng.random() < 0.7:
            turn, spread = rng.uniform(0, 2 * np.pi), rng.uniform(0.005, 0.03)
            way = side * 0.75 * np.array([[np.cos(turn + s), np.sin(turn + s)] for s in (-spread, spread)])
            tip = side * rng.uniform(0.25, 0.5) * np.array([np.cos(turn), np.sin(turn)])
            draw.polygon([(float(x), float(y)) for x, y in np.array([tip, *way]) + side / 2], fill=ink)
    return image


# -- in front ------------------------------------------------------------------------------------


def put_before(image: Image.Image, rng: np.random.Generator) -> None:
    """Things between the eye and the face, in two pictures of five: a balloon, a hand, letters, small things, rain."""
    if rng.random() < 0.6:
        return
    put = (_balloon, _hand, _letters, _small_things, _small_things, _rain, _edge)
    put[int(rng.integers(len(put)))](image, rng)


def _rim(side: int, rng: np.random.Generator) -> tuple[float, float]:
    """A place near the edge of the picture."""
    turn = rng.uniform(0, 2 * np.pi)
    reach = side * rng.uniform(0.44, 0.6)
    return side / 2 + reach * np.cos(turn), side / 2 + reach * np.sin(turn)


def _balloon(image: Image.Image, rng: np.random.Generator) -> None:
    side = image.width
    x, y = _rim(side, rng)
    w, h = rng.uniform(0.16, 0.3, 2) * side
    draw = ImageDraw.Draw(image)
    draw.ellipse((x - w, y - h, x + w, y + h), fill=(252, 252, 252), outline=INK, width=max(1, side // 80))
    phrases = words.spoken(words.SPEECH)
    text = "\n".join(phrases[int(rng.integers(len(phrases)))].split())
    draw.multiline_text((x, y), text, INK, font(max(7, side // 13)), "mm", align="center")


def _hand(image: Image.Image, rng: np.random.Generator) -> None:
    """Somebody's hand, of any colour of skin."""
    artist = ("noto", "twemoji", "noto-v1", "emojione")[int(rng.integers(4))]
    hands = ("raised-hand", "waving-hand", "hand-with-fingers-splayed", "backhand-index-pointing-up", "thumbs-up")
    _paste(image, artist, hands[int(rng.integers(len(hands)))], rng.uniform(0.3, 0.55), _rim(image.width, rng), 0, rng)


def _small_things(image: Image.Image, rng: np.random.Generator) -> None:
    """Petals, hearts, sparkles or leaves in the air; all of a picture by one artist."""
    artist = drawings.artists()[int(rng.integers(5))]
    names = [name for name in subjects.SMALL if name in drawings.names(artist)]
    name, turn_deg = names[int(rng.integers(len(names)))], int(rng.integers(6)) * 60
    for _ in range(int(rng.integers(2, 8))):
        at = (float(rng.uniform(0, image.width)), float(rng.uniform(0, image.height)))
        _paste(image, artist, name, rng.uniform(0.07, 0.16), at, turn_deg, rng)


def _paste(
    image: Image.Image,
    artist: str,
    name: str,
    size: float,
    at: tuple[float, float],
    turn_deg: int,
    rng: np.random.Generator,
) -> None:
    """A drawing around a place, of a ``size`` in parts of the picture, at any angle."""
    drawn = turn_hue(drawings.drawing(artist, name).image, turn_deg).convert("RGBa")
    side = max(6, round(size * image.width))
    drawn = drawn.resize((side, side), Image.Resampling.LANCZOS)
    drawn = drawn.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC, expand=True).convert("RGBA")
    image.paste(drawn, (round(at[0] - drawn.width / 2), round(at[1] - drawn.height / 2)), drawn.getchannel("A"))


def _letters(image: Image.Image, rng: np.random.Generator) -> None:
    sounds = words.spoken(words.SOUNDS)
    ink, rim = (INK, (250, 250, 250)) if rng.random() < 0.5 else ((250, 250, 250), INK)
    side = image.width
    size = int(rng.integers(side // 8, side // 4))
    text, at = sounds[int(rng.integers(len(sounds)))], _rim(side, rng)
    ImageDraw.Draw(image).text(at, text, ink, font(size), "mm", stroke_width=max(1, size // 10), stroke_fill=rim)


def _rain(image: Image.Image, rng: np.random.Generator) -> None:
    """Rain or falling snow."""
    side, snow = image.width, rng.random() < 0.4
    veil = Image.new("L", image.size)
    draw, lean = ImageDraw.Draw(veil), rng.uniform(-0.3, 0.3)
    for x, y in rng.uniform(0, side, (int(rng.integers(30, 90)), 2)):
        if snow:
            r = rng.uniform(0.008, 0.022) * side
            draw.ellipse((x - r, y - r, x + r, y + r), fill=230)
        else:
            length = rng.uniform(0.08, 0.2) * side
            draw.line((x, y, x + lean * length, y + length), fill=170)
    image.paste((240, 246, 255), (0, 0), veil.filter(ImageFilter.GaussianBlur(0.5)))


def _edge(image: Image.Image, rng: np.random.Generator) -> None:
    """The border of the panel, and the gutter beyond it."""
    side = image.width
    at, wide, turn = rng.uniform(0.02, 0.16) * side, max(2, side // 50), int(rng.integers(4)) * 90
    gutter = Image.new("L", image.size)
    ImageDraw.Draw(gutter).rectangle((0, 0, at, side), fill=255)
    line = Image.new("L", image.size)
    ImageDraw.Draw(line).rectangle((at, 0, at + wide, side), fill=255)
    image.paste((250, 250, 250), (0, 0), gutter.rotate(turn))
    image.paste(INK, (0, 0), line.rotate(turn))
