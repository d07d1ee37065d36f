"""A sheet of what a method in training shows of the same validation samples after each epoch."""

from __future__ import annotations

from pathlib import PurePath

import numpy as np

from mvray.experiment import IGNORE
from mvray.pipeline import Planned
from mvray.reports import class_maps, figures
from mvray.training import pictures

PICTURE = "picture"


def draw(planned: Planned, epoch: int) -> bytes | None:
    """The sheet as PNG, a row for each sample; None where the step kept no pictures of ``epoch``.

    Classes are drawn in their colours over the picture, with a legend. Raises DataError where the file is damaged.
    """
    locations, shown = pictures.read(planned.folder, epoch)
    if not shown:
        return None
    rows = [[_drawn(shown, name, nth) for name in shown] for nth in range(len(locations))]
    names = [PurePath(location).name for location in locations]
    title = f"{planned.name}, seed {planned.seed}, after epoch {epoch + 1}"
    maps = [values for values in shown.values() if values.ndim == 3]
    if not maps:
        return figures.sheet(rows, list(shown), names, title)
    seen = sorted({int(number) for values in maps for number in np.unique(values)} - {IGNORE})
    return class_maps.with_legend(figures.grid(rows, list(shown), names, title), planned.index.names, seen)


def _drawn(shown: dict[str, np.ndarray], name: str, nth: int) -> np.ndarray:
    values = shown[name][nth]
    if values.ndim == 3:
        return figures.rgb(values)
    over = figures.rgb(shown[PICTURE][nth]) if PICTURE in shown else np.full((*values.shape, 3), 255, np.uint8)
    return class_maps.painted_on_grey(over, values)
