"""What a trained method predicts for every sample: its `Method.predict` as columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
import torch

from mvray.errors import SettingError
from mvray.experiment import NOT_IDENTITY, Batch, Generator, GeneratorConfig, Read, Train
from mvray.generators.columns import as_lists, as_table
from mvray.nn import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Config(GeneratorConfig):
    """Predictions of the method that ``of`` trained; it uses generated columns where the data has them."""

    kind: ClassVar[str] = "predictions"
    of: Train
    batch_size: int = field(default=32, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SettingError(f"generator.batch_size is {self.batch_size}; expected at least 1.")

    @property
    def looks_through(self) -> Train | None:
        return self.of

    @property
    def samples_per_batch(self) -> int:
        return self.batch_size

    @property
    def needs(self) -> tuple[str, ...]:
        return self.of.method.predict_uses

    def build(self, method: Method | None, read: Read) -> Generator:
        assert method is not None, "predictions are those of a trained method"
        return Predictions(method)


class Predictions(Generator):
    """Columns as ``predict`` names them: a number per sample as float32 or int64, anything larger as a
    fixed-size list of float16 with its shape in the field's metadata."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def __call__(self, batch: Batch) -> pa.Table:
        with torch.inference_mode():
            predicted = self._method.predict(batch)
        columns = {name: _column(values) for name, values in predicted.items()}
        return as_table(columns, predicted)


def _column(values: Tensor) -> pa.Array:
    if values.ndim == 1:
        return pa.array((values.float() if values.is_floating_point() else values.long()).cpu().numpy())
    return as_lists(values)
