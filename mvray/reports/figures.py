"""Arrays in, pictures out: what people look at in MLflow, in the report and in `mvray look`.

Drawings with axes are PNG bytes, about 1600 px wide, made without pyplot, so any thread may draw.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.ImageFont import FreeTypeFont

    Picture = np.ndarray[Any, np.dtype[np.uint8]]
    """H x W x 3 uint8."""

WIDTH_PX, DPI = 1600, 160
ANIMATION_PX = 720
INK, FAINT, PAPER = "#24292f", "#d0d7de", "#b3541e"
LINES = ("#1f6fb4", "#d1495b", "#2e8b57", "#8e5fbf", "#c98a00", "#3aa6a6", "#7a5c44", "#666c74")
MANY_CLASSES = 25
"""Above this, a confusion matrix shows colours without numbers."""
PAD_PX, TITLE_PX, TEXT_PX = 16, 30, 22


def rgb(picture_CHW: np.ndarray[Any, Any]) -> Picture:
    """A picture of one or three channels, as networks get it, as H x W x 3."""
    return np.ascontiguousarray(np.broadcast_to(picture_CHW, (3, *picture_CHW.shape[1:])).transpose(1, 2, 0))


def overlay(image_HWC: Picture, map_HW: np.ndarray[Any, Any]) -> Picture:
    """``map_HW`` (0..1, any size) over a picture (H x W x 1 or 3, uint8): red is high, blue is low.

    The map is enlarged bilinearly. Low values tint less than high ones, so that the drawing stays
    readable where nothing was found.
    """
    from matplotlib import colormaps

    height, width = image_HWC.shape[:2]
    small = Image.fromarray(np.ascontiguousarray(map_HW, np.float32))
    map_HW = np.clip(np.asarray(small.resize((width, height), Image.Resampling.BILINEAR)), 0, 1)
    # turbo from its blue to its red; its ends are nearly black.
    colours_HWC = 255 * colormaps["turbo"](0.1 + 0.85 * map_HW)[..., :3]
    opacity_HW1 = 0.3 + 0.35 * map_HW[..., None]
    mixed_HWC = (1 - opacity_HW1) * image_HWC + opacity_HW1 * colours_HWC
    result: Picture = np.rint(mixed_HWC).astype(np.uint8)
    return result


def attention_overlays(frames_THWC: Picture, maps_Thw: np.ndarray[Any, Any]) -> Picture:
    """A clip with attention over each frame, each frame's map scaled to 0..1 as its entropy is (nn/sharpness.py).

    There may be fewer maps than frames: each belongs to as many frames in a row.
    """
    least, most = maps_Thw.min((1, 2), keepdims=True), maps_Thw.max((1, 2), keepdims=True)
    maps_Thw = (maps_Thw - least) / np.where(most > least, most - least, 1)
    nearest = np.arange(len(frames_THWC)) * len(maps_Thw) // len(frames_THWC)
    return np.stack([overlay(frame, maps_Thw[t]) for frame, t in zip(frames_THWC, nearest, strict=True)])


def sheet(
    rows: Sequence[Sequence[Picture | None]], column_titles: Sequence[str], row_titles: Sequence[str], title: str
) -> bytes:
    """A contact sheet: pictures of any size in a grid, each fitted into its cell (PNG, about 1600 px wide).

    Cells take the shape of the first picture. ``None`` leaves a cell empty. Titles may have lines.
    """
    return picture_png(grid(rows, column_titles, row_titles, title))


def animation(
    moments: Sequence[Sequence[Sequence[Picture | None]]],
    column_titles: Sequence[str],
    row_titles: Sequence[str],
    title: str,
    moment_ms: int = 200,
) -> bytes:
    """Contact sheets one after another, as a GIF that begins again: ``moments[t][row][column]`` are pictures."""
    # One palette for all, so that still parts do not flicker.
    grids = [grid(rows, column_titles, row_titles, title, ANIMATION_PX) for rows in moments]
    palette = grids[0].quantize(255, dither=Image.Dither.NONE)
    shown = [grid.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for grid in grids]
    file = io.BytesIO()
    shown[0].save(file, "GIF", save_all=True, append_images=shown[1:], duration=moment_ms, loop=0)
    return file.getvalue()


def histograms(
    values: Mapping[str, np.ndarray[Any, Any]], title: str, x_label: str, limits: tuple[float, float]
) -> bytes:
    """How often which value occurs, a line of steps for each label, as PNG; NaN is left out."""
    figure, axes = _axes(title, WIDTH_PX, 900)
    for k, (label, numbers) in enumerate(values.items()):
        known = numbers[~np.isnan(numbers)]
        colour, entry = LINES[k % len(LINES)], f"{label}: mean {known.mean():.3f}" if len(known) else f"{label}: none"
        axes.hist(known, bins=40, range=limits, histtype="stepfilled", color=colour, alpha=0.25)
        axes.hist(known, bins=40, range=limits, histtype="step", color=colour, linewidth=2, label=plain_text(entry))
    axes.set_xlabel(plain_text(x_label))
    axes.set_ylabel("clips")
    axes.legend(frameon=False)
    return figure_png(figure)


def grid(
    rows: Sequence[Sequence[Picture | None]],
    column_titles: Sequence[str],
    row_titles: Sequence[str],
    title: str,
    width_px: int = WIDTH_PX,
) -> Image.Image:
    """As `sheet`, ``width_px`` wide, not yet written as PNG."""
    small, large = load_font(TEXT_PX), load_font(TITLE_PX)
    sides = ["\n".join(shorten(line) for line in name.splitlines()) for name in row_titles]
    widest = max((small.getlength(line) for name in sides for line in name.splitlines()), default=0)
    left = PAD_PX + (int(widest) + PAD_PX if widest else 0)
    columns = len(column_titles)
    first = next(picture for row in rows for picture in row if picture is not None)
    cell_w = min((width_px - left) // columns - PAD_PX, 520)
    cell_h = round(cell_w * first.shape[0] / first.shape[1])
    titles = ["\n".join(fit_width(line, small, cell_w) for line in name.splitlines()) for name in column_titles]
    lines = 1 + max(name.count("\n") for name in titles)
    top = 2 * PAD_PX + TEXT_PX * lines + (TITLE_PX + PAD_PX if title else 0)
    size = (left + columns * (cell_w + PAD_PX), top + len(rows) * (cell_h + PAD_PX))
    whole = Image.new("RGB", (max(size[0], int(large.getlength(title)) + 2 * PAD_PX), size[1]), "white")
    pen = ImageDraw.Draw(whole)
    pen.text((PAD_PX, PAD_PX), title, INK, large)
    for j, name in enumerate(titles):
        middle = left + j * (cell_w + PAD_PX) + cell_w // 2
        pen.text((middle, top - PAD_PX // 2), name, INK, small, anchor="md", align="center")
    for i, row in enumerate(rows):
        y = top + i * (cell_h + PAD_PX)
        pen.text((PAD_PX, y + cell_h // 2), sides[i] if sides else "", INK, small, anchor="lm", spacing=10)
        for j, picture in enumerate(row):
            if picture is not None:
                _paste(whole, Image.fromarray(picture), (left + j * (cell_w + PAD_PX), y, cell_w, cell_h))
    return whole


def _paste(whole: Image.Image, picture: Image.Image, cell: tuple[int, int, int, int]) -> None:
    x, y, width, height = cell
    fitted = ImageOps.contain(picture, (width, height), Image.Resampling.LANCZOS)
    corner = (x + (width - fitted.width) // 2, y + (height - fitted.height) // 2)
    whole.paste(fitted, corner)
    # Pages are white, as the sheet is: without a frame they would have no edge.
    frame = (corner[0] - 1, corner[1] - 1, corner[0] + fitted.width, corner[1] + fitted.height)
    ImageDraw.Draw(whole).rectangle(frame, outline=FAINT)


def confusion_matrix(counts: np.ndarray[Any, Any], classes: Sequence[str], title: str, percent: bool = False) -> bytes:
    """``counts[true, predicted]`` as PNG; the colour is the share of the true class, and so are the numbers where
    ``percent``. A column more than there are rows is for "none", left out where nothing is."""
    if counts.shape[1] > len(counts) and not counts[:, -1].any():
        counts = counts[:, :-1]
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    share = counts / total
    side_px = WIDTH_PX if len(classes) > 8 else 1100
    figure, axes = _axes(title, side_px, side_px)
    shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    every = 1 if len(classes) <= 60 else -(-len(classes) // 60)
    ticks = list(range(0, len(classes), every))
    size = float(np.clip(420 / len(classes), 5, 11))
    names = [plain_text(shorten(classes[k])) for k in ticks]
    axes.set_yticks(ticks, names, fontsize=size)
    if counts.shape[1] > len(counts):
        ticks, names = [*ticks, len(counts)], [*names, "none"]
    axes.set_xticks(ticks, names, rotation=90 if len(classes) > 6 else 0, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= MANY_CLASSES:
        for (true, predicted), count in np.ndenumerate(counts):
            colour = "white" if share[true, predicted] > 0.55 else INK
            text = f"{100 * share[true, predicted]:.0f}" if percent else f"{count:g}"
            if count and text != "0":
                axes.text(predicted, true, text, ha="center", va="center", color=colour, fontsize=size)
    label = "share of the true class; the numbers are percent" if percent else "share of the true class"
    figure.colorbar(shown, ax=axes, shrink=0.6, label=label)
    return figure_png(figure)


def curves(histories: Mapping[str, Sequence[tuple[float, float]]], title: str, y_label: str) -> bytes:
    """Lines of (epoch, value) by label, as PNG."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(title, WIDTH_PX, 900)
    for k, (label, points) in enumerate(histories.items()):
        epochs, values = zip(*points, strict=True) if points else ((), ())
        dotted = "o-" if len(points) <= 40 else "-"
        axes.plot(
            epochs, values, dotted, color=LINES[k % len(LINES)], label=plain_text(label), linewidth=2, markersize=4
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(plain_text(y_label))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=FAINT, linewidth=0.6)
    if histories:
        # Beside the lines, where it can cover none.
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return figure_png(figure)


def class_bars(values: Mapping[str, Sequence[float]], classes: Sequence[str], title: str, x_label: str) -> bytes:
    """For each class a bar of each label, with its number, as PNG; NaN has none."""
    figure, axes = _axes(title, WIDTH_PX, 260 + len(classes) * (30 + 26 * len(values)))
    thick = 0.84 / len(values)
    for k, (label, numbers) in enumerate(values.items()):
        places = np.arange(len(classes)) - 0.42 + (k + 0.5) * thick
        colour, hatch = LINES[k % len(LINES)], "//" if k // len(LINES) % 2 else None
        bars = axes.barh(
            places, np.nan_to_num(numbers), thick, color=colour, hatch=hatch, edgecolor="white", label=plain_text(label)
        )
        axes.bar_label(bars, ["" if number != number else f"{number:.1f}" for number in numbers], padding=3, fontsize=8)
    axes.set_yticks(range(len(classes)), [plain_text(shorten(name)) for name in classes])
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlabel(plain_text(x_label))
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return figure_png(figure)


def comparison(
    rows: Sequence[Mapping[str, Any]], metric: str, title: str, factor: float = 1.0, digits: int = 1
) -> bytes:
    """Rows of the report's table for one metric: each seed, mean, 95 % interval and the paper's figure (PNG)."""
    figure, axes = _axes("", WIDTH_PX, 260 + 110 * len(rows))
    axes.set_xlabel(plain_text(title))
    for k, row in enumerate(rows):
        seeds = [factor * value for value in row["values"].get(metric, []) if value is not None]
        mean, interval, paper = (row[part].get(metric) for part in ("mean", "interval95", "paper"))
        axes.plot(seeds, [k + 0.22] * len(seeds), "o", color=LINES[0], alpha=0.6, markersize=6, label="each seed")
        if interval is not None:
            low, high = (factor * end for end in interval)
            axes.plot([low, high], [k, k], "-", color=INK, linewidth=2.5, label="95 % interval of the mean")
        if mean is not None:
            axes.plot(factor * mean, k, "|", color=INK, markersize=18, markeredgewidth=3, label="mean")
            above = (factor * mean, k)
            axes.annotate(
                f"{factor * mean:.{digits}f}", above, (0, 13), textcoords="offset points", ha="center", color=INK
            )
        if paper is not None:
            axes.plot(factor * paper, k, "D", color=PAPER, markersize=7, label="paper")
    axes.set_yticks(range(len(rows)), [plain_text(shorten(row["name"], 40)) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    once = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if once:
        axes.legend(once.values(), once.keys(), frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return figure_png(figure)


def empty_figure(title: str, message: str) -> bytes:
    """A picture that says why there is nothing to draw, as PNG."""
    figure, axes = _axes(title, WIDTH_PX, 420)
    axes.text(0.5, 0.5, plain_text(message), ha="center", va="center", color=INK, transform=axes.transAxes, fontsize=12)
    axes.set_axis_off()
    return figure_png(figure)


def _axes(title: str, width_px: int, height_px: int) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(plain_text(title), loc="left", fontsize=13, color=INK, pad=12)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def figure_png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.12)
    return file.getvalue()


def picture_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def write(picture: Image.Image, corner: tuple[int, int], text: str, font: FreeTypeFont) -> None:
    ImageDraw.Draw(picture).text(corner, text, INK, font)


def load_font(size_px: int) -> FreeTypeFont:
    return ImageFont.truetype(_font_path(), size_px)


def _font_path() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def plain_text(name: str) -> str:
    """``name`` for matplotlib: no formulas, and "?" for letters that its font lacks."""
    from matplotlib.ft2font import FT2Font

    known = FT2Font(_font_path()).get_charmap()
    return "".join(letter if ord(letter) in known else "?" for letter in name).replace("$", r"\$")


def shorten(name: str, characters: int = 24) -> str:
    return name if len(name) <= characters else name[: characters - 1] + "…"


def fit_width(name: str, font: FreeTypeFont, width_px: int) -> str:
    while font.getlength(name) > width_px and len(name) > 2:
        name = name[:-2] + "…"
    return name
