"""Pictures as samples: decode, crop, mirror, resize. Shapes: C channels, H x W pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mvray.data.dataset import SampleDataset
from mvray.data.decoding import pixels_of
from mvray.data.geometry import View, cut_view
from mvray.data.readers.base import PictureSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from mvray.data.columns import ColumnReader
    from mvray.experiment import Pictures, Source


class PictureDataset(SampleDataset):
    """``image`` is C x H x W uint8, stretched to ``pictures``' size; maps are H x W float32 in 0..1."""

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
        view = View.random(self._pictures, key) if self._train else View()
        return {"image": self._image(row, view)}, view

    def _image(self, row: int, view: View) -> np.ndarray:
        height, width, channels = self._pictures.height, self._pictures.width, self._pictures.channels
        location, part = self._locations[row], self._parts[row]
        if isinstance(self._source, PictureSource):
            least = math.ceil(height / (view.y1 - view.y0)), math.ceil(width / (view.x1 - view.x0))
            read_HWC = self._source.read_sized(location, part, *least, grey=channels == 1)
        else:
            read_HWC = self._source.read(location, part)
        if channels == 1 and read_HWC.shape[2] == 3:
            read_HWC = pixels_of(Image.fromarray(read_HWC).convert("L"))
        if read_HWC.shape[2] == 1:
            read_HWC = cut_view(read_HWC[..., 0], height, width, view)[..., None]
        else:
            read_HWC = cut_view(read_HWC, height, width, view)
        return np.ascontiguousarray(np.broadcast_to(read_HWC.transpose(2, 0, 1), (channels, height, width)))
