"""Tensors as columns of a Generate step's output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def as_lists(values: Tensor) -> pa.FixedSizeListArray:
    """One fixed-size list of float16 per row, from B x ... of any shape."""
    rows: np.ndarray = values.flatten(1).to(torch.float16).cpu().numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def as_table(columns: Mapping[str, pa.Array], tensors: Mapping[str, Tensor]) -> pa.Table:
    """The columns as a table; where a tensor of the same name has more than two dimensions, those after the first
    stand in the field's metadata as ``shape``, "h,w"."""
    shapes = {name: ",".join(map(str, values.shape[1:])) for name, values in tensors.items() if values.ndim > 2}
    fields = [
        pa.field(name, column.type, metadata={"shape": shapes[name]} if name in shapes else None)
        for name, column in columns.items()
    ]
    return pa.table(dict(columns), schema=pa.schema(fields))
