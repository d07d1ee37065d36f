"""Clips of videos as samples: some frames, one crop for all. Shapes: T frames, H x W pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mvray.data.dataset import SampleDataset
from mvray.data.geometry import ClipView, View
from mvray.data.readers.base import VideoSource
from mvray.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from mvray.data.columns import ColumnReader
    from mvray.experiment import Clips, Source


class ClipDataset(SampleDataset):
    """``clip`` is 3 x T x H x W uint8 RGB: the frames, the scale and the place that `Clips` says."""

    kind = "videos"

    def __init__(
        self,
        source: Source,
        rows: pa.Table,
        clips: Clips,
        columns: Mapping[str, ColumnReader] | None = None,
        **how: Any,
    ) -> None:
        super().__init__(rows, columns, **how)
        if not isinstance(source, VideoSource):
            raise SettingError(
                f"{type(source).__name__} has pictures, not videos; expected a source of videos for clips. "
                "Name one with --set source=ucf101 or --set source=videos."
            )
        self._source, self._clips = source, clips

    @property
    def size(self) -> tuple[int, int]:
        return self._clips.height, self._clips.width

    def sample(self, row: int, key: int) -> tuple[dict[str, np.ndarray], View]:
        with self._source.open(self._locations[row]) as video:
            clip = ClipView.of(self._clips, video.count, video.height, video.width, key if self._train else None)
            frames_THWC = clip.cut(video.frames(clip.numbers, *clip.scaled_size))
        return {"clip": np.ascontiguousarray(frames_THWC.transpose(3, 0, 1, 2))}, clip.view
