"""A search's table as text and as part of the report's page; `Study.collected` has the numbers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mvray.experiment import as_text as typed
from mvray.tracking import duration

ROWS = 25
"""The text shows so many trials; the page shows all."""
NOTHING = "-"
NUMBER = 4
STATES = {"finished": "to the end", "stopped": "stopped early", "failed": "failed", "running": "not ended"}


def ranked(search: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials, best first: the best one, those trained to the end, those that were stopped, and the rest."""
    sign = -1.0 if search["maximise"] else 1.0
    states = list(STATES)

    def key(trial: Mapping[str, Any]) -> tuple[Any, ...]:
        value = math.inf if trial["value"] is None else sign * trial["value"]
        return trial["number"] != search["best"], states.index(trial["state"]), value, trial["number"]

    return sorted(search["trials"], key=key)


def summary(search: Mapping[str, Any]) -> str:
    """What was tried, in a sentence."""
    counts = [(sum(trial["state"] == state for trial in search["trials"]), words) for state, words in STATES.items()]
    states = ", ".join(f"{count} {words}" for count, words in counts if count)
    seconds = sum(trial["seconds"] for trial in search["trials"])
    return f"Search of {search['step']}: {len(search['trials'])} trials ({states}), {duration(seconds)} of training."


def verdict(search: Mapping[str, Any]) -> str:
    """Which settings are best; "" where nothing is known yet."""
    best = _best(search)
    if best is None:
        return ""
    sentence = f"Best: trial {best['number']}, {search['metric']} {best['value']:.{NUMBER}f}"
    if search["scheduler"] == "pbt":
        generations = len(_line(search, best))
        return f"{sentence}, after {generations} generations with changing settings. Its weights: {best['path']}."
    return f"{sentence}, with {search['set']}"


def _best(search: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((trial for trial in search["trials"] if trial["number"] == search["best"]), None)


def _line(search: Mapping[str, Any], trial: Mapping[str, Any]) -> list[int]:
    """The trials that a trial's weights went through, itself last."""
    before = [] if trial["parent"] is None else _line(search, search["trials"][trial["parent"]])
    return [*before, trial["number"]]


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _cells(trial: Mapping[str, Any], search: Mapping[str, Any]) -> list[str]:
    value = NOTHING if trial["value"] is None else f"{trial['value']:.{NUMBER}f}"
    settings = [typed(trial["settings"].get(name)) for name in search["space"]]
    origin = [NOTHING if trial["parent"] is None else str(trial["parent"])] if search["scheduler"] == "pbt" else []
    return [str(trial["number"]), value, *settings, *origin, str(len(trial["values"])), duration(trial["seconds"])]


def _titles(search: Mapping[str, Any]) -> list[str]:
    origin = ["from"] if search["scheduler"] == "pbt" else []
    return ["trial", _short(search["metric"]), *map(_short, search["space"]), *origin, "epochs", "time"]


def _remark(trial: Mapping[str, Any]) -> str:
    return f"failed: {trial['reason']}" if trial["state"] == "failed" else STATES[trial["state"]]


def as_text(search: Mapping[str, Any], width: int = 100) -> str:
    """The search for a terminal."""
    shown = ranked(search)
    rows = [_titles(search), *(_cells(trial, search) for trial in shown[:ROWS])]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    remarks = ["", *(_remark(trial) for trial in shown[:ROWS])]
    lines = [_align(row, widths, remark, width) for row, remark in zip(rows, remarks, strict=True)]
    lines.insert(1, "-" * min(width, max(map(len, lines))))
    if len(shown) > ROWS:
        lines.append(f"and {len(shown) - ROWS} more; the page (--html) shows all.")
    best = verdict(search)
    # The line with --set is copied, so it is not folded.
    return "\n\n".join([textwrap.fill(summary(search), width), "\n".join(lines), *([best] if best else [])])


def _align(row: Sequence[str], widths: Sequence[int], remark: str, width: int) -> str:
    cells = "   ".join(f"{cell:>{wide}}" for cell, wide in zip(row, widths, strict=True))
    room = max(24, width - len(cells) - 3)
    cut = remark if len(remark) <= room else remark[: room - 1] + "…"
    return f"{cells}   {cut}".rstrip()


def as_html(search: Mapping[str, Any]) -> str:
    """The search as a part of the report's page, without its pictures."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in [*_titles(search), "", "step"])
    lines = []
    for trial in ranked(search):
        cells = [f"<td>{escape(cell)}</td>" for cell in _cells(trial, search)]
        if trial["number"] == search["best"]:
            cells = [f"<td><b>{escape(cell)}</b></td>" for cell in _cells(trial, search)]
        state = {"finished": "finished", "running": "missing"}.get(trial["state"], "partial")
        cells.append(f'<td class="remark"><span class="state {state}">{escape(_remark(trial))}</span></td>')
        lines.append(f"<tr>{''.join(cells)}<td><code>{escape(trial['path'])}</code></td></tr>")
    space = "; ".join(f"{name}: {text}" for name, text in search["space"].items())
    caption = f"{search['metric']}, the {'highest' if search['maximise'] else 'lowest'} is best. {space}."
    best = f'<p class="verdict">{escape(verdict(search))}</p>' if verdict(search) else ""
    return (
        f"<h2>Search</h2>{best}<p>{escape(summary(search))}</p>"
        f'<div class="wide"><table class="steps"><thead><tr>{titles}</tr></thead>\n<tbody>{chr(10).join(lines)}</tbody>'
        f'</table></div>\n<p class="faint">{escape(caption)}</p>'
    )
