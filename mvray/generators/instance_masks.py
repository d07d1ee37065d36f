"""Instance masks of every k-th frame of videos, or of pictures, by a segmenter (mvray/generators/segmenters/)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from mvray.data import rle
from mvray.errors import SettingError
from mvray.experiment import (
    NOT_IDENTITY,
    Frame,
    FrameGenerator,
    GeneratorConfig,
    Instances,
    Read,
    Segmenter,
    SegmenterConfig,
    Train,
    check_above_0,
)
from mvray.nn import Method

if TYPE_CHECKING:
    from torch import Tensor

BOX = pa.list_(pa.field("element", pa.float32()), 4)
MASKS = pa.list_(
    pa.field(
        "element",  # as Parquet calls it, so that what is read is what was written
        pa.struct({"rle": pa.binary(), "label": pa.int16(), "score": pa.float32(), "box": BOX}),
    )
)


@dataclass(frozen=True)
class Config(GeneratorConfig):
    """Masks by ``segmenter``, of every ``every``-th frame; instances below ``least_score`` are not stored.

    Which of those that are stored count is a setting of the use (job.Masks). ``batch_size`` frames, of one
    or several videos, are looked at together.
    """

    kind: ClassVar[str] = "instance_masks"
    segmenter: SegmenterConfig
    every: int = 1
    least_score: float = 0.05
    batch_size: int = field(default=8, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        check_above_0(self, "generator", "every", "batch_size")
        if not 0 <= self.least_score <= 1:
            raise SettingError(f"generator.least_score is {self.least_score}; expected a value from 0 to 1.")

    @property
    def looks_through(self) -> Train | None:
        trained: Train | None = self.segmenter.looks_through
        return trained

    @property
    def frame_step(self) -> int | None:
        return self.every

    @property
    def reads(self) -> tuple[str, ...]:
        return self.segmenter.reads

    @property
    def uses_gpu(self) -> bool:
        return self.segmenter.uses_gpu

    def check(self) -> None:
        self.segmenter.check()

    def build(self, method: Method | None, read: Read) -> FrameGenerator:
        return InstanceMasks(self, self.segmenter.build(method, read))


class InstanceMasks(FrameGenerator):
    """Columns: ``height`` and ``width`` of the frame in pixels (int32), and ``masks``, a list of what was found,
    best score first.

    Each has ``rle`` (COCO's compressed run lengths of the frame's mask, see data/rle.py), ``label`` (int16),
    ``score`` (float32) and ``box`` (x0, y0, x1, y1 in pixels, float32). The names that labels count through
    are in the field's metadata: {b"classes": JSON list}.
    """

    def __init__(self, config: Config, segmenter: Segmenter) -> None:
        self.every, self.batch_size = config.every, config.batch_size
        self._least_score, self._segmenter = config.least_score, segmenter
        named = pa.field("masks", MASKS, metadata={"classes": json.dumps(list(segmenter.classes))})
        self._schema = pa.schema([pa.field("height", pa.int32()), pa.field("width", pa.int32()), named])

    def __call__(self, frames: Sequence[Frame]) -> pa.Table:
        instances = [self._above_least_score(of_frame) for of_frame in self._segmenter(frames)]
        heights, widths = np.array([frame.pixels.shape[:2] for frame in frames], np.int32).reshape(-1, 2).T
        return pa.table([pa.array(heights), pa.array(widths), _masks(instances)], schema=self._schema)

    def _above_least_score(self, instances: Instances) -> Instances:
        kept = instances.scores >= self._least_score
        return Instances(instances.masks[kept], instances.labels[kept], instances.scores[kept], instances.boxes[kept])


def _masks(frames: Sequence[Instances]) -> pa.ListArray:
    """One list for each frame, of all its instances; an empty one where nothing was found."""
    ends = np.cumsum([0, *(len(frame.scores) for frame in frames)]).astype(np.int32)
    counts = [counts_of_mask for frame in frames for counts_of_mask in rle.encode(frame.masks)]
    values = [
        pa.array(counts, pa.binary()),
        pa.array(_concatenate([frame.labels for frame in frames], np.int16)),
        pa.array(_concatenate([frame.scores for frame in frames], np.float32)),
        pa.FixedSizeListArray.from_arrays(
            pa.array(_concatenate([frame.boxes for frame in frames], np.float32)), type=BOX
        ),
    ]
    structs = pa.StructArray.from_arrays(values, fields=list(MASKS.value_type))
    return pa.ListArray.from_arrays(pa.array(ends), structs, type=MASKS)


def _concatenate(parts: Sequence[Tensor], kind: type) -> np.ndarray:
    """The values of all frames one after the other."""
    return np.concatenate([np.zeros(0, kind), *(part.cpu().numpy().astype(kind).reshape(-1) for part in parts)])
