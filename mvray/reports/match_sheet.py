"""Sheets of matches for people: examples, each with the pictures nearest to it, and how a threshold does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from mvray.data import dataset
from mvray.errors import DataError
from mvray.experiment import Clips, Data, Matches
from mvray.metrics import retrieval
from mvray.pipeline import Plan, Planned, columns_of, rows_of
from mvray.reports import figures
from mvray.reports.attention import representative
from mvray.reports.figures import FAINT, INK, LINES, PAD_PX, TEXT_PX, TITLE_PX, WIDTH_PX

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAME, OTHER = "#1a9850", "#d73027"
CHOSEN_ON = "validation"
"""The split whose best threshold is shown, as in retrieval.Retrieval."""
NEAREST = 9
CELL_PX, FRAME_PX, GAP_PX = 114, 5, 12
_POINTS = 800


@dataclass(frozen=True)
class _Match:
    """A picture (H x W x 3), how far it is from the example, and whether it shows the same; None: not known."""

    picture: np.ndarray
    distance: float
    same: bool | None


@dataclass(frozen=True)
class _Line:
    """An example with its nearest, nearest first."""

    caption: str
    picture: np.ndarray
    matches: Sequence[_Match]


def draw(plan: Plan, sheet: Matches, seed: int) -> dict[str, bytes]:
    """The sheet and the curves as PNG by artifact path. Nothing while the embeddings are not finished.

    Examples are chosen by their keys alone, one of each class first, from those that have another picture
    of their class. The threshold is that with the best F1 on the validation split as far as there are
    embeddings of it, otherwise on the sheet's own samples.
    """
    embeddings = plan.of(sheet.embeddings, seed)
    if not embeddings.finished:
        return {}
    tables = {split: _with_vectors(embeddings, (split,), sheet.column) for split in (CHOSEN_ON, *sheet.data.splits)}
    pairs = {
        split: retrieval.search(*retrieval.columns(t, sheet.column)).pairs for split, t in tables.items() if len(t)
    }
    pairs = {split: of_split for split, of_split in pairs.items() if of_split.same[-1]}
    table = _with_vectors(embeddings, sheet.data.splits, sheet.column)
    if not pairs or not len(table):
        return {}
    threshold = pairs[next(iter(pairs))].best_threshold()
    name, title = sheet.title.replace(" ", "-"), f"{plan.job.name}: {sheet.title}, seed {seed}"
    drawn = {f"matches/{name}-curves-seed{seed}.png": _curves(pairs, threshold, title)}
    if lines := _lines(sheet, table, embeddings.index.names):
        drawn[f"matches/{name}-seed{seed}.png"] = _sheet(lines, threshold, title)
    return drawn


def _with_vectors(embeddings: Planned, splits: tuple[str, ...], column: str) -> pa.Table:
    """The index rows of these splits that have vectors, with them."""
    columns, rows = columns_of(embeddings.folder), rows_of(embeddings.index, splits)
    at = pc.index_in(rows["key"], columns["key"])
    return rows.filter(at.is_valid()).append_column(column, columns[column].take(at.drop_null()))


def _lines(sheet: Matches, table: pa.Table, names: tuple[str, ...]) -> list[_Line]:
    vectors_NE, label_N = retrieval.columns(table, sheet.column)
    unit_NE = retrieval.unit_length(vectors_NE)
    counts = {label: int((label_N == label).sum()) for label in set(label_N.tolist()) if label >= 0}
    several = np.array([counts.get(label, 0) > 1 for label in label_N.tolist()])
    examples = table.filter(pa.array(several)) if several.any() else table
    place = {key: row for row, key in enumerate(table["key"].to_pylist())}
    lines = []
    for example in representative(examples.drop_columns([sheet.column]), sheet.samples):
        row, label = place[example["key"]], example["label"]
        picture = _picture(sheet.data, table, row)
        distance_N = np.sqrt(np.clip(2 - 2 * unit_NE @ unit_NE[row], 0, None))
        distance_N[row] = np.inf
        near = np.argsort(distance_N, kind="stable")[: min(NEAREST, len(table) - 1)]
        same = [None if label < 0 or label_N[other] < 0 else bool(label_N[other] == label) for other in near]
        shown = [(_picture(sheet.data, table, other), float(distance_N[other])) for other in near]
        matches = [
            _Match(picture_HWC, far, is_same)
            for (picture_HWC, far), is_same in zip(shown, same, strict=True)
            if picture_HWC is not None
        ]
        if picture is not None:
            lines.append(_Line(_caption(example, names, counts.get(label, 1) - 1), picture, matches))
    return lines


def _caption(example: Mapping[str, Any], names: tuple[str, ...], others: int) -> str:
    name = names[example["label"]] if example["label"] >= 0 else "not labelled"
    return f"{name}\n{example['split']}\n{others} other{'s' * (others != 1)}"


def _picture(data: Data, table: pa.Table, row: int) -> np.ndarray | None:
    """What the network gets, in the size of a cell; None where it cannot be read any more."""
    assert not isinstance(data.pictures, Clips), "matches are pictures"
    height, width = data.pictures.height, data.pictures.width
    larger = CELL_PX / max(height, width)
    pictures = replace(data.pictures, height=max(1, round(larger * height)), width=max(1, round(larger * width)))
    try:
        picture_CHW = dataset(replace(data, pictures=pictures, columns=()), table.slice(row, 1))[0, 0]["image"]
    except DataError:
        return None
    return figures.rgb(picture_CHW)


# -- the sheet -----------------------------------------------------------------------------------


def _sheet(lines: Sequence[_Line], threshold: float, title: str) -> bytes:
    top, height = 3 * PAD_PX + TITLE_PX + TEXT_PX + PAD_PX, CELL_PX + TEXT_PX + 2 * PAD_PX
    step = CELL_PX + GAP_PX
    matches_x = WIDTH_PX - PAD_PX - NEAREST * step
    example_x = matches_x - step - 2 * PAD_PX
    whole = Image.new("RGB", (WIDTH_PX, top + len(lines) * height), "white")
    pen = ImageDraw.Draw(whole)
    pen.text((PAD_PX, PAD_PX), title, INK, figures.load_font(TITLE_PX))
    _legend(pen, 2 * PAD_PX + TITLE_PX, threshold)
    font = figures.load_font(TEXT_PX - 5)
    for i, line in enumerate(lines):
        y = top + i * height
        caption = "\n".join(figures.fit_width(text, font, example_x - 2 * PAD_PX) for text in line.caption.splitlines())
        pen.multiline_text((PAD_PX, y + CELL_PX // 2), caption, INK, font, anchor="lm", spacing=8)
        _paste_framed(whole, pen, line.picture, (example_x, y), INK)
        for k, match in enumerate(line.matches):
            x = matches_x + k * step
            colour = FAINT if match.same is None else SAME if match.same else OTHER
            _paste_framed(whole, pen, match.picture, (x, y), colour)
            pen.text((x + CELL_PX // 2, y + CELL_PX + 4), f"{match.distance:.2f}", INK, font, anchor="ma")
        within = sum(match.distance <= threshold for match in line.matches)
        bar_x = matches_x + within * step - GAP_PX // 2
        if within < NEAREST:
            pen.line((bar_x, y - 6, bar_x, y + CELL_PX + TEXT_PX), INK, 4)
    return figures.picture_png(whole)


def _paste_framed(
    whole: Any, pen: ImageDraw.ImageDraw, picture: np.ndarray, corner: tuple[int, int], colour: str
) -> None:
    x, y = corner
    inner = CELL_PX - 2 * FRAME_PX
    fitted = Image.fromarray(picture)
    fitted.thumbnail((inner, inner), Image.Resampling.LANCZOS)
    pen.rectangle((x, y, x + CELL_PX - 1, y + CELL_PX - 1), "white", colour, FRAME_PX)
    whole.paste(fitted, (x + (CELL_PX - fitted.width) // 2, y + (CELL_PX - fitted.height) // 2))


def _legend(pen: ImageDraw.ImageDraw, y: int, threshold: float) -> None:
    font = figures.load_font(TEXT_PX - 3)
    x = float(PAD_PX)
    for colour, text in ((INK, "example"), (SAME, "the same"), (OTHER, "another")):
        pen.rectangle((x, y + 3, x + 18, y + 21), "white", colour, 4)
        pen.text((x + 26, y), text, INK, font)
        x += 26 + font.getlength(text) + 2 * PAD_PX
    pen.line((x + 2, y, x + 2, y + 24), INK, 4)
    pen.text((x + 14, y), f"threshold {threshold:.3f}: what is left of it counts as the same", INK, font)


# -- the curves ----------------------------------------------------------------------------------


def _curves(pairs: Mapping[str, retrieval.Pairs], threshold: float, title: str) -> bytes:
    """The ROC curve of each split, and its F1, precision and recall over the threshold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_PX / figures.DPI, 720 / figures.DPI), dpi=figures.DPI, layout="constrained")
    figure.suptitle(figures.plain_text(title), x=0.01, ha="left", fontsize=13, color=INK)
    left, right = figure.subplots(1, 2)
    for k, (split, of_split) in enumerate(pairs.items()):
        _curves_of(left, right, split, of_split, threshold, LINES[k % len(LINES)])
    left.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    left.set_xlabel("share of the pairs of different characters within it")
    left.set_ylabel("share of the pairs of the same within it")
    left.legend(frameon=False, loc="lower right", title="ROC, dots at the threshold")
    right.axvline(threshold, color=INK, linewidth=1.5)
    right.plot([], [], ":", color=INK, linewidth=1, label="precision")
    right.plot([], [], "--", color=INK, linewidth=1, label="recall")
    right.set_xlabel(f"distance, 0 to 2; the line is the threshold, {threshold:.3f}")
    right.legend(frameon=False, title="F1 at the threshold")
    for axes in (left, right):
        axes.set_ylim(0, 1.02)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figures.figure_png(figure)


def _curves_of(left: Axes, right: Axes, split: str, pairs: retrieval.Pairs, threshold: float, colour: str) -> None:
    total = pairs.same + pairs.different
    first, last = np.searchsorted(total, [1, total[-1]])
    shown = np.unique(np.linspace(first, last, _POINTS).astype(int))
    at = int(np.searchsorted(retrieval.THRESHOLDS_T, threshold))
    if pairs.different[-1]:
        label = f"{split}, area {pairs.roc_auc():.3f}"
        left.plot(pairs.false[shown], pairs.recall[shown], color=colour, linewidth=2, label=label)
        left.plot(pairs.false[at], pairs.recall[at], "o", color=colour)
    distances = retrieval.THRESHOLDS_T[shown]
    right.plot(distances, pairs.f1[shown], color=colour, linewidth=2.5, label=f"{split} {pairs.f1[at]:.3f}")
    right.plot(distances, pairs.precision[shown], ":", color=colour, linewidth=1)
    right.plot(distances, pairs.recall[shown], "--", color=colour, linewidth=1)
