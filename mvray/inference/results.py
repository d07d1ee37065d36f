"""What a job or a search has found, as Python objects: tables, steps, trained methods."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mvray.inference.model import load_step
from mvray.nn import Method
from mvray.pipeline import Plan, Planned
from mvray.reports import collect, comparison, page, pictures, search_table
from mvray.tuning import Study

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class StepResult:
    """A step of a job under one seed, on a storage."""

    planned: Planned

    @property
    def name(self) -> str:
        return self.planned.name

    @property
    def seed(self) -> int:
        return self.planned.seed

    @property
    def path(self) -> str:
        """The folder with what it made."""
        return self.planned.folder.uri

    @property
    def finished(self) -> bool:
        return self.planned.finished

    @property
    def metrics(self) -> dict[str, float]:
        """Its numbers; empty while it is not finished."""
        return self.planned.metrics()

    @property
    def history(self) -> pd.DataFrame:
        """The metrics of each epoch of a Train step."""
        import pandas as pd

        return pd.DataFrame(self.planned.history())

    def load(self) -> Method:
        """The trained method of a Train step, in eval mode. Raises DataError where there is none."""
        return load_step(self.path)[0]


@dataclass(frozen=True)
class Result:
    """What a job has found so far. ``result["masked"]`` is a step under the job's first seed."""

    plan: Plan

    @cached_property
    def report(self) -> dict[str, Any]:
        """Everything as plain data, as `mvray report --json` prints it."""
        return collect(self.plan)

    @property
    def steps(self) -> list[StepResult]:
        """Every step under every seed, inputs before what reads them."""
        return [StepResult(planned) for planned in self.plan.steps]

    def __getitem__(self, name: str) -> StepResult:
        return self.step(name, self.plan.job.seeds[0])

    def step(self, name: str, seed: int) -> StepResult:
        """A step under a seed. Raises KeyError that lists the steps where there is none of that name."""
        named = {step.name: step for step in self.plan.job.walk()}
        if name not in named:
            raise KeyError(f"The job {self.plan.job.name!r} has no step {name!r}; it has {', '.join(named)}.")
        return StepResult(self.plan.of(named[name], seed))

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for each of the job's table and each metric, as printed: mean, 95 % interval, the paper's figure, and
        a column for each seed. Values that are not there yet are NaN."""
        import pandas as pd

        table, lines = self.plan.job.table, []
        for row in self.report["table"]["rows"]:
            for column in table.columns if table else ():
                low, high = row["interval95"].get(column.metric) or (None, None)
                numbers = {"mean": row["mean"].get(column.metric), "low": low, "high": high}
                numbers["paper"] = row["paper"].get(column.metric)
                for seed, value in zip(self.plan.job.seeds, row["values"].get(column.metric, ()), strict=False):
                    numbers[f"seed {seed}"] = value
                scaled = {name: None if value is None else value * column.factor for name, value in numbers.items()}
                lines.append({"row": row["name"], "metric": column.title, **scaled})
        if not lines:
            return pd.DataFrame()
        return pd.DataFrame(lines).set_index(["row", "metric"]).astype(float)

    def json(self) -> str:
        """The report as JSON."""
        return page.as_json(self.report)

    def html(self) -> str:
        """The report as a page of its own, with its pictures."""
        return page.as_html(self.report, self.plan.job.table, {**comparison(self.plan), **pictures(self.plan)})

    def _repr_html_(self) -> str:
        return str(self.table.to_html(float_format=lambda value: f"{value:.3g}", na_rep="-"))

    def __str__(self) -> str:
        return page.as_text(self.report, self.plan.job.table)


@dataclass(frozen=True)
class SearchResult:
    """What a search has found so far."""

    study: Study

    @cached_property
    def report(self) -> dict[str, Any]:
        """Everything as plain data."""
        return self.study.collected()

    @property
    def table(self) -> pd.DataFrame:
        """A row for each trial, best first: its settings, epochs, value and state."""
        import pandas as pd

        return pd.DataFrame(search_table.ranked(self.report)).set_index("number")

    @property
    def best(self) -> dict[str, Any] | None:
        """The best trial's settings, for `run`'s ``settings``; None while there is none."""
        trial = self.study.best()
        return None if trial is None else dict(trial.settings)

    def __str__(self) -> str:
        return search_table.as_text(self.report)
