"""What a job has found so far, read from the storage: the report's content and its pictures."""

from __future__ import annotations

from typing import Any

from mvray.experiment import ClassMaps, Exhibit, Groups, Matches, Row
from mvray.metrics import mean_interval
from mvray.pipeline import Plan
from mvray.reports import attention, figures, group_sheet, map_sheet, match_sheet, search_figures
from mvray.tuning import Study


def collect(plan: Plan) -> dict[str, Any]:
    """The report as plain data: {"job", "steps": [...], "table": {"rows": [...]}, "search"} (see page.py)."""
    steps = [
        {
            "name": planned.name,
            "seed": planned.seed,
            "id": planned.id,
            "path": planned.folder.uri,
            "state": planned.state,
            "seconds": planned.manifest()["seconds"] if planned.finished else None,
            "metrics": planned.metrics(),
        }
        for planned in plan.steps
    ]
    rows = [_row(plan, row) for row in plan.job.table.rows] if plan.job.table else []
    return {"job": plan.job.name, "steps": steps, "table": {"rows": rows}, "search": _search(plan)}


def _study(plan: Plan) -> Study | None:
    """The job's search, as far as it has trials."""
    search = plan.job.search
    if search is None:
        return None
    step = next(planned.step for planned in plan.steps if planned.name == search.step)
    study = Study(plan.job, plan.of(step, plan.job.seeds[0]))
    return study if study.trials else None


def _search(plan: Plan) -> dict[str, Any] | None:
    study = _study(plan)
    return None if study is None else study.collected()


def _row(plan: Plan, row: Row) -> dict[str, Any]:
    assert plan.job.table is not None
    measured = [plan.of(row.measure, seed).metrics() for seed in plan.job.seeds]
    values = {column.metric: [m.get(column.metric) for m in measured] for column in plan.job.table.columns}
    means: dict[str, float | None] = {}
    intervals: dict[str, list[float] | None] = {}
    for metric, by_seed in values.items():
        known = [value for value in by_seed if value is not None]
        mean, low, high = mean_interval(known) if known else (None, None, None)
        means[metric] = mean
        intervals[metric] = None if low is None or high is None else [low, high]
    return {"name": row.name, "values": values, "mean": means, "interval95": intervals, "paper": dict(row.paper)}


def means(plan: Plan) -> dict[str, float]:
    """The table's means as flat metrics: "table/ROW/METRIC"."""
    rows = collect(plan)["table"]["rows"]
    by_name = {f"table/{row['name']}/{metric}": value for row in rows for metric, value in row["mean"].items()}
    return {name: value for name, value in by_name.items() if value is not None}


def pictures(plan: Plan) -> dict[str, bytes]:
    """The job's sheets of pictures for each seed, by artifact path, as far as their steps are finished."""
    drawn: dict[str, bytes] = {}
    if study := _study(plan):
        drawn |= search_figures.pictures(study.search, study.collected())
    for sheet in plan.job.sheets:
        for seed in plan.job.seeds:
            drawn |= _sheet_pictures(plan, sheet, seed)
    return drawn


def _sheet_pictures(plan: Plan, sheet: Exhibit, seed: int) -> dict[str, bytes]:
    if isinstance(sheet, Groups):
        return group_sheet.draw(plan, sheet, seed)
    if isinstance(sheet, Matches):
        return match_sheet.draw(plan, sheet, seed)
    if isinstance(sheet, ClassMaps):
        return map_sheet.draw(plan, sheet, seed)
    return attention.draw(plan, sheet, seed)


def comparison(plan: Plan) -> dict[str, bytes]:
    """The table's first column as a picture, with intervals and the paper's figures; empty until it is measured.

    A row whose Measure does not give that number is left out.
    """
    table, seeds = plan.job.table, plan.job.seeds
    if table is None or not all(plan.of(row.measure, seed).finished for row in table.rows for seed in seeds):
        return {}
    column = table.columns[0]
    rows = [row for row in collect(plan)["table"]["rows"] if row["mean"][column.metric] is not None]
    if not rows:
        return {}
    return {"comparison.png": figures.comparison(rows, column.metric, column.title, column.factor, column.digits)}
