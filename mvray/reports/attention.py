"""Sheets for people: the same samples under each variant, with the attention drawn over them.

Pictures are shown as a sheet; clips as strips of frames and as an animation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mvray.data import dataset
from mvray.errors import DataError
from mvray.experiment import Clips, Sheet
from mvray.pipeline import Plan, columns_of, rows_of
from mvray.reports import figures

STRIP_FRAMES = 8
MOST_ENTROPY_BITS = float(np.log2(10))


@dataclass(frozen=True)
class _Variant:
    """A variant's attention on one sample (H x W, of a clip T x H x W) and whether its prediction is right."""

    attention: np.ndarray
    right: bool


@dataclass(frozen=True)
class _Example:
    """A sample (H x W x 3 uint8, a clip T x H x W x 3), its row in the index, and each variant's result."""

    pixels: np.ndarray
    row: Mapping[str, Any]
    variants: Sequence[_Variant]

    @property
    def marks(self) -> str:
        return "".join("✓" if variant.right else "✗" for variant in self.variants)


def draw(plan: Plan, sheet: Sheet, seed: int) -> dict[str, bytes]:
    """The pictures of the sheet by artifact path; none while a step that it shows is not finished."""
    steps = {title: plan.of(step, seed) for title, step in sheet.maps}
    if not all(planned.finished for planned in steps.values()):
        return {}
    tables = {title: columns_of(planned.folder) for title, planned in steps.items()}
    index = next(iter(steps.values())).index
    rows = representative(rows_of(index, sheet.data.splits), sheet.samples)
    clips = isinstance(sheet.data.pictures, Clips)
    column = "attention" if clips else "map"
    read = _clip if clips else _picture
    examples = [
        example
        for row in rows
        if (example := _example(sheet, row, index.rows, list(tables.values()), column, read)) is not None
    ]
    name, title = f"{sheet.title.replace(' ', '-')}-seed{seed}", f"{plan.job.name}: {sheet.title}, seed {seed}"
    if clips:
        drawn = _strips(examples, list(tables), index.names, name, title) if examples else {}
        return drawn | _entropies(tables, name, title)
    return {f"sheets/{name}.png": _sheet(sheet, examples, list(tables), title)} if examples else {}


def representative(rows: pa.Table, samples: int) -> list[dict[str, Any]]:
    """``samples`` rows, the same for any variant and seed, one of each class first."""
    order = sorted(rows.to_pylist(), key=lambda row: hashlib.sha256(row["key"].encode()).digest())
    first_of_class: dict[int, dict[str, Any]] = {}
    for row in order:
        first_of_class.setdefault(row["label"], row)
    keys = {row["key"] for row in first_of_class.values()}
    return [*first_of_class.values(), *(row for row in order if row["key"] not in keys)][:samples]


def _example(
    sheet: Sheet,
    row: dict[str, Any],
    rows: pa.Table,
    tables: Sequence[pa.Table],
    column: str,
    read: Callable[[Mapping[str, np.ndarray]], np.ndarray],
) -> _Example | None:
    """None where the sample cannot be read any more, or a variant has nothing for it."""
    positions = [pc.index(table["key"], row["key"]).as_py() for table in tables]
    if min(positions) < 0:
        return None
    try:
        sample = dataset(sheet.data, rows.filter(pc.equal(rows["key"], row["key"])))[0, 0]
    except DataError:
        return None
    variants = []
    for table, position in zip(tables, positions, strict=True):
        shape = [int(side) for side in table.schema.field(column).metadata[b"shape"].split(b",")]
        attention = np.array(table[column][position].as_py(), np.float32).reshape(shape)
        variants.append(_Variant(attention, table["predicted"][position].as_py() == row["label"]))
    return _Example(read(sample), row, variants)


# -- pictures ------------------------------------------------------------------------------------


def _picture(sample: Mapping[str, np.ndarray]) -> np.ndarray:
    return figures.rgb(sample["image"])


def _sheet(sheet: Sheet, examples: Sequence[_Example], variants: Sequence[str], title: str) -> bytes:
    """A row per sample: the page, each variant's attention over it, and the page with its hidden part."""
    titles = ["page", *variants]
    lines = [
        [example.pixels, *(figures.overlay(example.pixels, variant.attention) for variant in example.variants)]
        for example in examples
    ]
    if sheet.masked is not None:
        titles.insert(2, "hidden there")
        for line, example in zip(lines, examples, strict=True):
            line.insert(2, _hidden(example.pixels, example.variants[0].attention, sheet))
    return figures.sheet(lines, titles, [f"{example.row['key']}\n{example.marks}" for example in examples], title)


def _hidden(page_HWC: np.ndarray, map_HW: np.ndarray, sheet: Sheet) -> np.ndarray:
    assert sheet.masked is not None
    config: Any = sheet.masked.method
    batch = {
        "image": torch.from_numpy(page_HWC.transpose(2, 0, 1).copy())[None],
        "map": torch.from_numpy(map_HW)[None],
        "draw": torch.zeros(1, dtype=torch.int64),
    }
    return figures.rgb(config.hidden(batch)[0].numpy())


# -- clips ---------------------------------------------------------------------------------------


def _clip(sample: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(sample["clip"].transpose(1, 2, 3, 0))


def _strips(
    examples: Sequence[_Example], variants: Sequence[str], classes: Sequence[str], name: str, title: str
) -> dict[str, bytes]:
    """Frames of each clip, and under them the same with each variant's attention: still (PNG) and moving (GIF)."""
    count = len(examples[0].pixels)
    shown = np.unique(np.linspace(0, count - 1, min(count, STRIP_FRAMES)).round().astype(int))
    captions = [f"{classes[example.row['label']]} {example.marks}" for example in examples]
    clips = [
        [
            example.pixels,
            *(figures.attention_overlays(example.pixels, variant.attention) for variant in example.variants),
        ]
        for example in examples
    ]
    strips = [[frames[t] for t in shown] for clip in clips for frames in clip]
    names = [line for caption in captions for line in (f"{caption}\nclip", *variants)]
    moments = [[[frames[t] for frames in clip] for clip in clips] for t in range(count)]
    return {
        f"strips/{name}.png": figures.sheet(strips, [f"frame {t}" for t in shown], names, title),
        f"animations/{name}.gif": figures.animation(moments, ["clip", *variants], captions, title),
    }


def _entropies(tables: Mapping[str, pa.Table], name: str, title: str) -> dict[str, bytes]:
    """The histogram of the attention's entropy under each variant that has one."""
    column = "attention_entropy_bits"
    entropies = {variant: table[column].to_numpy() for variant, table in tables.items() if column in table.column_names}
    if not entropies:
        return {}
    label = "attention entropy, bits (less is sharper)"
    return {
        f"histograms/attention-entropy-{name}.png": figures.histograms(
            entropies, title, label, (0.0, MOST_ENTROPY_BITS)
        )
    }
