"""What a trained method predicts for every sample: its `Method.predict` as columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
import torch

from mvray.experiment import NOT_IDENTITY, Batch, Generator, Read, Train
from mvray.generators.columns import as_lists, as_table
from mvray.generators.through import ThroughConfig
from mvray.nn import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Config(ThroughConfig):
    """Predictions of the method that ``of`` trained; it uses generated columns where the data has them."""

    kind: ClassVar[str] = "predictions"
    of: Train
    batch_size: int = field(default=32, metadata=NOT_IDENTITY)

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
