"""Pictures of how samples were grouped: a bar for each work, and of one work a map and a sheet of its groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvray.data import dataset
from mvray.errors import DataError, SettingError
from mvray.experiment import Data, Groups
from mvray.metrics import LEFT_OUT, work_keys
from mvray.pipeline import Plan, Planned, samples_of
from mvray.reports import cluster_figures, figures

Scores = dict[str, float]
"""The AMI of each work."""


def draw(plan: Plan, sheet: Groups, seed: int) -> dict[str, bytes]:
    """PNG by artifact path, for each split of ``sheet.data``; nothing while a step of ``sheet.rows`` is not finished.

    The work on the maps is the one in the middle by its mean score over the rows: neither the best nor
    the worst. Raises SettingError where a row has no clustering metric of that name.
    """
    rows = {title: plan.of(measure, seed) for title, measure in sheet.rows}
    if not all(planned.finished for planned in rows.values()):
        return {}
    tables = {title: _grouped_samples(planned, sheet) for title, planned in rows.items()}
    drawn: dict[str, bytes] = {}
    for split in sorted({split_name for table in tables.values() for split_name in table["split"].to_pylist()}):
        of_split = {title: table.filter(pc.equal(table["split"], split)) for title, table in tables.items()}
        drawn |= _split(plan, sheet, rows, of_split, split, seed)
    return drawn


def _split(
    plan: Plan, sheet: Groups, rows: Mapping[str, Planned], tables: Mapping[str, pa.Table], split: str, seed: int
) -> dict[str, bytes]:
    name = f"{split}/{sheet.metric}_ami"
    scores = {title: _scores(planned, tables[title], name) for title, planned in rows.items()}
    means = {title: planned.metrics()[name] for title, planned in rows.items() if scores[title]}
    path, about = f"groups/{_file(sheet.title)}-{split}", f"{plan.job.name}: {sheet.title}, {split}"
    bars = cluster_figures.work_bars(scores, means, f"{about}: AMI of each work, seed {seed}", "AMI")
    drawn = {f"{path}-works-seed{seed}.png": bars}
    work = _middle(list(scores.values()))
    for title, planned in rows.items():
        if work in scores[title]:
            one = tables[title].filter(pc.equal(tables[title]["group"], work))
            caption = f"{about}: {title}, {work or 'all'}, AMI {scores[title][work]:.3f}, seed {seed}"
            pictures = _pictures(planned, sheet, one, caption)
            drawn |= {f"{path}-{_file(title)}-{kind}-seed{seed}.png": png for kind, png in pictures.items()}
    return drawn


def _grouped_samples(planned: Planned, sheet: Groups) -> pa.Table:
    """The metric's columns for each sample that it grouped."""
    table, column = samples_of(planned.folder), f"{sheet.metric}_group"
    if table is None or column not in table.column_names:
        columns = table.column_names if table is not None else []
        known = [name.removesuffix("_group") for name in columns if name.endswith("_group")]
        raise SettingError(
            f"The sheet {sheet.title!r} shows the clustering metric {sheet.metric!r}, which the step "
            f"{planned.name!r} does not have. Expected the name of a Clusters of its metrics"
            f"{': ' + ', '.join(known) if known else '; it has none'}."
        )
    kept = pc.and_(pc.is_valid(table[column]), pc.not_equal(table[column], LEFT_OUT))
    if sheet.data.splits:
        kept = pc.and_(kept, pc.is_in(table["split"], pa.array(sheet.data.splits)))
    return table.filter(kept)


def _scores(planned: Planned, table: pa.Table, name: str) -> Scores:
    metrics = planned.metrics()
    return {work: metrics[f"{name}/{key}"] for work, key in work_keys(set(table["group"].to_pylist())).items()}


def _middle(scores: Sequence[Scores]) -> str:
    """The work whose mean over the rows is in the middle."""
    works = {work for of_row in scores for work in of_row}
    mean = {work: float(np.mean([of_row[work] for of_row in scores if work in of_row])) for work in works}
    return sorted(works, key=lambda work: (mean[work], work))[len(works) // 2]


def _pictures(planned: Planned, sheet: Groups, table: pa.Table, caption: str) -> dict[str, bytes]:
    """The map, where the metric made one, and the sheet of groups; without faces, where none can be read any more."""
    label_N, group_N = table["label"].to_numpy(), table[f"{sheet.metric}_group"].to_numpy()
    names, lines = planned.index.names, cluster_figures.lines(table["label"].to_numpy(), group_N, planned.index.names)
    places_N2 = None
    on_map: list[int] = []
    if f"{sheet.metric}_map" in table.column_names:
        places_N2 = np.array(table[f"{sheet.metric}_map"].to_pylist(), np.float32)
        on_map = cluster_figures.on_map(places_N2, group_N)
    rows = sorted({*on_map, *(row for line in lines for row in line.rows)})
    faces = _faces(sheet.data, planned.index.rows, rows, table["key"].to_pylist())
    drawn: dict[str, bytes] = {}
    if places_N2 is not None:
        shown = {row: faces[row] for row in on_map if row in faces}
        drawn["map"] = cluster_figures.group_map(places_N2, label_N, group_N, names, shown, caption)
    if faces:
        total = len(np.unique(group_N[group_N >= 0]))
        part = sum(not line.words.startswith("noise") for line in lines)
        some = "" if part == total else f", {part} of {total} groups"
        drawn["sheet"] = cluster_figures.group_lines(lines, faces, caption + some)
    return drawn


def _faces(data: Data, index: pa.Table, rows: Sequence[int], keys: Sequence[str]) -> dict[int, np.ndarray]:
    """The pictures of ``rows``, H x W x 3 uint8, by row; those that cannot be read any more are left out."""
    at = pc.index_in(pa.array([keys[row] for row in rows], pa.string()), index["key"].combine_chunks())
    samples = dataset(data, index.take(at))
    faces: dict[int, np.ndarray] = {}
    for number, row in enumerate(rows):
        try:
            sample = samples[number, 0]
        except DataError:
            return {}  # not one can be read
        if sample["bad"] < 0:
            faces[row] = _picture(sample)
    return faces


def _picture(sample: Mapping[str, np.ndarray]) -> np.ndarray:
    """A sample as people see it; of a clip, the frame in its middle."""
    picture_CHW = sample["image"] if "image" in sample else sample["clip"][:, sample["clip"].shape[1] // 2]
    return figures.rgb(picture_CHW)


def _file(name: str) -> str:
    return re.sub(r"[^\w+.]+", "-", name)
