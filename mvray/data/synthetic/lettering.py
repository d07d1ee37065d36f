"""Where words go: balloons that leave faces free, captions, sounds, marks, page numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from mvray.data.synthetic import balloons, placing
from mvray.data.synthetic.annotations import HEIGHT, WIDTH, Rect, Region, inside
from mvray.data.synthetic.habits import Habits
from mvray.data.synthetic.ink import INK, sprite
from mvray.data.synthetic.panels import bounds
from mvray.data.synthetic.script import Panel, Title


def draw_effects(
    canvas: Image.Image, title: Title, panel: Panel, regions: Sequence[Region], rng: np.random.Generator
) -> None:
    """A panel's sound and the mark beside a head; ``regions`` are its bodies and faces."""
    if panel.mark and panel.shots:
        _draw_mark(canvas, title, panel, regions, rng)
    if panel.sound:
        _draw_sound(canvas, panel, _boxes(regions, "face"), rng)


def draw_words(
    canvas: Image.Image,
    habits: Habits,
    panel: Panel,
    regions: Sequence[Region],
    faces: Sequence[Rect],
    taken: list[Rect],
    rng: np.random.Generator,
) -> list[Region]:
    """Letters a panel whose bodies and faces are ``regions``, and returns the boxes of the texts.

    ``faces`` are those of the whole spread; ``taken``, where words stand already, grows. Like
    Manga109's annotations, the boxes are of balloons and captions, not of sounds.
    """
    texts: list[str] = []
    boxes: list[Rect] = []
    caption = _draw_caption(canvas, panel, faces, taken, habits) if panel.caption else None
    if caption:
        texts.append(caption[0])
        boxes.append(caption[1])
        taken.append(_wider(caption[1], 14))
    speeches: list[tuple[str, Rect, tuple[float, float]]] = []
    for speaker, line in panel.lines:
        head = _head(regions, panel.shots[speaker].who)
        place = head and _place(line, panel, head, _boxes(regions, "body"), faces, taken, habits, rng)
        if head and place:
            speeches.append((*place, _rim(head, balloons.middle_of(place[1]))))
            taken.append(place[1])
    boxes += balloons.draw_balloons(canvas, speeches, habits, rng)
    texts += [text for text, _, _ in speeches]
    return [Region("text", inside(_wider(box, 3)), words=_flat(text)) for text, box in zip(texts, boxes, strict=True)]


def _draw_caption(
    canvas: Image.Image, panel: Panel, faces: Sequence[Rect], taken: Sequence[Rect], habits: Habits
) -> tuple[str, Rect] | None:
    """The caption in the corner where it hides least of the faces: its text and that text's box."""
    x0, y0, x1, y1 = bounds(panel.polygon)
    text = balloons.wrap(panel.caption, habits, 9 * habits.font_px)
    w, h = balloons.caption_size(text, habits)
    gap = habits.border_px + 6
    left, right = max(4, x0 + gap), min(WIDTH - 4, x1 - gap) - w
    corners = [(left, max(4, y0 + gap)), (right, max(4, y0 + gap)), (left, min(HEIGHT - 4, y1 - gap) - h)]
    boxes = np.array([(x, y, x + w, y + h) for x, y in corners])
    cost = placing.hidden(boxes, faces) + 9 * placing.overlaps(boxes, taken).any(axis=1)
    if cost.min() > placing.MOST_FACE or w > x1 - x0:
        return None
    return text, balloons.draw_caption(canvas, corners[int(cost.argmin())], text, habits)


def _place(
    line: str,
    panel: Panel,
    head: Rect,
    bodies: Sequence[Rect],
    faces: Sequence[Rect],
    taken: Sequence[Rect],
    habits: Habits,
    rng: np.random.Generator,
) -> tuple[str, Rect] | None:
    """The line broken into lines, and the box of its balloon: a wide one, or else a narrow one."""
    for ems in (8.5, 5.5):
        text = balloons.wrap(line, habits, ems * habits.font_px)
        size = balloons.balloon_size(text, habits)
        box = placing.best_place(size, bounds(panel.polygon), head, bodies, faces, taken, rng)
        if box:
            return text, box
    return None


def _head(regions: Sequence[Region], who: int) -> Rect | None:
    """The face of somebody, or the upper half of a body without one; None if nothing can be seen."""
    for face in (region for region in regions if region.kind == "face" and region.who == who):
        return face.box
    for body in (region for region in regions if region.kind == "body" and region.who == who):
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
    room = (max(1, x1 - x0 - image.width), max(1, y1 - y0 - image.height))
    corners = (x0, y0) + rng.uniform(0, 1, (8, 2)) * room
    hidden = placing.hidden(np.concatenate([corners, corners + image.size], axis=1), faces)
    if hidden.min() < placing.MOST_FACE:
        x, y = corners[np.argmin(hidden)]
        canvas.paste(image.getchannel("L"), (round(x), round(y)), image.getchannel("A"))


def _draw_mark(
    canvas: Image.Image, title: Title, panel: Panel, regions: Sequence[Region], rng: np.random.Generator
) -> None:
    """A drop of sweat, a heart, an anger mark beside somebody's head."""
    head = _head(regions, panel.shots[0].who)
    if head is None:
        return
    drawn = sprite(title.troupe.artist, panel.mark, 0.32 * (head[3] - head[1]), rng.uniform(-15, 15), halo_px=3.0)
    right = rng.random() < 0.5
    x = head[2] - 0.3 * drawn.image.width if right else head[0] - 0.7 * drawn.image.width
    canvas.paste(drawn.image, (round(x), round(head[1] - 0.3 * drawn.image.height)), drawn.mask)


def draw_number(canvas: Image.Image, number: int, right: bool, habits: Habits, panels: Sequence[Panel]) -> None:
    """The page's number where and how the title has it, unless a panel is there."""
    if habits.number == "none":
        return
    outside, top, bottom, _ = habits.margin_px
    left = WIDTH / 2 if right else 0.0
    x, y = left + WIDTH / 4, HEIGHT - bottom / 2
    if habits.number == "outer":
        x = WIDTH - outside - 16 if right else outside + 16
    elif habits.number == "top":
        y = top / 2
    if placing.overlaps(np.array([(x, y, x + 1, y + 1)]), [bounds(panel.polygon) for panel in panels]).any():
        return
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
