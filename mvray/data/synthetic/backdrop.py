"""What is behind the characters of a panel: tone, scenery by the title's artist, focus and speed lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from mvray.data.synthetic.casting import Troupe
from mvray.data.synthetic.habits import Habits
from mvray.data.synthetic.ink import INK, apply_screen, sprite


@dataclass(frozen=True)
class Scene:
    """A panel to be painted: its picture, whose title it is, and where it lies on the spread."""

    image: Image.Image
    troupe: Troupe
    habits: Habits
    origin: tuple[int, int]
    rng: np.random.Generator

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    def put(self, names: Sequence[str], size_px: float, x: float, foot: float, fade: float) -> None:
        """One of the drawings, its foot at ``foot``, its middle at ``x``."""
        if not names:
            return
        name = names[int(self.rng.integers(len(names)))]
        drawn = sprite(
            self.troupe.artist, name, size_px, mirror=bool(self.rng.random() < 0.5), fade=fade, tone=0.7, line_px=2.0
        )
        box = drawn.mask.getbbox() or (0, 0, 1, 1)
        self.image.paste(drawn.image, (round(x - drawn.image.width / 2), round(foot - box[3])), drawn.mask)


def backdrop(
    kind: str, size: tuple[int, int], troupe: Troupe, habits: Habits, origin: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    """A picture of ``size`` (width, height) for a panel at ``origin``; ``kind`` is one of BACKDROPS."""
    scene = Scene(Image.new("L", size, habits.paper), troupe, habits, origin, rng)
    _PAINTERS[kind](scene)
    if kind in ("tone", "gradient"):
        return apply_screen(scene.image, habits.screen, origin)
    if kind in ("outdoors", "indoors"):  # scenery must stay readable through the screen
        return Image.blend(scene.image, apply_screen(scene.image, habits.screen, origin), 0.4)
    return scene.image


def _plain(scene: Scene) -> None:
    """White; now and then a floor line, so that somebody stands on something."""
    width, height = scene.size
    if scene.rng.random() < 0.4:
        y = round(height * scene.rng.uniform(0.75, 0.92))
        ImageDraw.Draw(scene.image).line([(0, y), (width, y)], fill=INK, width=2)


def _tone(scene: Scene) -> None:
    scene.image.paste(round(scene.rng.uniform(180, 232)), (0, 0, *scene.size))


def _gradient(scene: Scene) -> None:
    _ramp(scene, scene.size[1], 255, scene.rng.uniform(90, 175), upside_down=bool(scene.rng.random() < 0.5))


def _ramp(scene: Scene, height: int, light: float, dark: float, upside_down: bool = False) -> None:
    """Fill the upper ``height`` rows with a ramp of greys."""
    column = np.linspace(light, dark, max(height, 1))[:: -1 if upside_down else 1]
    ramp = Image.fromarray(column.astype(np.uint8)[:, None]).resize((scene.size[0], max(height, 1)))
    scene.image.paste(ramp, (0, 0))


def _outdoors(scene: Scene) -> None:
    width, height = scene.size
    rng, troupe = scene.rng, scene.troupe
    night = rng.random() < 0.15
    horizon = round(height * rng.uniform(0.55, 0.78))
    _ramp(scene, horizon, *((60, 130) if night else (rng.uniform(190, 225), 252)))
    for _ in range(int(rng.integers(1, 4))):
        size = rng.uniform(60, 110)
        scene.put(troupe.sky, size, rng.uniform(0, width), rng.uniform(0.3, 0.9) * horizon * 0.6 + size * 0.3, 0.3)
    scene.image.paste(round(rng.uniform(205, 240)), (0, horizon, width, height))
    step = rng.uniform(110, 220)
    for x in np.arange(rng.uniform(0, step), width + step / 2, step):
        scene.put(troupe.far, min(260, rng.uniform(0.9, 1.5) * step), x, horizon + 4, 0.35)
    ImageDraw.Draw(scene.image).line([(0, horizon), (width, horizon)], fill=INK, width=2)
    for _ in range(int(rng.integers(0, 3))):
        foot = rng.uniform(horizon + 10, height + 10)
        scene.put(troupe.near, rng.uniform(100, 180), rng.uniform(0, width), foot, 0.2)


def _indoors(scene: Scene) -> None:
    width, height = scene.size
    rng, troupe = scene.rng, scene.troupe
    scene.image.paste(round(rng.uniform(222, 250)), (0, 0, width, height))
    floor = round(height * rng.uniform(0.7, 0.85))
    draw = ImageDraw.Draw(scene.image)
    draw.rectangle((0, floor, width, height), fill=round(rng.uniform(150, 215)))
    draw.rectangle((0, floor - 9, width, floor), fill=245, outline=INK, width=2)
    step = rng.uniform(150, 260)
    for x in np.arange(rng.uniform(30, step), width, step):
        if rng.random() < 0.5:
            _window(scene, x, floor)
        else:
            scene.put(troupe.pictures, rng.uniform(70, 120), x, rng.uniform(0.45, 0.7) * floor, 0.25)
    for x in np.arange(rng.uniform(0, 160), width, rng.uniform(150, 260)):
        scene.put(troupe.indoors, rng.uniform(90, 170), x, floor + rng.uniform(4, 30), 0.2)


def _window(scene: Scene, x: float, floor: int) -> None:
    """A window with a cross and something in the sky."""
    w, h = scene.rng.uniform(70, 120), min(220, scene.rng.uniform(0.35, 0.55) * floor)
    box = (round(x - w / 2), round(0.12 * floor), round(x + w / 2), round(0.12 * floor + h))
    draw = ImageDraw.Draw(scene.image)
    draw.rectangle(box, fill=252, outline=INK, width=4)
    scene.put(scene.troupe.sky, min(w, h) * 0.7, x, box[3] - 0.1 * h, 0.4)
    draw.line([(round(x), box[1]), (round(x), box[3])], fill=INK, width=3)
    draw.line([(box[0], (box[1] + box[3]) // 2), (box[2], (box[1] + box[3]) // 2)], fill=INK, width=3)


def _focus(scene: Scene) -> None:
    """Lines that run together at the middle of attention."""
    width, height = scene.size
    rng = scene.rng
    image = Image.new("L", (2 * width, 2 * height), scene.habits.paper)
    draw = ImageDraw.Draw(image)
    cx, cy, far = width * rng.uniform(0.8, 1.2), height * rng.uniform(0.8, 1.2), 2.0 * (width + height)
    for turn in np.arange(0, 2 * np.pi, rng.uniform(0.05, 0.09)) + rng.uniform(0, 0.05):
        near, wide = rng.uniform(0.62, 0.95), rng.uniform(0.004, 0.03)
        tip = (cx + near * width * np.cos(turn), cy + near * height * np.sin(turn))
        foot = [(cx + far * np.cos(turn + side), cy + far * np.sin(turn + side)) for side in (-wide, wide)]
        draw.polygon([tip, *foot], fill=INK)
    scene.image.paste(image.reduce(2), (0, 0))


def _speed(scene: Scene) -> None:
    """Lines along the way that something moves."""
    width, height = scene.size
    rng = scene.rng
    image = Image.new("L", (2 * width, 2 * height), scene.habits.paper)
    draw = ImageDraw.Draw(image)
    lean = rng.uniform(-0.25, 0.25)
    for y in np.arange(-abs(lean) * width, 2 * height, rng.uniform(14, 30)):
        start, length, wide = rng.uniform(-0.5, 1) * width, rng.uniform(0.6, 2) * width, rng.uniform(1, 7)
        y += rng.uniform(-6, 6)
        ends = [(start, y + lean * start - wide / 2), (start, y + lean * start + wide / 2)]
        draw.polygon([*ends, (start + length, y + lean * (start + length))], fill=INK)
    scene.image.paste(image.reduce(2), (0, 0))


def _black(scene: Scene) -> None:
    """Night, or a bad moment."""
    width, height = scene.size
    scene.image.paste(INK, (0, 0, width, height))
    draw = ImageDraw.Draw(scene.image)
    for _ in range(int(scene.rng.integers(0, 40))):
        x, y, r = scene.rng.uniform(0, width), scene.rng.uniform(0, height), scene.rng.uniform(0.5, 3)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=235)


def _scatter(scene: Scene) -> None:
    """Flowers, hearts, stars: a mood. One small drawing, repeated in rows."""
    width, height = scene.size
    rng = scene.rng
    scene.image.paste(round(rng.uniform(225, 250)), (0, 0, width, height))
    if not scene.troupe.small:
        return
    step = rng.uniform(70, 120)
    name = scene.troupe.small[int(rng.integers(len(scene.troupe.small)))]
    one = sprite(scene.troupe.artist, name, step * rng.uniform(0.4, 0.7), fade=0.5, tone=0.7, line_px=1.5)
    for row, y in enumerate(np.arange(0, height, step * 0.8)):
        for x in np.arange((row % 2 - 1) * step / 2, width, step):
            scene.image.paste(one.image, (round(x), round(y)), one.mask)


_PAINTERS: dict[str, Callable[[Scene], None]] = {
    "plain": _plain,
    "tone": _tone,
    "gradient": _gradient,
    "outdoors": _outdoors,
    "indoors": _indoors,
    "focus": _focus,
    "speed": _speed,
    "black": _black,
    "scatter": _scatter,
}
