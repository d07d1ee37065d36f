"""Pictures of class maps: beside the truth, the best and the worst of them, confusion, and a bar for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from mvray.data import dataset, open_columns
from mvray.errors import DataError, SettingError
from mvray.experiment import IGNORE, ClassMaps, Generate
from mvray.generators import map_scores
from mvray.metrics import MeanIoU
from mvray.pipeline import Plan, Planned, columns_of, rows_of
from mvray.reports import class_maps, figures
from mvray.reports.attention import representative

if TYPE_CHECKING:
    from mvray.data import SampleDataset

A_LINE = 6
"""Pictures side by side; more go below."""


@dataclass(frozen=True)
class _Compared:
    """One row of the exhibit: its maps and the truth as samples, counts of pixels of each (N x K x (K + 1)), and the
    IoU of each picture and class."""

    samples: SampleDataset
    map_name: str
    truth_name: str
    counts: np.ndarray
    picture_iou: np.ndarray
    class_iou: Mapping[str, float]
    mean_iou: float


def draw(plan: Plan, sheet: ClassMaps, seed: int) -> dict[str, bytes]:
    """PNG by artifact path; none while a step that is shown is not finished.

    Best and worst are the samples by the mean over the rows of the picture's IoU. The confusion is that of the row with
    the best mean IoU. Raises SettingError where a row has no scores of class maps.
    """
    measured = {title: plan.of(measure, seed) for title, measure in sheet.rows}
    if not measured or not all(planned.finished for planned in measured.values()):
        return {}
    sources = {title: _scores_of(planned, sheet) for title, planned in measured.items()}
    tables = {title: columns_of(scores.folder) for title, scores in sources.items()}
    index = next(iter(sources.values())).index
    rows, classes = rows_of(index, sheet.data.splits), index.classes
    for table in tables.values():
        rows = rows.filter(pc.is_in(rows["key"], table["key"].combine_chunks()))
    if not len(rows):
        return {}
    compared = {title: _compared(sheet, sources[title], tables[title], rows, classes) for title in sources}
    iou_N = np.mean([row.picture_iou for row in compared.values()], axis=0)
    order = [int(row) for row in np.argsort(iou_N, kind="stable") if iou_N[row] == iou_N[row]]
    at = {key: row for row, key in enumerate(rows["key"].to_pylist())}
    pages = {
        "": [at[row["key"]] for row in representative(rows, sheet.samples)],
        "-worst": order[: sheet.samples],
        "-best": order[::-1][: sheet.samples],
    }
    path, about = f"class-maps/{sheet.title.replace(' ', '-')}", f"{plan.job.name}: {sheet.title}"
    drawn: dict[str, bytes] = {}
    for name, shown in pages.items():
        if png := _page(compared, rows, shown, classes, f"{about}{name.replace('-', ', ')}, seed {seed}"):
            drawn[f"{path}{name}-seed{seed}.png"] = png
    best = max(compared, key=lambda title: compared[title].mean_iou)
    title = f"{about}: {best}, mean IoU {compared[best].mean_iou:.1%}, seed {seed}"
    counts = compared[best].counts.sum(0)
    drawn[f"{path}-confusion-seed{seed}.png"] = figures.confusion_matrix(counts, classes, title, percent=True)
    bars = {title: [100 * row.class_iou.get(name, np.nan) for name in classes] for title, row in compared.items()}
    drawn[f"{path}-classes-seed{seed}.png"] = figures.class_bars(
        bars, classes, f"{about}: IoU of each class, seed {seed}", "IoU, %"
    )
    return drawn


def _scores_of(measured: Planned, sheet: ClassMaps) -> Planned:
    """The step that counted pixels for a Measure step."""
    for step in measured.data.columns:
        if isinstance(step.generator, map_scores.Config):
            return measured.inputs[step.name]
    raise SettingError(
        f"The sheet {sheet.title!r} shows class maps, of which the step {measured.name!r} reads no scores. Expected a "
        "Measure step whose data has the columns of a Generate step with map_scores."
    )


def _compared(
    sheet: ClassMaps, scores: Planned, table: pa.Table, rows: pa.Table, classes: tuple[str, ...]
) -> _Compared:
    assert isinstance(scores.step, Generate)
    config = scores.step.generator
    assert isinstance(config, map_scores.Config)
    uris = [scores.inputs[step.name].folder.uri for step in scores.data.columns]
    columns = open_columns(uris, (config.made,), scores.name, scores.data)
    samples = dataset(sheet.data, rows, columns, targets=(config.truth,))
    counts = table.take(pc.index_in(rows["key"], table["key"].combine_chunks()))
    numbers = MeanIoU()(counts, classes)
    size = (len(rows), len(classes), len(classes) + 1)
    return _Compared(
        samples,
        config.made,
        config.truth,
        np.asarray(counts["counts"].combine_chunks().flatten().to_numpy(), np.int64).reshape(size),
        np.asarray(numbers["picture_iou"]),
        {name: float(numbers[f"iou/{name}"]) for name in classes if f"iou/{name}" in numbers},
        float(numbers["mean_iou"]),
    )


def _page(
    compared: Mapping[str, _Compared], rows: pa.Table, shown: Sequence[int], classes: tuple[str, ...], title: str
) -> bytes | None:
    """Samples below one another: picture, truth, and each row's map with its IoU; None where none can be read."""
    blocks: list[Image.Image] = []
    seen: set[int] = set()
    for row in shown:
        try:
            samples = {name: one.samples[row, 0] for name, one in compared.items()}
        except DataError:
            return None  # not one can be read
        first, of_first = next(iter(samples.values())), next(iter(compared.values()))
        if any(sample["bad"] >= 0 for sample in samples.values()):
            continue
        own = of_first.samples.sample(row, 0)[1].inside(*of_first.samples.size)
        picture = np.ascontiguousarray(figures.rgb(first["image"])[own])
        maps = {"truth": first[of_first.truth_name][own]}
        maps |= {name: samples[name][one.map_name][own] for name, one in compared.items()}
        seen |= {int(number) for classes_HW in maps.values() for number in np.unique(classes_HW)}
        cells = [picture, *(class_maps.painted_on_grey(picture, classes_HW) for classes_HW in maps.values())]
        titles = ["picture", "truth", *(f"{name}\nIoU {one.picture_iou[row]:.0%}" for name, one in compared.items())]
        blocks += _lines(cells, titles, str(rows["location"][row].as_py()))
    if not blocks:
        return None
    return class_maps.with_legend(_stacked(blocks, title), classes, sorted(seen - {IGNORE}))


def _lines(cells: Sequence[np.ndarray], titles: Sequence[str], name: str) -> list[Image.Image]:
    lines = []
    for at in range(0, len(cells), A_LINE):
        part, names = list[np.ndarray | None](cells[at : at + A_LINE]), list(titles[at : at + A_LINE])
        missing = A_LINE - len(part) if at else 0
        part, names = part + [None] * missing, names + [""] * missing
        lines.append(figures.grid([part], names, [], "" if at else name))
    return lines


def _stacked(blocks: Sequence[Image.Image], title: str) -> Image.Image:
    font = figures.load_font(figures.TITLE_PX + 6)
    top = 3 * figures.PAD_PX + figures.TITLE_PX
    width = max(int(font.getlength(title)) + 2 * figures.PAD_PX, *(block.width for block in blocks))
    whole = Image.new("RGB", (width, top + sum(block.height for block in blocks)), "white")
    figures.write(whole, (figures.PAD_PX, figures.PAD_PX), title, font)
    for block in blocks:
        whole.paste(block, (0, top))
        top += block.height
    return whole
