"""Stage a sample action: the same actors and scenes in every class, only the motion is its own.

So nothing but the motion tells the class. Things in view, place, size, speed and camera are drawn anew for each
video, alike for all classes. Legend: T frames.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image

from mvray.data.synthetic.avi import FRAMES_PER_S
from mvray.data.synthetic.film import HEIGHT, MARGIN_X, MARGIN_Y, WIDTH, Film, Layer
from mvray.data.synthetic.motions import MOTIONS, Poses, Take
from mvray.data.synthetic.players import Prop, actors, props
from mvray.data.synthetic.scenery import KINDS, scenery
from mvray.data.synthetic.sprites import Pose, Sprite, half_extent, sprite

FEWEST_FRAMES, MOST_FRAMES = 40, 80
LEAST_HEIGHT_PX = 0.35 * HEIGHT
MOST_ACTORS = 300
CLIPS_PER_GROUP = 2
ACTOR, THING = "person", "object"


def film_of(name: str, group: int, clip: int, seed: int) -> Film:
    """The video of class ``name``, with the actor and the scene of this ``clip`` of its ``group``."""
    rng = _rng(seed, 3, list(MOTIONS).index(name), group, clip)
    frames = int(rng.integers(FEWEST_FRAMES, MOST_FRAMES + 1))
    things = props(rng)
    behind = [_thing(prop, frames, rng) for prop in things if not prop.in_front]
    before = [_thing(prop, frames, rng) for prop in things if prop.in_front]
    layers = (*behind, _actor(name, _actors(seed)[group * CLIPS_PER_GROUP + clip], frames, rng), *before)
    camera_T2 = _camera(frames, rng)
    return Film(_scene(seed, group, clip), tuple(_moved(layer, camera_T2.mean(axis=0)) for layer in layers), camera_T2)


def _rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(numbers))


@lru_cache(1)
def _actors(seed: int) -> tuple[tuple[str, str], ...]:
    return tuple(actors(MOST_ACTORS, _rng(seed, 0)))


@lru_cache(4)
def _scene(seed: int, group: int, clip: int) -> Image.Image:
    """Clips of a group have a kind of scene in common, and one of its kind each."""
    order = _rng(seed, 1).permutation(len(KINDS))
    return scenery(KINDS[order[group % len(KINDS)]], _rng(seed, 1, group, clip))


def _actor(name: str, drawing: tuple[str, str], frames: int, rng: np.random.Generator) -> Layer:
    """The figure that moves, at a random place where its motion fits into the picture."""
    # A quarter of all actors stand at any angle: a figure on its head gives no class away.
    lean_deg = rng.uniform(-180, 180) if rng.random() < 0.25 else rng.uniform(-12, 12)
    cut = sprite(*drawing, lean_deg)
    height_px = min(rng.uniform(0.4, 0.7) * HEIGHT, 0.7 * HEIGHT * cut.height / cut.width)
    poses, height_px = _fitted(name, cut, height_px, frames, rng)
    left, right, top, bottom = _reach(poses, height_px * cut.width / cut.height, height_px)
    x = rng.uniform(-left, max(-left, WIDTH - right)) if right - left < WIDTH else (WIDTH - left - right) / 2
    foot = rng.uniform(0.76, 0.97) * HEIGHT
    y = min(max(foot - height_px / 2, -top), max(-top, HEIGHT - bottom))
    return Layer(ACTOR, "/".join(drawing), cut, _placed(poses, x, y, height_px, cut))


def _fitted(name: str, cut: Sprite, height_px: float, frames: int, rng: np.random.Generator) -> tuple[Poses, float]:
    """The motion, and the height at which it fits into the picture but for a little of its sides."""
    side, stream = (1 if rng.random() < 0.5 else -1), int(rng.integers(2**32))
    aspect = cut.width / cut.height
    while True:
        room = max(WIDTH / height_px - aspect, 0.3 * WIDTH / height_px)
        take = Take(np.arange(frames) / FRAMES_PER_S, aspect, room, side)
        poses = MOTIONS[name](take, _rng(stream))
        left, right, top, bottom = _reach(poses, aspect * height_px, height_px)
        if height_px <= LEAST_HEIGHT_PX or (right - left <= 1.15 * WIDTH and bottom - top <= 1.04 * HEIGHT):
            return poses, height_px
        height_px *= 0.95


def _reach(poses: Poses, width_px: float, height_px: float) -> tuple[float, float, float, float]:
    """How far the figure goes to the left, right, top and bottom of its place, in pixels."""
    half_x_T, half_y_T = half_extent(
        width_px * poses.size * np.abs(poses.face), height_px * poses.size, poses.angle_deg
    )
    x_T, y_T = poses.x * height_px, poses.y * height_px
    return (
        float((x_T - half_x_T).min()),
        float((x_T + half_x_T).max()),
        float((y_T - half_y_T).min()),
        float((y_T + half_y_T).max()),
    )


def _placed(poses: Poses, x: float, y: float, height_px: float, cut: Sprite) -> tuple[Pose, ...]:
    scale = height_px / cut.height
    every = zip(poses.x, poses.y, poses.angle_deg, poses.size, poses.face, strict=True)
    return tuple(
        Pose(x + height_px * float(dx), y + height_px * float(dy), float(angle), scale * float(size), float(face))
        for dx, dy, angle, size, face in every
    )


def _thing(prop: Prop, frames: int, rng: np.random.Generator) -> Layer:
    """Stands still or drifts slowly; what is before the actor stands low, so that it hides little of him."""
    cut = sprite(prop.artist, prop.name)
    side_px = rng.uniform(0.2, 0.28 if prop.in_front else 0.42) * HEIGHT
    scale = side_px / max(cut.width, cut.height)
    if prop.flies:
        middle = rng.uniform(0.1, 0.45) * HEIGHT
    else:
        foot = rng.uniform(0.92, 1.04) if prop.in_front else rng.uniform(0.66, 0.86)
        middle = foot * HEIGHT - cut.height * scale / 2
    drifts = rng.random() < (0.8 if prop.flies else 0.4)
    speed_px = rng.uniform(3, 12) * rng.choice([-1, 1]) / FRAMES_PER_S * drifts
    wave_px = rng.uniform(0.5, 2.5) * prop.flies
    x, phase, face = rng.uniform(0.04, 0.96) * WIDTH, rng.uniform(0, 6.3), rng.choice([-1.0, 1.0])
    t_T = np.arange(frames)
    x_T = x + speed_px * (t_T - frames / 2)
    y_T = middle + wave_px * np.sin(2 * np.pi * t_T / (2.4 * FRAMES_PER_S) + phase)
    return Layer(
        THING,
        f"{prop.artist}/{prop.name}",
        cut,
        tuple(Pose(float(a), float(b), 0.0, scale, float(face)) for a, b in zip(x_T, y_T, strict=True)),
    )


def _moved(layer: Layer, by: np.ndarray) -> Layer:
    """The layer as far to the right and down as the camera looks on average: it was placed in the picture."""
    right, down = float(by[0]), float(by[1])
    return replace(layer, poses=tuple(replace(pose, x=pose.x + right, y=pose.y + down) for pose in layer.poses))


def _camera(frames: int, rng: np.random.Generator) -> np.ndarray:
    """At rest, panning slowly or held by hand, a third each: T x 2 pixels to the right and down."""
    kind, part_T = int(rng.integers(3)), np.linspace(-0.5, 0.5, frames)
    across, down = rng.uniform(-0.7, 0.7) * MARGIN_X, rng.uniform(-0.4, 0.4) * MARGIN_Y
    if kind == 0:
        return np.tile((across, down), (frames, 1))
    if kind == 1:
        pan_px = rng.uniform(14, 36) * rng.choice([-1, 1])
        return np.stack([pan_px * part_T, np.full(frames, down)], axis=1)
    t_T = np.arange(frames)[:, None]
    periods, phases = rng.uniform(28, 70, (2, 2)), rng.uniform(0, 6.3, (2, 2))
    held_T2 = sum(rng.uniform(0.6, 1.6) * np.sin(2 * np.pi * t_T / periods[i] + phases[i]) for i in range(2))
    return np.asarray(held_T2 + np.array([0.6 * across, 0.6 * down]))
