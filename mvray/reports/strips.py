"""Clips for people: the same videos under each variant, attention drawn over their frames, still and moving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvray.data import dataset
from mvray.errors import DataError
from mvray.experiment import Sheet
from mvray.pipeline import Plan, columns_of, rows_of
from mvray.reports import figures
from mvray.reports.attention_sheet import chosen

STRIP_FRAMES = 8
MOST_ENTROPY_BITS = float(np.log2(10))


@dataclass(frozen=True)
class _Shown:
    """A clip (T x H x W x 3), the same with each variant's attention over it, and a caption."""

    frames: np.ndarray
    overlays: list[np.ndarray]
    caption: str


def draw(plan: Plan, sheet: Sheet, seed: int) -> dict[str, bytes]:
    """Strips (PNG), an animation (GIF) and the entropies' histogram (PNG) by artifact path.

    Nothing while a step that the sheet shows is not finished.
    """
    steps = {title: plan.of(step, seed) for title, step in sheet.maps}
    if not all(planned.finished for planned in steps.values()):
        return {}
    tables = {title: columns_of(planned.folder) for title, planned in steps.items()}
    index = next(iter(steps.values())).index
    shown = [
        clip
        for row in chosen(rows_of(index, sheet.data.splits), sheet.samples)
        if (clip := _shown(sheet, row, index.rows, tables, index.names)) is not None
    ]
    name, title = sheet.title.replace(" ", "-"), f"{plan.job.name}: {sheet.title}, seed {seed}"
    found = _pictures(shown, list(tables), f"{name}-seed{seed}", title) if shown else {}
    entropies = {
        title: table["attention_entropy_bits"].to_numpy()
        for title, table in tables.items()
        if "attention_entropy_bits" in table.column_names
    }
    if entropies:
        found[f"histograms/attention-entropy-{name}-seed{seed}.png"] = figures.histograms(
            entropies, title, "attention entropy, bits (less is sharper)", (0.0, MOST_ENTROPY_BITS)
        )
    return found


def _pictures(shown: list[_Shown], titles: list[str], name: str, title: str) -> dict[str, bytes]:
    count = len(shown[0].frames)
    at = np.unique(np.linspace(0, count - 1, min(count, STRIP_FRAMES)).round().astype(int))
    rows = [[frames[t] for t in at] for clip in shown for frames in (clip.frames, *clip.overlays)]
    names = [f"{clip.caption}\n{what}" if what == "clip" else what for clip in shown for what in ("clip", *titles)]
    moments = [[[clip.frames[t], *(over[t] for over in clip.overlays)] for clip in shown] for t in range(count)]
    return {
        f"strips/{name}.png": figures.sheet(rows, [f"frame {t}" for t in at], names, title),
        f"animations/{name}.gif": figures.animation(
            moments, ["clip", *titles], [clip.caption for clip in shown], title
        ),
    }


def _shown(
    sheet: Sheet, row: dict[str, Any], rows: pa.Table, tables: dict[str, pa.Table], classes: tuple[str, ...]
) -> _Shown | None:
    """None where the video cannot be read any more, or a variant has nothing for it."""
    at = {title: pc.index(table["key"], row["key"]).as_py() for title, table in tables.items()}
    if min(at.values()) < 0:
        return None
    try:
        sample = dataset(sheet.data, rows.filter(pc.equal(rows["key"], row["key"])))[0, 0]
    except DataError:
        return None
    frames_THWC = np.ascontiguousarray(sample["clip"].transpose(1, 2, 3, 0))
    overlays = [_overlaid(frames_THWC, table, at[title]) for title, table in tables.items()]
    right = [table["predicted"][at[title]].as_py() == row["label"] for title, table in tables.items()]
    marks = "".join("✓" if each else "✗" for each in right)
    return _Shown(frames_THWC, overlays, f"{classes[row['label']]} {marks}")


def _overlaid(frames_THWC: np.ndarray, table: pa.Table, at: int) -> np.ndarray:
    """Each frame's attention over it."""
    field = table.schema.field("attention")
    shape = [int(side) for side in field.metadata[b"shape"].split(b",")]
    return figures.attended(frames_THWC, np.array(table["attention"][at].as_py(), np.float32).reshape(shape))
