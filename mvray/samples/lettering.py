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
    habits, faces = title.habits, _boxes(seen, "face")
    if panel.mark and panel.shots:
        _draw_mark(canvas, title, panel, seen, rng)
    if panel.sound:
        _draw_sound(canvas, panel, faces, rng)
    texts: list[str] = []
    found: list[Rect] = []
    caption = _draw_caption(canvas, panel, faces, habits) if panel.caption else None
    if caption:
        texts.append(caption[0])
        found.append(caption[1])
    said: list[tuple[str, Rect, tuple[float, float]]] = []
    for speaker, line in panel.lines:
        head = _head(seen, panel.shots[speaker].who)
        taken = [box for _, box, _ in said] + [_wider(box, 14) for box in found]
        place = head and _place(line, panel, head, seen, taken, habits, rng)
        if head and place:
            said.append((*place, _rim(head, balloons.middle_of(place[1]))))
    found += balloons.draw_balloons(canvas, said, habits, rng)
    texts += [text for text, _, _ in said]
    return [Region("text", inside(_wider(box, 3)), words=_flat(text)) for text, box in zip(texts, found, strict=True)]


def _draw_caption(canvas: Image.Image, panel: Panel, faces: Sequence[Rect], habits: Habits) -> tuple[str, Rect] | None:
    """The caption in the corner where it hides least of the faces: its text and that text's box."""
    x0, y0, x1, y1 = bounds(panel.polygon)
    text = balloons.wrapped(panel.caption, habits, 9 * habits.font_px)
    w, h = balloons.caption_size(text, habits)
    gap = habits.border_px + 6
    left, right = max(4, x0 + gap), min(WIDTH - 4, x1 - gap) - w
    corners = [(left, max(4, y0 + gap)), (right, max(4, y0 + gap)), (left, min(HEIGHT - 4, y1 - gap) - h)]
    hidden = [_hidden((x, y, x + w, y + h), faces) for x, y in corners]
    best = int(np.argmin(hidden))
    if hidden[best] > MOST_FACE or w > x1 - x0:
        return None
    return text, balloons.draw_caption(canvas, corners[best], text, habits)


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
            hidden = _hidden(box, faces)
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
    hidden = [_hidden((x, y, x + image.width, y + image.height), faces) for x, y in places]
    at = places[int(np.argmin(hidden))]
    if min(hidden) < MOST_FACE:
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


def _hidden(box: Rect, faces: Sequence[Rect]) -> float:
    """The largest share of a face that the box would hide."""
    return max((_area(_common(box, face)) / max(_area(face), 1) for face in faces), default=0.0)


def _wider(box: Rect, by: float) -> Rect:
    return (box[0] - by, box[1] - by, box[2] + by, box[3] + by)


def _common(a: Rect, b: Rect) -> Rect:
    return (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))


def _area(box: Rect) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
