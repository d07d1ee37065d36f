"""How well class maps agree with the truth, in numbers for each sample: counts of pixels, and boundaries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from mvray.errors import SettingError
from mvray.experiment import IGNORE, NOT_IDENTITY, Batch, Generator, GeneratorConfig, Read
from mvray.metrics import counts_of
from mvray.nn import Method

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Config(GeneratorConfig):
    """``made`` (a generated column) against ``truth`` (a target of the source), for ``classes`` classes.

    ``trimap``: how far from a true boundary a pixel may be to count for trimap IoU (Kohli et al. 2009);
    ``boundary``: how far a boundary may be off for the boundary F (Csurka et al. 2013). Both in pixels.
    """

    kind: ClassVar[str] = "map_scores"
    classes: int
    made: str = "label_map"
    truth: str = "mask"
    trimap: float = 5.0
    boundary: float = 2.0
    batch_size: int = field(default=32, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        for name in ("classes", "trimap", "boundary", "batch_size"):
            if getattr(self, name) <= 0:
                raise SettingError(f"generator.{name} is {getattr(self, name)}; expected a value above 0.")

    @property
    def samples_per_batch(self) -> int:
        return self.batch_size

    @property
    def uses_gpu(self) -> bool:
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        return self.made, self.truth

    def build(self, method: Method | None, read: Read) -> Generator:
        return MapScores(self)


class MapScores(Generator):
    """Columns: ``counts`` and ``trimap`` (K x (K + 1) int32 each, see metrics/segmentation.py), and ``boundary_f`` (NaN
    where the truth has no boundary)."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def __call__(self, batch: Batch) -> pa.Table:
        config, size = self._config, self._config.classes * (self._config.classes + 1)
        counts, trimaps, boundaries = [], [], []
        for made_HW, truth_HW in zip(batch[config.made].cpu().numpy(), batch[config.truth].cpu().numpy(), strict=True):
            counts.append(counts_of(truth_HW, made_HW, config.classes))
            near_HW = distance_to(edges(filled(truth_HW))) <= config.trimap
            trimaps.append(counts_of(np.where(near_HW, truth_HW, IGNORE), made_HW, config.classes))
            boundaries.append(boundary_f(truth_HW, made_HW, config.boundary))
        return pa.table(
            {
                "counts": _lists(counts, size),
                "trimap": _lists(trimaps, size),
                "boundary_f": pa.array(np.array(boundaries, np.float32)),
            }
        )


def filled(classes_HW: np.ndarray) -> np.ndarray:
    """The map with places of 255 given to the nearest class: of a boundary that is a band of 255, the middle."""
    from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]

    unknown_HW = classes_HW == IGNORE
    if unknown_HW.all() or not unknown_HW.any():
        return classes_HW
    rows, columns = distance_transform_edt(unknown_HW, return_distances=False, return_indices=True)
    filled_HW: np.ndarray = classes_HW[rows, columns]
    return filled_HW


def edges(classes_HW: np.ndarray) -> np.ndarray:
    """Where a pixel's right or lower neighbour is of another class."""
    edges_HW = np.zeros(classes_HW.shape, bool)
    edges_HW[:-1] |= classes_HW[1:] != classes_HW[:-1]
    edges_HW[:, :-1] |= classes_HW[:, 1:] != classes_HW[:, :-1]
    return edges_HW


def distance_to(marked_HW: np.ndarray) -> np.ndarray:
    """The distance of each pixel to the nearest marked one, in pixels; infinite where none is."""
    from scipy.ndimage import distance_transform_edt

    if not marked_HW.any():
        return np.full(marked_HW.shape, np.inf)
    distance_HW: np.ndarray = distance_transform_edt(~marked_HW)
    return distance_HW


def boundary_f(truth_HW: np.ndarray, made_HW: np.ndarray, tolerance: float) -> float:
    """The F-score of boundaries that lie within ``tolerance`` pixels of one another, the mean over the true classes.

    Of each class, background too, as Csurka et al. 2013 have it; 255 is given to the nearest class (`filled`).
    """
    counted = truth_HW != IGNORE
    near_HW, whole_HW, scores = distance_to(counted) <= tolerance, filled(truth_HW), []
    for class_ in np.unique(truth_HW[counted]):
        true = _outline(whole_HW == class_) & near_HW
        made = _outline(made_HW == class_) & near_HW
        if not true.any():
            continue
        recall = float((distance_to(made)[true] <= tolerance).mean())
        precision = float((distance_to(true)[made] <= tolerance).mean()) if made.any() else 0.0
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return float(np.mean(scores)) if scores else float("nan")


def _outline(inside_HW: np.ndarray) -> np.ndarray:
    """The pixels of a region that have a neighbour outside; the picture's border is no outline."""
    padded = np.pad(inside_HW, 1, mode="edge")
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    outline_HW: np.ndarray = inside_HW & ~surrounded
    return outline_HW


def _lists(counts: Sequence[np.ndarray], size: int) -> pa.FixedSizeListArray:
    flat = np.concatenate([matrix.reshape(-1) for matrix in counts]).astype(np.int32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), size)
