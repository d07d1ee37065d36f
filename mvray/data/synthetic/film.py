"""Film a scene: layers before a backdrop under a moving camera, frame by frame with exact masks.

Legend: T frames, N layers, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mvray.data.synthetic.sprites import OPAQUE, Pose, Sprite, over, warp

WIDTH, HEIGHT = 160, 120
MARGIN_X, MARGIN_Y = 28, 14
"""How far the camera may look beyond the picture's edges, in pixels."""


@dataclass(frozen=True)
class Layer:
    """A sprite and its poses in the scene, one per frame, in pixels of the frame when the camera is at rest.

    ``category`` is the kind of thing, ``drawing`` the art that it shows ("artist/name").
    """

    category: str
    drawing: str
    sprite: Sprite
    poses: tuple[Pose, ...]


@dataclass(frozen=True)
class Film:
    """What is filmed: ``backdrop`` is RGB, WIDTH + 2 MARGIN_X by HEIGHT + 2 MARGIN_Y; ``layers`` lie before
    it, the last in front; ``camera`` (T x 2) is how far the camera looks to the right and down."""

    backdrop: Image.Image
    layers: tuple[Layer, ...]
    camera: np.ndarray


def shoot(film: Film) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each frame, H x W x 3 uint8, and what is visible of each layer in it, N x H x W bool.

    A pixel belongs to the front layer that covers half of it or more, so masks never overlap.
    """
    still = _ground(film, 0) if np.ptp(film.camera, axis=0).max() == 0 else None
    for t, (right, down) in enumerate(film.camera):
        frame_HW3 = (_ground(film, t) if still is None else still).copy()
        masks_NHW = np.zeros((len(film.layers), HEIGHT, WIDTH), bool)
        for n, layer in enumerate(film.layers):
            pose = layer.poses[t]
            on_screen = Pose(pose.x - right, pose.y - down, pose.angle_deg, pose.scale, pose.face)
            layer_drawn = warp(layer.sprite, on_screen, (WIDTH, HEIGHT))
            if layer_drawn is not None:
                where, rgba_hw4 = layer_drawn
                frame_HW3[where] = over(rgba_hw4, frame_HW3[where])
                covered_hw = rgba_hw4[..., 3] >= OPAQUE
                masks_NHW[:n, where[0], where[1]] &= ~covered_hw
                masks_NHW[n, where[0], where[1]] = covered_hw
        yield frame_HW3, masks_NHW


def _ground(film: Film, t: int) -> np.ndarray:
    """The backdrop as the camera sees it."""
    right, down = film.camera[t]
    back = (1.0, 0.0, MARGIN_X + float(right), 0.0, 1.0, MARGIN_Y + float(down))
    return np.asarray(film.backdrop.transform((WIDTH, HEIGHT), Image.Transform.AFFINE, back, Image.Resampling.BICUBIC))
