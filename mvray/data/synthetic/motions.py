"""Twelve ways to move, each the same for every figure: one per class of `mvray sample actions`.

Legend: T frames. Lengths are in heights of the figure, x to the right, y down, angles clockwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Take:
    """What a motion may know: the time of each of T frames, and the figure's shape and room.

    ``aspect`` is the figure's width, ``room`` how far its middle may go sideways, ``side`` 1 or -1: as drawn
    (most artists let a figure look to the left) or mirrored.
    """

    seconds: np.ndarray
    aspect: float
    room: float
    side: int


@dataclass(frozen=True)
class Poses:
    """A figure in each frame, T values each: where its middle is, its angle, its size as a factor, and ``face``,
    the factor of its width (negative: mirrored)."""

    x: np.ndarray
    y: np.ndarray
    angle_deg: np.ndarray
    size: np.ndarray
    face: np.ndarray


Number = float | np.ndarray
Motion = Callable[[Take, np.random.Generator], Poses]


def _poses(
    take: Take, x: Number = 0.0, y: Number = 0.0, angle_deg: Number = 0.0, size: Number = 1.0, face: Number = 1.0
) -> Poses:
    return Poses(*(np.broadcast_to(part, take.seconds.shape) for part in (x, y, angle_deg, size, face * take.side)))


def _turns(take: Take, rng: np.random.Generator, fastest_s: float, slowest_s: float) -> np.ndarray:
    """How many periods have gone by, from a random phase on."""
    return np.asarray(take.seconds / rng.uniform(fastest_s, slowest_s) + rng.random())


def _sine(turns_T: np.ndarray) -> np.ndarray:
    return np.asarray(np.sin(2 * np.pi * turns_T))


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _about(x: float, y: float, angle_deg_T: np.ndarray) -> dict[str, np.ndarray]:
    """Where the middle goes when the figure turns about the point (x, y)."""
    turn_T = np.deg2rad(angle_deg_T)
    cos_T, sin_T = np.cos(turn_T), np.sin(turn_T)
    return {"x": x - x * cos_T + y * sin_T, "y": y - x * sin_T - y * cos_T, "angle_deg": angle_deg_T}


def _across(take: Take, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Through the room at an even speed, back from its ends: place, and heading (1 is right)."""
    frame = take.room + take.aspect
    gone_T = rng.uniform(0.3, 0.5) * frame * take.seconds / take.room + rng.uniform(0, 2)
    way_T = np.mod(gone_T, 2)
    return take.room * (np.abs(way_T - 1) - 0.5), np.where(way_T < 1, -1.0, 1.0)


def _arc(turns_T: np.ndarray, ground: float) -> np.ndarray:
    """Height of a jump, 0 to 1: parabolas, with ``ground`` of the time spent standing."""
    part_T = np.clip((np.mod(turns_T, 1) - ground) / (1 - ground), 0, 1)
    return np.asarray(4 * part_T * (1 - part_T))


def _eased(part_T: np.ndarray) -> np.ndarray:
    part_T = np.clip(part_T, 0, 1)
    return np.asarray(part_T * part_T * (3 - 2 * part_T))


def _walk(take: Take, rng: np.random.Generator) -> Poses:
    """Goes through the picture, bobbing with each step."""
    x_T, heading_T = _across(take, rng)
    steps_T = _turns(take, rng, 0.36, 0.5)
    bob_T = -rng.uniform(0.04, 0.08) * np.abs(np.sin(np.pi * steps_T))
    return _poses(take, x_T, bob_T, 3.5 * _sine(steps_T / 2), face=-heading_T * take.side)


def _jump(take: Take, rng: np.random.Generator) -> Poses:
    """Up and down in place."""
    return _poses(take, y=-rng.uniform(0.35, 0.65) * _arc(_turns(take, rng, 0.65, 0.95), ground=0.15))


def _spin(take: Take, rng: np.random.Generator) -> Poses:
    """Turns about its middle like a wheel."""
    return _poses(take, angle_deg=_sign(rng) * 360 * _turns(take, rng, 1.0, 1.8))


def _wave(take: Take, rng: np.random.Generator) -> Poses:
    """Rocks from side to side on its base."""
    angle_deg_T = rng.uniform(18, 32) * _sine(_turns(take, rng, 0.8, 1.3))
    return _poses(take, **_about(0, 0.5, angle_deg_T))


def _fall(take: Take, rng: np.random.Generator) -> Poses:
    """Topples over its lower corner, hits the ground, lies, gets up again."""
    part_T = np.mod(_turns(take, rng, 1.6, 2.3), 1)
    down_T = 90 * np.clip((part_T - 0.12) / 0.25, 0, 1) ** 2
    bounce_T = 9 * np.sin(np.pi * np.clip((part_T - 0.37) / 0.12, 0, 1))
    up_T = 90 * _eased((part_T - 0.65) / 0.35)
    side = _sign(rng)
    return _poses(take, **_about(side * take.aspect / 2, 0.5, side * (down_T - bounce_T - up_T)))


def _approach(take: Take, rng: np.random.Generator) -> Poses:
    """Comes nearer: larger from frame to frame, its foot sinking in the picture."""
    last_s = max(float(take.seconds[-1]), 1e-9)
    size_T = rng.uniform(2.2, 3.0) ** (take.seconds / last_s - 0.5)
    return _poses(take, rng.uniform(-0.15, 0.15) * (1 - size_T), 0.35 * (size_T - 1), size=size_T)


def _shake(take: Take, rng: np.random.Generator) -> Poses:
    """Trembles fast where it is."""
    turns_T = _turns(take, rng, 0.3, 0.42)
    wobble_T = 3 * _sine(turns_T * 1.37)
    return _poses(take, rng.uniform(0.06, 0.1) * _sine(turns_T), angle_deg=wobble_T)


def _swing(take: Take, rng: np.random.Generator) -> Poses:
    """A pendulum that hangs from above the picture."""
    angle_deg_T = rng.uniform(22, 36) * _sine(_turns(take, rng, 1.1, 1.7))
    return _poses(take, **_about(0, -rng.uniform(1.0, 1.4), angle_deg_T))


def _hop(take: Take, rng: np.random.Generator) -> Poses:
    """Jumps its way through the picture."""
    x_T, heading_T = _across(take, rng)
    arc_T = _arc(_turns(take, rng, 0.5, 0.7), ground=0.1)
    return _poses(take, x_T, -rng.uniform(0.25, 0.45) * arc_T, face=-heading_T * take.side)


def _roll(take: Take, rng: np.random.Generator) -> Poses:
    """Goes through the picture turning over and over."""
    x_T, _ = _across(take, rng)
    return _poses(take, x_T, angle_deg=rng.uniform(1.3, 1.8) * 360 / np.pi * x_T)


def _circle(take: Take, rng: np.random.Generator) -> Poses:
    """Floats round in a circle, upright."""
    turns_T, radius = _sign(rng) * _turns(take, rng, 1.1, 1.8), rng.uniform(0.3, 0.45)
    return _poses(take, radius * _sine(turns_T), 0.7 * radius * _sine(turns_T + 0.25))


def _turn(take: Take, rng: np.random.Generator) -> Poses:
    """Turns about its upright axis, like a picture of paper: narrow, mirrored, narrow, as before."""
    width_T = _sine(_turns(take, rng, 1.2, 2.0))
    return _poses(take, face=np.where(width_T < 0, -1, 1) * np.maximum(np.abs(width_T), 0.06))


MOTIONS: dict[str, Motion] = {
    "Walk": _walk,
    "Jump": _jump,
    "Spin": _spin,
    "Wave": _wave,
    "Fall": _fall,
    "Approach": _approach,
    "Shake": _shake,
    "Swing": _swing,
    "Hop": _hop,
    "Roll": _roll,
    "Circle": _circle,
    "Turn": _turn,
}
"""Class names and their motions. A sample of fewer classes has the first of them."""
