"""How samples were grouped, as pictures: maps with faces on them, bars per work, and groups line by line.

Arrays in, PNG bytes out, as in figures.py. What is to be seen is chosen before anything is decoded:
`on_map` and `lines` say which samples, the caller fetches their pictures. Shapes: N samples.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from mvray.reports import figures
from mvray.reports.figures import DPI, FAINT, INK, LINES, WIDTH_PX

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mvray.reports.figures import Picture

COLOURS = (*LINES[:7], "#e07b39", "#9bbf30", "#d977b8", "#2b3a67", "#5ec8f2")
OTHERS, NOISE_COLOUR, WRONG = "#aeb6be", "#cfd4da", (209, 36, 47)
FACE = 0.075
"""Side of a face on the map, as a part of the map's side."""
ROWS_PER_PANEL = 7


# -- the map -------------------------------------------------------------------------------------


def on_map(places_N2: np.ndarray, group_N: np.ndarray, most: int = 32) -> list[int]:
    """Which samples show their face on the map: none over another, the middle of each group first, then more."""
    at_N2 = _in_square(places_N2)
    sizes = {int(group): int((group_N == group).sum()) for group in np.unique(group_N[group_N >= 0])}
    waiting = {}
    for group in sorted(sizes, key=lambda number: -sizes[number]):
        rows = np.flatnonzero(group_N == group)
        middle = np.median(at_N2[rows], axis=0)
        waiting[group] = rows[np.argsort(((at_N2[rows] - middle) ** 2).sum(1), kind="stable")].tolist()
    shown: list[int] = []
    while any(waiting.values()) and len(shown) < most:
        for rows in waiting.values():
            free = (row for row in rows if all(_apart(at_N2[row], at_N2[other]) for other in shown))
            row = next(free, None)
            rows[:] = [] if row is None else rows[rows.index(row) + 1 :]
            if row is not None and len(shown) < most:
                shown.append(row)
    return shown


def _apart(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() > 1.08 * FACE)


def _in_square(places_N2: np.ndarray) -> np.ndarray:
    """Places as parts of the map's side, with room for a face at its edge."""
    least, most = places_N2.min(0), places_N2.max(0)
    unit_N2 = np.where(most > least, (places_N2 - least) / np.where(most > least, most - least, 1), 0.5)
    placed: np.ndarray = FACE / 2 + 0.01 + (0.98 - FACE) * unit_N2
    return placed


def group_map(
    places_N2: np.ndarray,
    label_N: np.ndarray,
    group_N: np.ndarray,
    names: Sequence[str],
    faces: Mapping[int, Picture],
    title: str,
) -> bytes:
    """The samples of a work on a flat map, coloured by character and, beside it, by group (PNG).

    ``faces`` are the pictures of those samples that `on_map` named. Labels count through ``names``
    (-1: unknown); noise (-1) is grey. The twelve commonest characters are named.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_PX / DPI, 0.62 * WIDTH_PX / DPI), dpi=DPI, layout="constrained")
    figure.suptitle(figures.plain_text(title), x=0.01, ha="left", fontsize=13, color=INK)
    by_character, by_group = figure.subplots(1, 2)
    at_N2 = _in_square(places_N2)
    size = float(np.clip(6000 / max(1, len(at_N2)), 4, 26))
    _characters(by_character, at_N2, label_N, names, size)
    _groups(by_group, at_N2, group_N, faces, size)
    for axes in (by_character, by_group):
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[], box_aspect=1)
        axes.spines[:].set_color(FAINT)
    return figures.figure_png(figure)


def _characters(axes: Axes, at_N2: np.ndarray, label_N: np.ndarray, names: Sequence[str], size: float) -> None:
    known, counts = np.unique(label_N[label_N >= 0], return_counts=True)
    common = known[np.argsort(-counts, kind="stable")][: len(COLOURS)]
    rest_N = ~np.isin(label_N, common)
    if rest_N.any():
        others, unknown = len(known) - len(common), int((label_N < 0).sum())
        parts = [f"{others} others"] * bool(others) + [f"{unknown} unknown"] * bool(unknown)
        _dots(axes, at_N2[rest_N], size, OTHERS, ", ".join(parts))
    for colour, label in zip(COLOURS, common, strict=False):
        name = figures.plain_text(figures.shorten(names[label], 19))
        _dots(axes, at_N2[label_N == label], size, colour, name)
    axes.set_title(f"by character: {_count(len(known), 'character')}", loc="left", fontsize=11, color=INK)
    handles, texts = axes.get_legend_handles_labels()
    if rest_N.any():
        handles, texts = [*handles[1:], handles[0]], [*texts[1:], texts[0]]
    axes.legend(
        handles, texts, ncols=3, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.01),
        handletextpad=0.1, columnspacing=1.0, borderaxespad=0, scatterpoints=1,
    ).set_in_layout(True)  # fmt: skip
    for handle in axes.get_legend().legend_handles:  # type: ignore[union-attr]
        handle.set_sizes([36])  # type: ignore[union-attr]


def _groups(axes: Axes, at_N2: np.ndarray, group_N: np.ndarray, faces: Mapping[int, Picture], size: float) -> None:
    groups = np.unique(group_N[group_N >= 0])
    colours = dict(zip(groups.tolist(), _many(len(groups)), strict=True))
    noise_N = group_N < 0
    own = [colours[group] for group in group_N[~noise_N].tolist()]
    _dots(axes, at_N2[noise_N], size, NOISE_COLOUR)
    _dots(axes, at_N2[~noise_N], size, own)
    for row, face in faces.items():
        (x, y), half = at_N2[row], FACE / 2
        box = (x - half, x + half, y - half, y + half)
        axes.imshow(_square(face), extent=box, aspect="auto", zorder=3, interpolation="antialiased")
        colour = colours.get(int(group_N[row]), NOISE_COLOUR)
        axes.add_patch(_frame(box, colour))
    noise = f", {noise_N.mean():.0%} noise (grey)" if noise_N.any() else ", no noise"
    axes.set_title(f"by group: {_count(len(groups), 'group')}{noise}", loc="left", fontsize=11, color=INK)
    if faces:
        about = "Each face is drawn where it lies, in a frame of its group's colour."
        axes.text(0, -0.02, about, transform=axes.transAxes, va="top", fontsize=8, color=INK)


def _dots(axes: Axes, at_n2: np.ndarray, size: float, colour: str | list[str], label: str | None = None) -> None:
    axes.scatter(at_n2[:, 0], at_n2[:, 1], s=size, color=colour, linewidths=0, label=label)


def _frame(box: tuple[float, float, float, float], colour: str) -> Any:
    from matplotlib.patches import Rectangle

    corner, width, height = (box[0], box[2]), box[1] - box[0], box[3] - box[2]
    return Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=2, zorder=4)


def _many(count: int) -> list[str]:
    """As many colours as groups; neighbours in number differ most. Never grey, which is noise."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    colours = []
    for k in range(count):
        hue = k * 0.618034 % 1
        rgb = colorsys.hls_to_rgb(hue, (0.42, 0.58, 0.32)[k % 3], (0.75, 0.6)[k % 2])
        colours.append("#" + "".join(f"{round(255 * part):02x}" for part in rgb))
    return colours


def _square(picture: Picture, side_px: int = 96) -> Picture:
    """``picture`` whole on a white square."""
    image = ImageOps.contain(Image.fromarray(picture), (side_px, side_px), Image.Resampling.LANCZOS)
    whole = Image.new("RGB", (side_px, side_px), "white")
    whole.paste(image, ((side_px - image.width) // 2, (side_px - image.height) // 2))
    return np.asarray(whole)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# -- bars ----------------------------------------------------------------------------------------


def work_bars(values: Mapping[str, Mapping[str, float]], means: Mapping[str, float], title: str, y_label: str) -> bytes:
    """A bar for each work and row, and each row's mean at the right (the paper's figure 2), as PNG.

    ``values[row][work]``; a row may lack works. More than seven rows are drawn in panels below one another.
    """
    from matplotlib.figure import Figure

    rows = list(values)
    parts = [rows[first : first + ROWS_PER_PANEL] for first in range(0, len(rows), ROWS_PER_PANEL)] or [[]]
    works = sorted({work for row in rows for work in values[row]})
    figure = Figure(figsize=(WIDTH_PX / DPI, 4.6 * len(parts)), dpi=DPI, layout="constrained")
    figure.suptitle(figures.plain_text(title), x=0.01, ha="left", fontsize=13, color=INK)
    heights = [value for row in rows for value in (*values[row].values(), means.get(row, 0.0))]
    limits = (min([0.0, *heights]), 1.12 * max([0.05, *heights]))
    for axes, part in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True):
        _bars(axes, {row: values[row] for row in part}, means, works)
        axes.set_ylim(*limits)
        axes.set_ylabel(figures.plain_text(y_label))
    return figures.figure_png(figure)


def _bars(axes: Axes, values: Mapping[str, Mapping[str, float]], means: Mapping[str, float], works: list[str]) -> None:
    wide = 0.8 / max(1, len(values))
    factor = 2 if len(works) > 4 else 1  # room for its numbers
    mean_at, mean_wide = len(works) - 0.2 + factor / 2, factor * wide
    for k, (row, by_work) in enumerate(values.items()):
        aside = (k - (len(values) - 1) / 2) * wide
        at = [works.index(work) + aside for work in by_work]
        colour = LINES[k % len(LINES)]
        axes.bar(
            at, list(by_work.values()), 0.9 * wide, color=colour, label=figures.plain_text(figures.shorten(row, 40))
        )
        if row in means:
            middle = mean_at + factor * aside
            axes.bar(middle, means[row], 0.9 * mean_wide, color=colour, edgecolor=INK, linewidth=1.2)
            text = f"{means[row]:.3f}"
            axes.annotate(
                text, (middle, max(0.0, means[row])), (0, 3), textcoords="offset points", ha="center",
                fontsize=8, color=INK, rotation=90 if len(values) > 3 else 0,
            )  # fmt: skip
    axes.axvline(len(works) - 0.3, color=FAINT, linewidth=1)
    axes.axhline(0, color=INK, linewidth=0.8)
    names = [figures.plain_text(figures.shorten(work)) for work in works]
    leaning: dict[str, Any] = (
        {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, names)) > 70 else {}
    )
    axes.set_xticks([*range(len(works)), mean_at], [*names, "mean"], fontsize=9, **leaning)
    axes.get_xticklabels()[-1].set_fontweight("bold")
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, mean_at + factor / 2)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    if values:
        axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, fontsize=9)


# -- lines ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line of the contact sheet: its words, the samples to show, and those whose character is not the group's."""

    words: str
    rows: tuple[int, ...]
    strangers: frozenset[int] = frozenset()


def lines(
    label_N: np.ndarray, group_N: np.ndarray, names: Sequence[str], groups: int = 12, faces: int = 12
) -> list[Line]:
    """What a contact sheet shows: the largest groups, where there are many also the most mixed, then the noise.

    Of each, samples in proportion to its characters, the commonest first.
    """
    groups_there = np.unique(group_N[group_N >= 0]).tolist()
    members = {group: np.flatnonzero(group_N == group) for group in groups_there}
    by_size = sorted(groups_there, key=lambda group: -len(members[group]))
    largest = by_size if len(groups_there) <= groups else by_size[: groups // 2]
    others = sorted(set(by_size) - set(largest), key=lambda group: _share(label_N[members[group]]))
    mixed = sorted(others[: groups - len(largest)], key=lambda group: -len(members[group]))
    shown = [_line(f"group {group}", label_N, members[group], names, faces) for group in (*largest, *mixed)]
    noise = np.flatnonzero(group_N == -1)
    if len(noise):
        shown.append(_line("noise", label_N, noise, names, faces))
    return shown


def _share(label_n: np.ndarray) -> float:
    """The part that the commonest character has of a group."""
    known = label_n[label_n >= 0]
    return float(np.bincount(known).max() / len(label_n)) if len(known) else 0.0


def _line(what: str, label_N: np.ndarray, rows: np.ndarray, names: Sequence[str], faces: int) -> Line:
    label_n = label_N[rows]
    known, counts = np.unique(label_n[label_n >= 0], return_counts=True)
    often = dict(zip(known.tolist(), counts.tolist(), strict=True))
    ordered = sorted(rows.tolist(), key=lambda row: (-often.get(int(label_N[row]), 0), int(label_N[row]), row))
    at = np.linspace(0, len(ordered) - 1, min(faces, len(ordered))).round().astype(int)
    shown = tuple(ordered[k] for k in at)
    words = [f"{what}: {_count(len(rows), 'face')}"]
    if not often:
        return Line("\n".join([*words, "no known character"]), shown)
    if what == "noise":
        return Line("\n".join([*words, f"of {_count(len(often), 'character')}"]), shown)
    most = int(label_N[ordered[0]])
    words += [_letters(names[most]), f"{often[most] / len(rows):.0%} of the group"]
    return Line("\n".join(words), shown, frozenset(row for row in shown if label_N[row] != most))


def group_lines(shown: Sequence[Line], faces: Mapping[int, Picture], title: str) -> bytes:
    """A line of faces for each of `lines`, red round those of another character than most of the group (PNG).

    A sample that is not in ``faces`` (it could not be read) leaves its place empty; one at least must be.
    """
    most = max(len(line.rows) for line in shown)
    cells = [[_cell(row, row in line.strangers, faces) for row in line.rows] for line in shown]
    cells = [[*line, *[None] * (most - len(line))] for line in cells]
    return figures.sheet(cells, [""] * most, [line.words for line in shown], _letters(title))


def _cell(row: int, strange: bool, faces: Mapping[int, Picture]) -> Picture | None:
    if row not in faces:
        return None
    face = _square(faces[row], 128).copy()
    if strange:
        width_px = 6
        for edge in (face[:width_px], face[-width_px:], face[:, :width_px], face[:, -width_px:]):
            edge[:] = WRONG
    return face


def _letters(name: str) -> str:
    """``name`` with "?" for letters that the font lacks."""
    return figures.plain_text(name).replace(r"\$", "$")
