"""Where words go: balloons that leave faces free, captions, sounds, marks, page numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from mvray.samples import balloons
from mvray.samples.annotations import HEIGHT, WIDTH, Rect, Region, inside
from mvray.samples.habits import Habits
from mvray.samples.ink import INK, sprite
from mvray.samples.panels import bounds
from mvray.samples.script import Panel, Title

MOST_FACE = 0.22
"""The largest share of a face that a balloon may hide."""


def draw_words(
    canvas: Image.Image, title: Title, panel: Panel, seen: Sequence[Region], rng: np.random.Generator
) -> list[Region]:
    """Letters a panel whose bodies and faces are ``seen``. Returns the boxes of the texts (balloons
    and captions; like Manga109's, they leave out sounds)."""
    taken: list[Rect] = []
    found = []
    if panel.sound:
        _draw_sound(canvas, panel, _boxes(seen, "face"), rng)
    if panel.caption:
        x0, y0, _, _ = bounds(panel.polygon)
        text = balloons.wrapped(panel.caption, title.habits, 9 * title.habits.font_px)
        at = (max(4, x0 + title.habits.border_px + 6), max(4, y0 + title.habits.border_px + 6))
        box = balloons.draw_caption(canvas, at, text, title.habits)
        found.append(Region("text", inside(_wider(box, 3)), words=_flat(text)))
        taken.append(_wider(box, 14))
    for speaker, line in panel.lines:
        head = _head(seen, panel.shots[speaker].who)
        place = head and _place(line, panel, head, seen, taken, title.habits, rng)
        if head and place:
            text, box = place
            target = _rim(head, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
            lettered = balloons.draw_balloon(canvas, box, text, target, title.habits, rng)
            found.append(Region("text", inside(_wider(lettered, 3)), words=_flat(text)))
            taken.append(box)
    if panel.mark and panel.shots:
        _draw_mark(canvas, title, panel, seen, rng)
    return found


def _place(
    line: str,
    panel: Panel,
    head: Rect,
    seen: Sequence[Region],
    taken: Sequence[Rect],
    habits: Habits,
    rng: np.random.Generator,
) -> tuple[str, Rect] | None:
    """The line broken into lines, and the best free box for its balloon; None where there is none."""
    faces, bodies = _boxes(seen, "face"), _boxes(seen, "body")
    x0, y0, x1, y1 = bounds(panel.polygon)
    left = 0 if (x0 + x1) / 2 < WIDTH / 2 else WIDTH / 2
    page = (left + 6, 6, left + WIDTH / 2 - 6, HEIGHT - 6)
    best: tuple[float, str, Rect] | None = None
    for ems in (8.5, 5.5):
        text = balloons.wrapped(line, habits, ems * habits.font_px)
        w, h = balloons.balloon_size(text, habits)
        for across, down in np.stack(np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 5)), -1).reshape(-1, 2):
            x = x0 - 12 + across * (x1 - x0 - w + 24) + rng.uniform(-6, 6)
            y = y0 - 10 + down * (y1 - y0 - h + 20) + rng.uniform(-6, 6)
            box = (x, y, x + w, y + h)
            hidden = max((_area(_common(box, face)) / max(_area(face), 1) for face in faces), default=0.0)
            if (
                hidden > MOST_FACE
                or _area(_common(box, page)) < 0.999 * w * h
                or any(_area(_common(box, b)) for b in taken)
            ):
                continue
            outside = 1 - _area(_common(box, (x0, y0, x1, y1))) / (w * h)
            covered = sum(_area(_common(box, body)) for body in bodies) / (w * h)
            way = np.hypot(x + w / 2 - (head[0] + head[2]) / 2, y + h / 2 - (head[1] + head[3]) / 2)
            cost = 4 * hidden + 3 * outside + covered + way / 900 + 0.5 * down + rng.uniform(0, 0.25)
            if outside < 0.3 and (best is None or cost < best[0]):
                best = (cost, text, box)
    return best and best[1:]


def _head(seen: Sequence[Region], who: int) -> Rect | None:
    """The face of somebody, or the upper half of a body without one; None if nothing can be seen."""
    for face in (region for region in seen if region.kind == "face" and region.who == who):
        return face.box
    for body in (region for region in seen if region.kind == "body" and region.who == who):
        x0, y0, x1, y1 = body.box
        return (x0, y0, x1, (y0 + y1) / 2)
    return None


def _rim(head: Rect, seen_from: tuple[float, float]) -> tuple[float, float]:
    """A point just outside the ellipse of the head, on the way to ``seen_from``."""
    cx, cy = (head[0] + head[2]) / 2, (head[1] + head[3]) / 2
    dx, dy = seen_from[0] - cx, seen_from[1] - cy
    reach = 1.1 / max(1e-6, float(np.hypot(2 * dx / (head[2] - head[0]), 2 * dy / (head[3] - head[1]))))
    return cx + min(reach, 0.95) * dx, cy + min(reach, 0.95) * dy


def _draw_sound(canvas: Image.Image, panel: Panel, faces: Sequence[Rect], rng: np.random.Generator) -> None:
    x0, y0, x1, y1 = bounds(panel.polygon)
    size = round(min(110, 0.3 * (y1 - y0), 1.5 * (x1 - x0) / len(panel.sound)))
    if size < 30:
        return
    image = balloons.sound(panel.sound, size, rng.uniform(-22, 22), panel.backdrop != "black")
    places = [
        (rng.uniform(x0, max(x0 + 1, x1 - image.width)), rng.uniform(y0, max(y0 + 1, y1 - image.height)))
        for _ in range(8)
    ]

    def hides(at: tuple[float, float]) -> float:
        box = (*at, at[0] + image.width, at[1] + image.height)
        return sum(_area(_common(box, face)) / max(_area(face), 1) for face in faces)

    at = min(places, key=hides)
    if hides(at) < MOST_FACE:
        canvas.paste(image.getchannel("L"), (round(at[0]), round(at[1])), image.getchannel("A"))


def _draw_mark(
    canvas: Image.Image, title: Title, panel: Panel, seen: Sequence[Region], rng: np.random.Generator
) -> None:
    """A drop of sweat, a heart, an anger mark beside somebody's head."""
    head = _head(seen, panel.shots[0].who)
    if head is None:
        return
    made = sprite(title.troupe.artist, panel.mark, 0.32 * (head[3] - head[1]), rng.uniform(-15, 15), halo_px=3.0)
    right = rng.random() < 0.5
    x = head[2] - 0.3 * made.image.width if right else head[0] - 0.7 * made.image.width
    canvas.paste(made.image, (round(x), round(head[1] - 0.3 * made.image.height)), made.mask)


def draw_number(canvas: Image.Image, number: int, right: bool, habits: Habits) -> None:
    """The page's number where and how the title has it."""
    if habits.number == "none":
        return
    outside, top, bottom, _ = habits.margin_px
    left = WIDTH / 2 if right else 0.0
    x, y = left + WIDTH / 4, HEIGHT - bottom / 2
    if habits.number == "outer":
        x = WIDTH - outside - 16 if right else outside + 16
    elif habits.number == "top":
        y = top / 2
    grey = INK if habits.gutter_grey > 100 else 245
    draw = ImageDraw.Draw(canvas)
    if habits.number == "circle":
        draw.ellipse((x - 17, y - 17, x + 17, y + 17), outline=grey, width=2)
    text = f"- {number} -" if habits.number == "dashes" else str(number)
    draw.text((x, y), text, grey, balloons.font(20), anchor="mm")


def _boxes(regions: Iterable[Region], kind: str) -> list[Rect]:
    return [region.box for region in regions if region.kind == kind]


def _flat(text: str) -> str:
    return text.replace("\n", " ")


def _wider(box: Rect, by: float) -> Rect:
    return (box[0] - by, box[1] - by, box[2] + by, box[3] + by)


def _common(a: Rect, b: Rect) -> Rect:
    return (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))


def _area(box: Rect) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
