"""Pictures of a search, as PNG: how settings and results go together, what mattered, and how trials learned."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mvray.experiment import Choice, Domain, Integers, LogUniform, Search, as_text
from mvray.reports.figures import FAINT, INK, LINES, PAPER, WIDTH_PX, _axes, _drawn, _plain
from mvray.tuning import Known, as_optuna

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 5
"""With fewer trials than this that were trained as far, nothing can be said of importance."""
COLOURS = "viridis"


def pictures(search: Search, found: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures of the trials that `Study.collected` gave, by artifact path; none where no trial has a value."""
    if not any(trial["value"] is not None for trial in found["trials"]):
        return {}
    return {
        "search/parallel-coordinates.png": parallel(search, found),
        "search/importance.png": importance_figure(importances(search, found), found),
        "search/learning-curves.png": learning(search, found),
        "search/best-so-far.png": best_so_far(search, found),
    }


def _measured(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [trial for trial in found["trials"] if trial["value"] is not None]


# -- parallel coordinates ------------------------------------------------------------------------


def parallel(search: Search, found: Mapping[str, Any]) -> bytes:
    """A line for each trial through its settings to its result; trials that were stopped are dashed."""
    from matplotlib import colormaps

    trials = _measured(found)
    worst_first = sorted(trials, key=lambda trial: -search.order(trial["value"]))
    values = [trial["value"] for trial in trials]
    low, high = min(values), max(values)
    figure, axes = _axes(f"{found['step']}: settings and {found['metric']}", WIDTH_PX, 900)
    columns = [*search.space, (found["metric"], None)]
    for trial in worst_first:
        y = [_height(domain, trial["settings"][name]) for name, domain in search.space]
        y.append((trial["value"] - low) / (high - low) if high > low else 0.5)
        share = y[-1] if search.maximise else 1 - y[-1]
        best = trial["number"] == found["best"]
        axes.plot(
            range(len(y)),
            _spread(y, trial["number"], columns),
            color=PAPER if best else colormaps[COLOURS](0.9 * (1 - share)),
            linewidth=4 if best else 2,
            alpha=1.0 if best else 0.75,
            linestyle="--" if trial["state"] == "stopped" else "-",
            label="best" if best else None,
            zorder=3 if best else 2,
        )
    for at, (_, domain) in enumerate(columns):
        axes.axvline(at, color=INK, linewidth=1, zorder=1)
        for height, text in _ticks(domain, low, high):
            axes.text(at + 0.015, height, _plain(text), fontsize=9, color=INK, va="center", zorder=4, bbox=_PALE)
    axes.set_xticks(range(len(columns)), [_plain(name.rpartition(".")[2]) for name, _ in columns])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlim(-0.08, len(columns) - 0.8)
    axes.set_ylim(-0.06, 1.06)
    _legend(axes, trials)
    return _drawn(figure)


_PALE = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.0}


def _legend(axes: Axes, trials: list[Mapping[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    shown = [Line2D([], [], color=PAPER, linewidth=4, label="best")]
    shown += [Line2D([], [], color=INK, linewidth=2, label="trained to the end")]
    if any(trial["state"] == "stopped" for trial in trials):
        shown += [Line2D([], [], color=INK, linewidth=2, linestyle="--", label="stopped early")]
    axes.legend(handles=shown, frameon=False, ncols=3, loc="upper right", bbox_to_anchor=(1, 1.1))


def _height(domain: Domain, value: Any) -> float:
    """Where a value is on its axis, 0 to 1."""
    if isinstance(domain, Choice):
        return domain.options.index(value) / (len(domain.options) - 1)
    low, high = domain.ends
    if isinstance(domain, LogUniform) or (isinstance(domain, Integers) and domain.log):
        return math.log(value / low) / math.log(high / low)
    return float((value - low) / (high - low))


def _spread(heights: list[float], number: int, columns: list[Any]) -> list[float]:
    """Lines through the same option lie a little beside each other, so that all can be seen."""
    shift = 0.012 * ((number * 0.618) % 1 - 0.5) * 2
    return [h + shift if isinstance(domain, Choice) else h for h, (_, domain) in zip(heights, columns, strict=True)]


def _ticks(domain: Domain | None, low: float, high: float) -> list[tuple[float, str]]:
    if domain is None:
        return [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")] if high > low else [(0.5, f"{low:.4g}")]
    if isinstance(domain, Choice):
        return [(_height(domain, option), as_text(option)) for option in domain.options]
    ends = domain.ends
    logarithmic = isinstance(domain, LogUniform) or (isinstance(domain, Integers) and domain.log)
    middle = math.sqrt(ends[0] * ends[1]) if logarithmic else (ends[0] + ends[1]) / 2
    return [(_height(domain, value), f"{value:.3g}") for value in (ends[0], middle, ends[1])]


# -- importance ----------------------------------------------------------------------------------


def importances(search: Search, found: Mapping[str, Any]) -> tuple[dict[str, float], int]:
    """How much of the spread of results each setting explains (fANOVA, Hutter et al. 2014), and over how many trials.

    Only results after equally many epochs can be compared: those that the most trials have, of as many epochs as
    possible. In population-based training they are of one generation, since the next one's have been trained longer:
    of the latest that has enough. {} with fewer than FEW trials, or where all results are equal.
    """
    import optuna

    most = 0
    for trials, whole in _generations(search, found["trials"]):
        reached = sorted({len(trial["values"]) for trial in trials if trial["value"] is not None})
        counts = {epochs: sum(len(trial["values"]) >= epochs for trial in trials) for epochs in reached}
        most = max([most, *counts.values()])
        if enough := [epochs for epochs, count in counts.items() if count >= max(FEW, whole / 2)]:
            break
    else:
        return {}, most
    epochs = max(enough)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if search.maximise else "minimize")
    for trial in trials:
        if len(trial["values"]) >= epochs and trial["values"][epochs - 1] is not None:
            known = Known(trial["number"], trial["settings"], "finished", trial["values"][epochs - 1], epochs)
            if (frozen := as_optuna(search, known)) is not None:
                study.add_trial(frozen)
    if len({trial.value for trial in study.trials}) < 2:
        return {}, len(study.trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=search.seed)
        made = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in made.items()}, len(study.trials)


def _generations(search: Search, trials: list[Mapping[str, Any]]) -> list[tuple[list[Mapping[str, Any]], int]]:
    """Trials that began alike, the latest first, and how many they are in the end; all in one but for a population."""
    if search.scheduler != "pbt":
        return [(trials, len(trials))]
    members: dict[int, list[Mapping[str, Any]]] = {}
    for trial in trials:
        members.setdefault(trial["number"] // search.trials, []).append(trial)
    return [(members[generation], search.trials) for generation in sorted(members, reverse=True)]


def importance_figure(explained: tuple[dict[str, float], int], found: Mapping[str, Any]) -> bytes:
    shares, count = explained
    title = f"{found['step']}: what {found['metric']} depends on"
    figure, axes = _axes(title, WIDTH_PX, 240 + 90 * max(2, len(shares)))
    if not shares:
        said = f"{count} trials were trained as far as each other, or all came to the same: too few to tell."
        axes.text(0.5, 0.5, said, ha="center", va="center", color=INK, transform=axes.transAxes, fontsize=12)
        axes.set_axis_off()
        return _drawn(figure)
    names = list(reversed(shares))
    axes.barh(range(len(names)), [shares[name] for name in names], color=LINES[0], height=0.55)
    for at, name in enumerate(names):
        axes.text(shares[name] + 0.01, at, f"{shares[name]:.0%}", va="center", color=INK)
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.set_xlim(0, max(1.0, *shares.values()) * 1.05)
    note = ": few, so take it with care" if count < 4 * FEW else ""
    axes.set_xlabel(f"share of the spread that the setting explains (fANOVA over {count} trials{note})")
    axes.tick_params(axis="y", length=0)
    return _drawn(figure)


# -- how trials learned --------------------------------------------------------------------------


def learning(search: Search, found: Mapping[str, Any]) -> bytes:
    """The metric of each trial's selected epoch over its epochs; where a trial was stopped there is a cross."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(f"{found['step']}: trials", WIDTH_PX, 900)
    trials = {trial["number"]: trial for trial in _measured(found)}
    best_line = _ancestors(trials, found["best"])
    for number, trial in trials.items():
        first = _epochs_before(trials, trial) + 1
        x = np.arange(first, first + len(trial["values"]))
        y = np.array([math.nan if value is None else value for value in trial["values"]])
        best = number in best_line
        colour = PAPER if best else LINES[0]
        axes.plot(x, y, "-", color=colour, linewidth=3 if best else 1.5, alpha=1 if best else 0.55, zorder=2 + best)
        mark = {"stopped": "x", "failed": "X", "finished": "o"}.get(trial["state"], ".")
        axes.plot(x[-1:], y[-1:], mark, color=colour, markersize=8, zorder=2 + best)
        if number == found["best"]:
            axes.annotate(
                f"trial {number}", (x[-1], y[-1]), (8, 0), textcoords="offset points", va="center", color=PAPER
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel(_plain(found["metric"] + (", best so far" if search.scheduler != "pbt" else "")))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=FAINT, linewidth=0.6)
    for mark, label in (("o", "trained to the end"), ("x", "stopped early")):
        axes.plot([], [], mark, color=LINES[0], label=label)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return _drawn(figure)


def _ancestors(trials: Mapping[int, Mapping[str, Any]], number: int | None) -> set[int]:
    found: set[int] = set()
    while number is not None and number in trials:
        found.add(number)
        number = trials[number]["parent"]
    return found


def _epochs_before(trials: Mapping[int, Mapping[str, Any]], trial: Mapping[str, Any]) -> int:
    parent = trials.get(trial["parent"]) if trial["parent"] is not None else None
    return 0 if parent is None else _epochs_before(trials, parent) + len(parent["values"])


def best_so_far(search: Search, found: Mapping[str, Any]) -> bytes:
    """Each trial's result, and the best of the trials up to it."""
    from matplotlib.ticker import MaxNLocator

    trials = sorted(_measured(found), key=lambda trial: trial["number"])
    numbers, values = [trial["number"] for trial in trials], [trial["value"] for trial in trials]
    best = np.maximum.accumulate(values) if search.maximise else np.minimum.accumulate(values)
    figure, axes = _axes(f"{found['step']}: the best so far", WIDTH_PX, 700)
    axes.step(numbers, best, where="post", color=PAPER, linewidth=3, label="best so far")
    for state, mark, label in (("finished", "o", "trained to the end"), ("stopped", "x", "stopped early")):
        shown = [(t["number"], t["value"]) for t in trials if t["state"] == state]
        if shown:
            axes.plot(*zip(*shown, strict=True), mark, color=LINES[0], markersize=9, label=label)
    axes.set_xlabel("trial")
    axes.set_ylabel(_plain(found["metric"]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=FAINT, linewidth=0.6)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return _drawn(figure)
