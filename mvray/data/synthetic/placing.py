"""Where a balloon may stand: candidate boxes, scored all at once.

Legend: N candidates, M other boxes, 4: left, top, right, bottom.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mvray.data.synthetic.annotations import HEIGHT, WIDTH, Rect

MOST_FACE = 0.22
"""The largest share of a face that words may hide."""
MOST_OUTSIDE = 0.3
"""The largest share of a balloon that may stand out of its panel."""


def overlaps(boxes_N4: np.ndarray, others: Sequence[Rect]) -> np.ndarray:
    """Pixels that each box has in common with each of the others: N x M."""
    others_M4 = np.array(others, float).reshape(-1, 4)
    low_NM2 = np.maximum(boxes_N4[:, None, :2], others_M4[None, :, :2])
    high_NM2 = np.minimum(boxes_N4[:, None, 2:], others_M4[None, :, 2:])
    return np.asarray(np.clip(high_NM2 - low_NM2, 0, None).prod(axis=-1))


def hidden(boxes_N4: np.ndarray, others: Sequence[Rect]) -> np.ndarray:
    """The largest share of one of the others that each box hides: N."""
    areas_M = np.array([max(1.0, (x1 - x0) * (y1 - y0)) for x0, y0, x1, y1 in others])
    return np.asarray((overlaps(boxes_N4, others) / areas_M).max(axis=1, initial=0.0))


def best_place(
    size: tuple[float, float],
    frame: Rect,
    head: Rect,
    bodies: Sequence[Rect],
    faces: Sequence[Rect],
    taken: Sequence[Rect],
    rng: np.random.Generator,
) -> Rect | None:
    """The best box of this width and height for what ``head`` says in the panel ``frame``.

    It stays on the page, touches nothing ``taken`` and leaves ``faces`` free; None where it cannot.
    """
    (w, h), (x0, y0, x1, y1) = size, frame
    size_2 = np.array(size)
    shares_N2 = np.stack(np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 5)), -1).reshape(-1, 2)
    corners_N2 = (x0 - 12, y0 - 10) + shares_N2 * (x1 - x0 - w + 24, y1 - y0 - h + 20)
    corners_N2 = corners_N2 + rng.uniform(-6, 6, shares_N2.shape)
    boxes_N4 = np.concatenate([corners_N2, corners_N2 + size_2], axis=1)
    left = 0.0 if (x0 + x1) / 2 < WIDTH / 2 else WIDTH / 2
    page = (left + 6, 6.0, left + WIDTH / 2 - 6, HEIGHT - 6.0)
    hidden_N = hidden(boxes_N4, faces)
    outside_N = 1 - overlaps(boxes_N4, [frame])[:, 0] / (w * h)
    fits_N = (hidden_N <= MOST_FACE) & (outside_N <= MOST_OUTSIDE)
    fits_N &= overlaps(boxes_N4, [page])[:, 0] > 0.999 * w * h
    fits_N &= ~overlaps(boxes_N4, taken).any(axis=1)
    if not fits_N.any():
        return None
    cost_N = 4 * hidden_N + 3 * outside_N + overlaps(boxes_N4, bodies).sum(axis=1) / (w * h) + 0.5 * shares_N2[:, 1]
    cost_N += _tail_cost(corners_N2 + size_2 / 2, head, faces) + rng.uniform(0, 0.25, len(cost_N))
    x, y = corners_N2[np.argmin(np.where(fits_N, cost_N, np.inf))]
    return (float(x), float(y), float(x + w), float(y + h))


def _tail_cost(middles_N2: np.ndarray, head: Rect, faces: Sequence[Rect]) -> np.ndarray:
    """A tail should be short and cross nobody else's face: N."""
    target = np.array([(head[0] + head[2]) / 2, (head[1] + head[3]) / 2])
    ways_N2 = target - middles_N2
    crossed_N = np.zeros(len(middles_N2), bool)
    for t in (0.3, 0.45, 0.6, 0.75, 0.9):
        points_N2 = middles_N2 + t * ways_N2
        specks_N4 = np.concatenate([points_N2, points_N2 + 1], axis=1)
        crossed_N |= overlaps(specks_N4, [face for face in faces if face != head]).any(axis=1)
    return np.asarray(np.hypot(*ways_N2.T) / 600 + 2.0 * crossed_N)
