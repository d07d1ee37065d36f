"""What a method shows of a few validation samples, the same ones after each epoch, in the step's folder."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

import numpy as np
from torch.nn import functional

from mvray.storage import Storage

if TYPE_CHECKING:
    from torch import Tensor

    from mvray.nn import Method
    from mvray.training.samples import Samples
    from mvray.training.task import Task

MOST_EPOCHS, LONGEST_PX = 50, 256
"""Of so many epochs at most there are pictures, of this size at most: they are kept and sent to MLflow."""
NAMES = "names"


def keep(task: Task, epoch: int, samples: Samples, method: Method) -> None:
    """Write what ``method`` shows after ``epoch``, where it shows something. What cannot be written is left out."""
    every = -(-task.epochs // MOST_EPOCHS)
    if epoch % every and epoch + 1 < task.epochs:
        return
    names, shown = samples.pictures(method)
    if shown:
        file = io.BytesIO()
        arrays = {name: _small(pictures).cpu().numpy() for name, pictures in shown.items()}
        np.savez_compressed(file, **{**arrays, NAMES: np.array(names)})  # type: ignore[arg-type]
        Storage(task.folder).try_write(_path(epoch), file.getvalue())


def read(folder: Storage, epoch: int) -> tuple[list[str], dict[str, np.ndarray]]:
    """The samples' locations, and what `Method.pictures` returned of them by name; nothing where nothing was kept.

    Raises DataError where the file is damaged.
    """
    if not folder.exists(_path(epoch)):
        return [], {}
    try:
        with np.load(io.BytesIO(folder.read(_path(epoch)))) as file:
            arrays = dict(file)
        return arrays.pop(NAMES).tolist(), arrays
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise folder.damaged(_path(epoch), str(error)) from error


def _path(epoch: int) -> str:
    return f"pictures/{epoch:06d}.npz"


def _small(pictures: Tensor) -> Tensor:
    """Pictures (B x C x H x W uint8) or classes (B x H x W uint8), made smaller where they are large."""
    height, width = pictures.shape[-2:]
    share = min(1.0, LONGEST_PX / max(height, width))
    if share == 1:
        return pictures
    size, is_map = (max(1, round(height * share)), max(1, round(width * share))), pictures.ndim == 3
    large = pictures[:, None] if is_map else pictures
    small = functional.interpolate(large.float(), size, mode="nearest-exact" if is_map else "area")
    return (small[:, 0] if is_map else small).round().to(pictures.dtype)
