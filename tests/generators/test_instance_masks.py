"""The instance mask generator: the columns that it writes, and the way back to masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mvray.data import rle
from mvray.errors import SettingError
from mvray.experiment.contracts import Frame, Instances, Read, Segmenter, SegmenterConfig
from mvray.generators import instance_masks
from mvray.generators.segmenters import files
from mvray.nn.method import Method

LAYERS = ((40, 1.0), (90, 0.6), (140, 0.05), (200, 0.02))


class Brightness(Segmenter):
    """Finds what is brighter than each of four levels; the more, the surer."""

    classes = ("grey", "bright", "very bright", "white")

    def __call__(self, frames: Sequence[Frame]) -> list[Instances]:
        return [self._one(torch.tensor(frame.pixels).float().mean(2)) for frame in frames]

    def _one(self, light_HW: torch.Tensor) -> Instances:
        masks = torch.stack([light_HW > level for level, _ in LAYERS])
        kept = masks.any(2).any(1)
        boxes = torch.stack([_box(mask) for mask in masks])
        scores = torch.tensor([score for _, score in LAYERS])
        return Instances(masks[kept], torch.arange(4)[kept], scores[kept], boxes[kept])


def _box(mask_HW: torch.Tensor) -> torch.Tensor:
    where = mask_HW.nonzero()
    if not len(where):
        return torch.zeros(4)
    return torch.tensor([*where.min(0).values.flip(0), *(where.max(0).values + 1).flip(0)], dtype=torch.float32)


class Settings(SegmenterConfig):
    def build(self, method: Method | None, read: Read) -> Segmenter:
        return Brightness()


def frames() -> list[Frame]:
    """Three pictures of different sizes, one of them black."""
    draw = np.random.default_rng(0)
    sizes = ((24, 32), (50, 20), (33, 33))
    made = [draw.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3)) for height, width in sizes]
    made[1][:] = 0
    return [
        Frame(f"{at}.avi", at, pixels.repeat(4, 0).repeat(4, 1)[:height, :width].astype(np.uint8))
        for at, (pixels, (height, width)) in enumerate(zip(made, sizes, strict=True))
    ]


def made(**settings: object) -> instance_masks.InstanceMasks:
    config = instance_masks.Config(segmenter=Settings(), **settings)  # type: ignore[arg-type]
    generator = config.build(None, Path.read_bytes)
    assert isinstance(generator, instance_masks.InstanceMasks)
    return generator


def test_a_row_for_each_frame() -> None:
    table = made()(frames())
    assert table["height"].to_pylist() == [24, 50, 33]
    assert table["width"].to_pylist() == [32, 20, 33]
    assert table["masks"].to_pylist()[1] == []
    assert json.loads(table.schema.field("masks").metadata[b"classes"]) == list(Brightness.classes)
    for row, frame in zip(table.to_pylist(), frames(), strict=True):
        [expected] = Brightness()([frame])
        kept = expected.scores >= 0.05
        assert [each["label"] for each in row["masks"]] == expected.labels[kept].tolist()
        assert [each["score"] for each in row["masks"]] == expected.scores[kept].tolist()
        assert [each["box"] for each in row["masks"]] == expected.boxes[kept].tolist()
        masks_NHW = rle.decode([each["rle"] for each in row["masks"]], row["height"], row["width"])
        assert np.array_equal(masks_NHW, expected.masks[kept].numpy())


def test_what_is_stored_at_all() -> None:
    assert [len(row) for row in made(least_score=0.0)(frames())["masks"].to_pylist()] == [4, 0, 4]
    assert [len(row) for row in made(least_score=0.6)(frames())["masks"].to_pylist()] == [2, 0, 2]


def test_survives_parquet(tmp_path: Path) -> None:
    table = made()(frames())
    pq.write_table(pa.concat_tables([table, made()(frames()[1:2]), made()([])]), tmp_path / "00000.parquet")
    read = pq.read_table(tmp_path / "00000.parquet")
    assert read.schema.equals(table.schema, check_metadata=True)
    assert read[:3].equals(table)
    assert len(read) == 4


def test_one_schema_for_any_batch() -> None:
    schemas = [made()(batch).schema for batch in (frames(), frames()[1:2], [])]
    assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)


def test_a_frame_takes_a_few_hundred_bytes() -> None:
    light_HW = np.hypot(*(np.mgrid[:240, :320] - np.array([120, 160])[:, None, None])) < 70
    frame = Frame("a.avi", 0, (light_HW[:, :, None] * np.full(3, 255)).astype(np.uint8))
    table = made()([frame] * 10)
    assert table.nbytes / 10 < 1500  # three masks of 140 columns each


def test_settings() -> None:
    config = instance_masks.Config(segmenter=files.Config(path="masks.json"), every=4, batch_size=3)
    assert config.reads == ("masks.json",)
    assert config.looks_through is None
    assert config.frame_step == 4
    generator = made(every=4, batch_size=3)
    assert (generator.every, generator.batch_size) == (4, 3)
    with pytest.raises(SettingError, match=r"generator.every is 0"):
        instance_masks.Config(segmenter=Settings(), every=0)
    with pytest.raises(SettingError, match=r"generator.least_score is 2; expected a value from 0 to 1"):
        instance_masks.Config(segmenter=Settings(), least_score=2)
