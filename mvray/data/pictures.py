"""Pictures as samples: decode, crop, mirror, resize. Shapes: C channels, H x W pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mvray.data.colour import jittered
from mvray.data.dataset import SampleDataset
from mvray.data.decoding import Unreadable, pixels_of
from mvray.data.geometry import PADDING, View, cut_view
from mvray.data.readers.base import PictureSource
from mvray.experiment import CLASSES, IGNORE, IMAGE, PAD

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from mvray.data.columns import ColumnReader
    from mvray.experiment import Pictures, Source


class PictureDataset(SampleDataset):
    """``image`` is C x H x W uint8 of ``pictures``' size; maps are H x W float32 in 0..1.

    Targets come through the same view: images as C x H x W uint8, classes as H x W uint8 (nearest; IGNORE where
    there is padding), maps as H x W float32.
    """

    def __init__(
        self,
        source: Source,
        rows: pa.Table,
        pictures: Pictures,
        columns: Mapping[str, ColumnReader] | None = None,
        **how: Any,
    ) -> None:
        super().__init__(rows, columns, **how)
        self._source, self._pictures = source, pictures

    @property
    def size(self) -> tuple[int, int]:
        return self._pictures.height, self._pictures.width

    def sample(self, row: int, key: int) -> tuple[dict[str, np.ndarray], View]:
        pictures, location, part = self._pictures, self._locations[row], self._parts[row]
        grey = pictures.channels == 1
        drawn = key if self._train else None
        if pictures.fit == PAD:  # where to cut depends on the picture's own size
            read_HWC = self._source.read(location, part)
            view = View.padded(pictures, (read_HWC.shape[0], read_HWC.shape[1]), drawn)
        else:
            view = View() if drawn is None else View.random(pictures, drawn)
            if isinstance(self._source, PictureSource) and not self._targets:
                high, wide = pictures.height / (view.y1 - view.y0), pictures.width / (view.x1 - view.x0)
                read_HWC = self._source.read_sized(location, part, math.ceil(high), math.ceil(wide), grey=grey)
            else:
                read_HWC = self._source.read(location, part)
        image_CHW = self._cut(read_HWC, view)
        if self._train and any(pictures.jitter):
            image_CHW = jittered(image_CHW, pictures.jitter, key)
        targets = {name: self._target(name, row, read_HWC.shape[:2], view) for name in self._targets}
        return {"image": image_CHW, **targets}, view

    def _cut(self, read_HWC: np.ndarray, view: View) -> np.ndarray:
        """The part ``view`` of a picture, C x H x W."""
        height, width, channels = self._pictures.height, self._pictures.width, self._pictures.channels
        if channels == 1 and read_HWC.shape[2] == 3:
            read_HWC = pixels_of(Image.fromarray(read_HWC).convert("L"))
        if read_HWC.shape[2] == 1:
            read_HWC = cut_view(read_HWC[..., 0], height, width, view, padding=PADDING[1])[..., None]
        else:
            read_HWC = cut_view(read_HWC, height, width, view, padding=PADDING)
        return np.ascontiguousarray(np.broadcast_to(read_HWC.transpose(2, 0, 1), (channels, height, width)))

    def _target(self, name: str, row: int, size: tuple[int, int], view: View) -> np.ndarray:
        """The target ``name`` of a picture of ``size`` (height, width), in the same part."""
        location, kind = self._targets[name][row], self._source.targets[name]
        try:
            target = self._source.read_target(location, name)
        except Unreadable as error:
            raise Unreadable(f"its {name} {location} {error.reason}") from error
        if target.shape[:2] != size:
            raise Unreadable(
                f"its {name} is {target.shape[1]} x {target.shape[0]} pixels, the picture {size[1]} x {size[0]}"
            )
        if kind == IMAGE:
            return self._cut(target, view)
        height, width = self._pictures.height, self._pictures.width
        if kind == CLASSES:
            nearest = Image.Resampling.NEAREST
            return np.ascontiguousarray(cut_view(target, height, width, view, nearest, padding=IGNORE))
        return np.ascontiguousarray(cut_view(target, height, width, view))
