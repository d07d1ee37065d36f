"""Sheets of pictures for people: the same samples under each variant, with the attention drawn over them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvray.data import dataset
from mvray.errors import DataError
from mvray.experiment import Data, Sheet
from mvray.pipeline import Plan, columns_of, rows_of
from mvray.reports import figures


def draw(plan: Plan, sheet: Sheet, seed: int) -> dict[str, bytes]:
    """The sheet as PNG by artifact path: a row per sample; page, each variant's attention, and what was hidden.

    Nothing while a step that it shows is not finished.
    """
    shown = [(title, plan.of(step, seed)) for title, step in sheet.maps]
    if not all(planned.finished for _, planned in shown):
        return {}
    index = shown[0][1].index
    rows = chosen(rows_of(index, sheet.data.splits), sheet.samples)
    columns = [columns_of(planned.folder) for _, planned in shown]
    titles = ["page", *(title for title, _ in shown)]
    if sheet.masked is not None:
        titles.insert(2, "hidden there")
    lines: list[list[np.ndarray]] = []
    names: list[str] = []
    for row in rows:
        found = [_of(table, row["key"]) for table in columns]
        page = _page(sheet.data, row, index.rows)
        if page is None or any(each is None for each in found):
            continue
        over = [figures.overlay(page, each["map"]) for each in found if each is not None]
        line = [page, *over]
        if sheet.masked is not None and found[0] is not None:
            line.insert(2, _hidden(page, found[0]["map"], sheet))
        lines.append(line)
        names.append(_caption(row, found, index.names))
    if not lines:
        return {}
    content = figures.sheet(lines, titles, names, f"{plan.job.name}: {sheet.title}, seed {seed}")
    return {f"sheets/{sheet.title.replace(' ', '-')}-seed{seed}.png": content}


def chosen(rows: pa.Table, samples: int) -> list[dict[str, Any]]:
    """``samples`` rows, the same for any variant and seed, one of each class first."""
    order = sorted(rows.to_pylist(), key=lambda row: hashlib.sha256(row["key"].encode()).digest())
    seen: set[int] = set()
    firsts = [row for row in order if not (row["label"] in seen or seen.add(row["label"]))]  # type: ignore[func-returns-value]
    keys = {row["key"] for row in firsts}
    return (firsts + [row for row in order if row["key"] not in keys])[:samples]


def _of(table: pa.Table, key: str) -> dict[str, Any] | None:
    at = pc.index(table["key"], key).as_py()
    if at < 0:
        return None
    shape = [int(n) for n in table.schema.field("map").metadata[b"shape"].split(b",")]
    values = np.array(table["map"][at].as_py(), np.float32).reshape(shape)
    return {"map": values, "predicted": table["predicted"][at].as_py()}


def _page(data: Data, row: dict[str, Any], rows: pa.Table) -> np.ndarray | None:
    """The sample as the network gets it, H x W x 3 uint8; None where it cannot be read any more."""
    only = rows.filter(pc.equal(rows["key"], row["key"]))
    try:
        page_CHW = dataset(data, only)[0, 0]["image"]
    except DataError:
        return None
    return np.ascontiguousarray(np.broadcast_to(page_CHW, (3, *page_CHW.shape[1:])).transpose(1, 2, 0))


def _hidden(page_HWC: np.ndarray, map_HW: np.ndarray, sheet: Sheet) -> np.ndarray:
    import torch

    assert sheet.masked is not None
    config: Any = sheet.masked.method
    batch = {
        "image": torch.from_numpy(page_HWC.transpose(2, 0, 1).copy())[None],
        "map": torch.from_numpy(map_HW)[None],
        "draw": torch.zeros(1, dtype=torch.int64),
    }
    hidden: np.ndarray = config.hidden(batch)[0].numpy()
    return hidden.transpose(1, 2, 0)


def _caption(row: dict[str, Any], found: list[dict[str, Any] | None], classes: tuple[str, ...]) -> str:
    marks = "".join("✓" if each and each["predicted"] == row["label"] else "✗" for each in found)
    return f"{row['key']}\n{marks}"
