"""A class for each place of every sample, as a trained step sees it: what is tested, and what a weak step trains on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch

from mvray.data import as_png, classes_field
from mvray.errors import SettingError
from mvray.experiment import IGNORE, LABELS, NOT_IDENTITY, Batch, Generator, GeneratorConfig, Read, Train
from mvray.nn import Method


@dataclass(frozen=True)
class Config(GeneratorConfig):
    """The likeliest class of each place, by the method that ``of`` trained, as the column ``name``.

    ``limited``: among the picture's own labels and the background (class 0). Places whose class has a probability below
    ``least`` are 255, which training leaves out.
    """

    kind: ClassVar[str] = "label_maps"
    of: Train
    name: str = "label_map"
    limited: bool = False
    least: float = 0.0
    batch_size: int = field(default=16, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SettingError(f"generator.batch_size is {self.batch_size}; expected at least 1.")
        if not 0 <= self.least <= 1:
            raise SettingError(f"generator.least is {self.least}; expected 0 to 1.")

    @property
    def looks_through(self) -> Train | None:
        return self.of

    @property
    def samples_per_batch(self) -> int:
        return self.batch_size

    @property
    def needs(self) -> tuple[str, ...]:
        return (LABELS,) if self.limited else ()

    def build(self, method: Method | None, read: Read) -> Generator:
        assert method is not None, "label maps are those of a trained method"
        return LabelMaps(self, method)


class LabelMaps(Generator):
    """Columns: the class map as a PNG file, and ``confidence``, the mean of the likeliest class's probability."""

    def __init__(self, config: Config, method: Method) -> None:
        self._config, self._method = config, method

    def __call__(self, batch: Batch) -> pa.Table:
        with torch.inference_mode():
            probabilities_BKHW = self._method.class_maps(batch["image"])
            if self._config.limited:
                allowed_BK = batch[LABELS].clone()
                allowed_BK[:, 0] = 1
                probabilities_BKHW = probabilities_BKHW * allowed_BK[:, :, None, None]
                probabilities_BKHW = probabilities_BKHW / probabilities_BKHW.sum(1, keepdim=True).clamp_min(1e-12)
            best_BHW, classes_BHW = probabilities_BKHW.max(1)
            classes_BHW = classes_BHW.masked_fill(best_BHW < self._config.least, IGNORE)
        maps = classes_BHW.to(torch.uint8).cpu().numpy()
        confidence = best_BHW.float().mean((1, 2)).cpu().numpy().astype(np.float32)
        schema = pa.schema([classes_field(self._config.name), pa.field("confidence", pa.float32())])
        return pa.table([pa.array([as_png(map_HW) for map_HW in maps]), pa.array(confidence)], schema=schema)
