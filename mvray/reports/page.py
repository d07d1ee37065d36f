"""A job's report as text, JSON and an HTML page: means, intervals, seeds and the paper's figures.

A report is plain data: {"job", "steps": [{"name", "seed", "id", "path", "state", "seconds",
"metrics"}], "table": {"rows": [{"name", "values": {metric: [per seed]}, "mean": {metric: v},
"interval95": {metric: [low, high] | None}, "paper": {metric: v}}]}, "search": None or what
`Study.collected` gives}. A value that is not there yet is
None. The same report gives the same text and page, to the byte.
"""

from __future__ import annotations

import base64
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

from mvray.experiment import Column, Table
from mvray.metrics import mean_interval
from mvray.reports import search_table
from mvray.reports.web_page import web_page
from mvray.tracking import duration

Report = Mapping[str, Any]
Row = Mapping[str, Any]

NAME_CHARACTERS, COLUMN_CHARACTERS, GAP = 30, 24, "   "
NOTHING = "-"


def as_json(report: Report) -> str:
    """The report as strict JSON: numbers that are not finite become null."""
    return json.dumps(_finite(report), indent=1)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- what can be said ----------------------------------------------------------------------------


def verdict(rows: Sequence[Row], column: Column) -> str:
    """Which row is best in ``column`` (greater is better), and whether chance could explain it.

    Rows are compared by the 95 % interval of their differences, paired over the seeds that both have. Rows whose means
    are the same as printed, and whose difference is not shown, are called equal.
    """
    measured = [row for row in rows if row["mean"].get(column.metric) is not None]
    if not measured:
        return f"{column.title} has not been measured yet."
    best, *others = sorted(measured, key=lambda row: -row["mean"][column.metric])
    equal = [best, *(row for row in others if _are_equal(best, row, column))]
    rest = [row for row in others if not any(row is one for one in equal)]
    names, number = " and ".join(f"“{row['name']}”" for row in equal), _number(best["mean"][column.metric], column)
    said = f"{column.title}: {names} {'are equal' if len(equal) > 1 else 'is best'} with {number}."
    if not others:
        return f"{said} There is no other row to compare it with."
    subject = "It" if len(equal) == 1 else f"“{best['name']}”"
    compared = [text for row in rest if (text := _comparison(subject, best, row, column))]
    if not any(_difference(best, row, column) for row in others):
        compared = ["With less than two seeds nothing can be concluded from that."]
    return " ".join([said, *compared])


def _are_equal(best: Row, other: Row, column: Column) -> bool:
    one, two = (_number(row["mean"][column.metric], column) for row in (best, other))
    difference = _difference(best, other, column)
    return one == two and (difference is None or difference[1] <= 0 <= difference[2])


def _difference(best: Row, other: Row, column: Column) -> tuple[float, float, float, int] | None:
    """The mean of the paired differences, its 95 % interval, and the seeds; None where less than two have both."""
    pairs = zip(best["values"][column.metric], other["values"][column.metric], strict=True)
    differences = [one - two for one, two in pairs if one is not None and two is not None]
    if len(differences) < 2:
        return None
    mean, low, high = mean_interval(differences)
    assert low is not None
    assert high is not None
    return mean, low, high, len(differences)


def _comparison(subject: str, best: Row, other: Row, column: Column) -> str:
    """How far ``best`` is above ``other``, and what that means; "" where less than two seeds have both."""
    difference = _difference(best, other, column)
    if difference is None:
        return ""
    mean, low, high, seeds = difference
    span = f"95 % interval {_number(low, column)} to {_number(high, column)}, {seeds} seeds"
    meaning = "zero is outside, so that is more than chance" if low > 0 else "zero is inside: a difference is not shown"
    return f"{subject} is {_number(mean, column)} above “{other['name']}” ({span}: {meaning})."


def _number(value: float | None, column: Column) -> str:
    return NOTHING if value is None else f"{column.factor * value:.{column.digits}f}"


def _interval(row: Row, column: Column) -> str:
    interval = row["interval95"].get(column.metric)
    return "" if interval is None else " to ".join(_number(end, column) for end in interval)


def _seeds(row: Row, column: Column) -> str:
    values = row["values"].get(column.metric, [])
    some = len(values) > 1 and any(value is not None for value in values)
    return " ".join(_number(value, column) for value in values) if some else ""


def _paper(row: Row, column: Column) -> str:
    return _number(row["paper"][column.metric], column) if column.metric in row["paper"] else ""


# -- text ----------------------------------------------------------------------------------------


def as_text(report: Report, table: Table | None, width: int = 100) -> str:
    """The report for a terminal of ``width`` characters; a wide table is folded, columns below columns."""
    parts = [f"{report['job']}: {_progress(report['steps'])}"]
    rows = report["table"]["rows"]
    if table is not None and rows:
        name_width = min(NAME_CHARACTERS, max(len(row["name"]) for row in rows))
        fit = max(1, (width - name_width) // (COLUMN_CHARACTERS + len(GAP)))
        parts += [
            _block(rows, table.columns[first : first + fit], name_width) for first in range(0, len(table.columns), fit)
        ]
        parts += [textwrap.fill(text, width) for text in (verdict(rows, table.columns[0]), table.note) if text]
    if report.get("search"):
        parts.append(search_table.as_text(report["search"], width))
    open_steps = [step for step in report["steps"] if step["state"] != "finished"]
    if open_steps:
        parts.append("\n".join(f"{step['state']}: {step['name']}, seed {step['seed']}" for step in open_steps))
    return "\n\n".join(parts)


def _progress(steps: Sequence[Mapping[str, Any]]) -> str:
    finished = [step for step in steps if step["state"] == "finished"]
    seconds = sum(step["seconds"] or 0 for step in finished)
    return f"{len(finished)} of {len(steps)} steps finished, {duration(seconds)} of work"


def _block(rows: Sequence[Row], columns: Sequence[Column], name_width: int) -> str:
    lines = _columns_side_by_side("", [textwrap.wrap(c.title, COLUMN_CHARACTERS) for c in columns], name_width)
    lines.append(GAP.join(["-" * name_width, *("-" * COLUMN_CHARACTERS for _ in columns)]))
    for row in rows:
        lines += _columns_side_by_side(row["name"], [_cell_lines(row, column) for column in columns], name_width)
    return "\n".join(lines)


def _cell_lines(row: Row, column: Column) -> list[str]:
    interval, seeds, paper = _interval(row, column), _seeds(row, column), _paper(row, column)
    lines = [_number(row["mean"].get(column.metric), column) + (f"  ({interval})" if interval else "")]
    lines += textwrap.wrap(f"seeds {seeds}", COLUMN_CHARACTERS, subsequent_indent="      ") if seeds else []
    return lines + ([f"paper {paper}"] if paper else [])


def _columns_side_by_side(name: str, cells: Sequence[Sequence[str]], name_width: int) -> list[str]:
    names = textwrap.wrap(name, name_width)
    height = max(len(names), *(len(cell) for cell in cells))
    columns = [(names, name_width), *((cell, COLUMN_CHARACTERS) for cell in cells)]
    return [
        GAP.join(f"{lines[k] if k < len(lines) else '':{wide}}" for lines, wide in columns).rstrip()
        for k in range(height)
    ]


# -- page ----------------------------------------------------------------------------------------


def as_html(report: Report, table: Table | None, pictures: Mapping[str, bytes]) -> str:
    """A page that needs nothing beside it: pictures (PNG or GIF by title or artifact path) and style are inside."""
    rows = report["table"]["rows"]
    parts = [f"<h1>{escape(report['job'])}</h1>", f'<p class="faint">{escape(_progress(report["steps"]))}</p>']
    if table is not None and rows:
        parts += [
            f'<p class="verdict">{escape(verdict(rows, table.columns[0]))}</p>',
            _html_table(rows, table.columns, _seed_count(rows)),
        ]
        parts += [f'<p class="note">{escape(table.note)}</p>'] if table.note else []
    drawn = {title: content for title, content in pictures.items() if not title.startswith("search/")}
    parts += [_html_picture(title, content) for title, content in drawn.items()]
    if report.get("search"):
        parts.append(search_table.as_html(report["search"]))
        parts += [_html_picture(title, content) for title, content in pictures.items() if title not in drawn]
    parts += ["<h2>Steps</h2>", _html_steps(report["steps"])]
    return web_page(report["job"], "\n".join(parts), _STYLE)


def _seed_count(rows: Sequence[Row]) -> int:
    return max((len(values) for row in rows for values in row["values"].values()), default=0)


def _html_table(rows: Sequence[Row], columns: Sequence[Column], seeds: int) -> str:
    titles = "".join(f"<th>{escape(column.title)}</th>" for column in columns)
    lines = "".join(
        f"<tr><th>{escape(row['name'])}</th>{''.join(_html_cell(row, column) for column in columns)}</tr>\n"
        for row in rows
    )
    key = "Mean" + (f" of {seeds} seeds, 95 % interval, each seed" if seeds > 1 else " of one seed")
    return (
        f'<div class="wide"><table class="results"><thead><tr><th></th>{titles}</tr></thead>\n<tbody>{lines}</tbody>'
        f"</table></div>\n<p class='faint'>{key}, and the paper's figure where it has one.</p>"
    )


def _html_cell(row: Row, column: Column) -> str:
    interval, seeds, paper = _interval(row, column), _seeds(row, column), _paper(row, column)
    parts = [f"<b>{_number(row['mean'].get(column.metric), column)}</b>"]
    parts += [f'<span class="interval">{interval}</span>'] if interval else []
    parts += [f'<span class="seeds">{seeds}</span>'] if seeds else []
    parts += [f'<span class="paper">paper {paper}</span>'] if paper else []
    return f"<td>{''.join(parts)}</td>"


def _html_picture(title: str, content: bytes) -> str:
    path = PurePath(title)
    caption = escape(path.stem.replace("-", " ") if path.suffix in (".png", ".gif") else title)
    kind = "gif" if content.startswith(b"GIF8") else "png"
    data = base64.b64encode(content).decode()
    image = f'<img src="data:image/{kind};base64,{data}" alt="{caption}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _html_steps(steps: Sequence[Mapping[str, Any]]) -> str:
    lines = "".join(
        f"<tr><td>{escape(step['name'])}</td><td>{step['seed']}</td>"
        f'<td><span class="state {escape(step["state"])}">{escape(step["state"])}</span></td>'
        f"<td>{NOTHING if step['seconds'] is None else duration(step['seconds'])}</td>"
        f"<td><code>{escape(step['id'])}</code></td>"
        f"<td><code>{escape(step['path'])}</code></td></tr>\n"
        for step in steps
    )
    titles = "".join(f"<th>{title}</th>" for title in ("step", "seed", "state", "time", "id", "folder"))
    return (
        f'<div class="wide"><table class="steps"><thead><tr>{titles}</tr></thead>\n<tbody>{lines}</tbody></table></div>'
    )


_STYLE = """
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem }
.faint, figcaption { color: var(--faint); font-size: .875rem; margin: .4rem 0 }
.verdict { background: var(--card); border-left: 4px solid var(--mark); padding: .8rem 1rem; margin: 1.5rem 0 }
.note { max-width: 50rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th { font-weight: 600; text-align: left } thead th { font-size: .875rem; vertical-align: bottom; color: var(--faint) }
th, td { padding: .6rem .9rem .6rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
.results td { font-variant-numeric: tabular-nums; white-space: nowrap }
.results b { font-size: 1.25rem; margin-right: .5rem }
.interval, .seeds { color: var(--faint); font-size: .875rem } .seeds, .paper { display: block }
.paper { color: var(--paper); font-size: .875rem }
.steps { font-size: .875rem } .steps td { white-space: nowrap }
.steps .remark { white-space: normal; min-width: 8rem } code { font-size: .8125rem }
.state::before { content: "●"; margin-right: .4rem; color: var(--open) }
.finished::before { color: var(--good) } .missing::before { content: "○"; color: var(--faint) }
figure { margin: 2rem 0 0 } img { max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 6px }
@media (max-width: 700px) { figure { overflow-x: auto } img { max-width: none; width: 800px } }
@media print { .wide { overflow: visible } }
"""
