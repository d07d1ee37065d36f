"""Draws a spread by its script, and says where everything is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from mvray.data.synthetic import drawings, lettering
from mvray.data.synthetic.annotations import HEIGHT, WIDTH, Rect, Region, inside
from mvray.data.synthetic.backdrop import backdrop
from mvray.data.synthetic.casting import face_of
from mvray.data.synthetic.habits import Habits
from mvray.data.synthetic.ink import INK, Sprite, grow, round_corners, sprite
from mvray.data.synthetic.panels import Polygon, bounds
from mvray.data.synthetic.script import Panel, Script, Shot, Title

LEAST_BODY, LEAST_FACE = 0.2, 0.45
"""A body or face of which a smaller share can be seen gets no box."""
HALF = [255 * (value >= 128) for value in range(256)]


@dataclass(frozen=True)
class Stage:
    """A panel's place: ``mask`` of what is inside it, ``corner`` of the mask on the spread."""

    mask: Image.Image
    corner: tuple[int, int]


@dataclass(frozen=True)
class Actor:
    """A character as it stands on the spread, its sprite's ``corner`` there, and the masks of what
    the panel shows of it: ``visible`` with the halo, ``body`` without."""

    shot: Shot
    sprite: Sprite
    corner: tuple[int, int]
    visible: Image.Image
    body: Image.Image


def draw_spread(title: Title, script: Script, rng: np.random.Generator) -> tuple[Image.Image, list[Region]]:
    """The spread, 1654 x 1170 in grey, and what is on it: panel by panel frame, bodies and faces, text."""
    canvas = Image.new("L", (WIDTH, HEIGHT), title.habits.gutter_grey)
    actors = [_draw_panel(canvas, title, panel, rng) for panel in script.panels]
    for actor in (actor for panel in actors for actor in panel if actor.shot.out):
        canvas.paste(actor.sprite.image, actor.corner, actor.visible)
    regions_of_panels = [_regions(title, cast) for cast in actors]
    for panel, own in zip(script.panels, regions_of_panels, strict=True):
        lettering.draw_effects(canvas, title, panel, own, rng)
    faces = [region.box for own in regions_of_panels for region in own if region.kind == "face"]
    regions: list[Region] = []
    taken: list[Rect] = []
    for panel, own in zip(script.panels, regions_of_panels, strict=True):
        texts = lettering.draw_words(canvas, title.habits, panel, own, faces, taken, rng)
        regions += [Region("frame", inside(bounds(panel.polygon))), *own, *texts]
    for right, number in zip((True, False), script.numbers, strict=True):
        lettering.draw_number(canvas, number, right, title.habits, script.panels)
    return canvas, regions


def _draw_panel(canvas: Image.Image, title: Title, panel: Panel, rng: np.random.Generator) -> list[Actor]:
    """Backdrop, then characters from back to front, then the border."""
    habits = title.habits
    stage = _stage(title, panel.polygon, rng)
    if habits.border == "shadow":
        canvas.paste(INK if habits.gutter_grey > 100 else 120, (stage.corner[0] + 9, stage.corner[1] + 9), stage.mask)
    behind = backdrop(panel.backdrop, stage.mask.size, title.troupe, habits, stage.corner, rng)
    canvas.paste(behind, stage.corner, stage.mask)
    actors = [_actor(title, panel, shot, stage) for shot in panel.shots]
    for actor in actors:
        if not actor.shot.out:
            canvas.paste(actor.sprite.image, actor.corner, actor.visible)
    for ring in _rings(stage.mask, habits):
        canvas.paste(INK if habits.gutter_grey > 100 else 240, stage.corner, ring)
    return actors


def _stage(title: Title, polygon: Polygon, rng: np.random.Generator) -> Stage:
    habits = title.habits
    x0, y0, x1, y1 = bounds(polygon)
    pad = 2 * habits.border_px + 6
    points = _shaken(polygon, rng) if habits.border == "wobbly" else polygon
    mask = Image.new("L", (2 * (x1 - x0 + 2 * pad), 2 * (y1 - y0 + 2 * pad)))
    ImageDraw.Draw(mask).polygon([(2 * (x - x0 + pad), 2 * (y - y0 + pad)) for x, y in points], 255)
    mask = mask.reduce(2)
    return Stage(round_corners(mask, 12) if habits.border == "rounded" else mask, (x0 - pad, y0 - pad))


def _shaken(polygon: Polygon, rng: np.random.Generator) -> list[tuple[float, float]]:
    """The polygon as drawn by hand: a point every 60 px or so, each a little off."""
    points = []
    for (ax, ay), (bx, by) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        n = max(2, round(float(np.hypot(bx - ax, by - ay)) / 60))
        for t in np.arange(n) / n:
            dx, dy = rng.normal(0, 2.2, 2)
            points.append((ax + t * (bx - ax) + dx, ay + t * (by - ay) + dy))
    return points


def _rings(mask: Image.Image, habits: Habits) -> list[Image.Image]:
    """The lines of the border, from the panel's edge inwards."""
    if habits.border == "double":
        thin = max(2.0, habits.border_px / 2.5)
        first, second, third = grow(mask, -thin, -2.5 * thin, -3.5 * thin)
        return [ImageChops.subtract(mask, first), ImageChops.subtract(second, third)]
    return [ImageChops.subtract(mask, grow(mask, -habits.border_px)[0])]


def _actor(title: Title, panel: Panel, shot: Shot, stage: Stage) -> Actor:
    drawn = sprite(
        title.troupe.artist,
        shot.drawing,
        shot.size_px,
        shot.angle_deg,
        shot.mirror,
        shot.tone,
        shot.fade,
        halo_px=3.0 if panel.backdrop in ("black", "focus", "speed", "tone", "gradient") else 1.5,
    )
    corner = (round(shot.x - drawn.centre[0]), round(shot.y - drawn.centre[1]))
    offset = (corner[0] - stage.corner[0], corner[1] - stage.corner[1])
    clip = stage.mask.crop((*offset, offset[0] + drawn.mask.width, offset[1] + drawn.mask.height))
    if shot.out:
        # Free above the panel's middle: the head stands over the border, the foot does not.
        free = max(0, min(clip.height, stage.mask.height // 2 - offset[1]))
        clip.paste(255, (0, 0, clip.width, free))
    return Actor(shot, drawn, corner, ImageChops.multiply(drawn.mask, clip), ImageChops.multiply(drawn.body, clip))


def _regions(title: Title, actors: Sequence[Actor]) -> list[Region]:
    """Boxes of the bodies and faces that can be seen; later actors stand in front of earlier ones."""
    regions = []
    for i, actor in enumerate(actors):
        extent = actor.body.point(HALF).getbbox()
        if extent is None:
            continue
        bare = actor.body.copy()
        for other in actors[i + 1 :]:
            at = (other.corner[0] - actor.corner[0], other.corner[1] - actor.corner[1])
            bare.paste(0, at, other.visible)
        if _share(bare, actor.sprite.body, (0, 0, *bare.size)) < LEAST_BODY:
            continue
        regions.append(Region("body", inside(extent, actor.corner), actor.shot.who))
        name = actor.shot.drawing
        face = face_of(title.troupe.artist, name)
        if face is None:
            continue
        whole = (0, 0, *bare.size) if face == drawings.extent(title.troupe.artist, name) else actor.sprite.follow(face)
        box = _overlap(whole, extent)
        if box and _share(bare, actor.sprite.body, whole) >= LEAST_FACE:
            regions.append(Region("face", inside(box, actor.corner), actor.shot.who))
    return regions


def _share(part: Image.Image, whole: Image.Image, box: Rect) -> float:
    """How much of what ``whole`` has in the box is also in ``part``."""
    corners = (round(box[0]), round(box[1]), round(box[2]), round(box[3]))
    return float(np.asarray(part.crop(corners)).sum()) / max(1.0, float(np.asarray(whole.crop(corners)).sum()))


def _overlap(a: Rect, b: Rect) -> Rect | None:
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x1 - x0 > 2 and y1 - y0 > 2 else None
