"""What `run` and `tune` log of a step while it runs; reports/mlflow_runs.py logs it to MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mvray.pipeline.plan import Planned

History = list[dict[str, float]]
"""Metrics of each epoch."""


class StepLog(Protocol):
    """Hears of one step at a time; ``run`` is the handle that `started` gave."""

    def started(self, planned: Planned) -> str:
        """A step begins."""

    def epochs(self, run: str, planned: Planned, history: History) -> None:
        """Epochs have ended; those that were logged before may come again."""

    def finished(self, run: str, planned: Planned, metrics: Mapping[str, float], costs: Mapping[str, float]) -> None:
        """A step is done, with these numbers."""

    def failed(self, run: str, error: BaseException, interrupted: bool) -> None:
        """A step ended with ``error``, which may be an interruption."""


class JobLog(StepLog, Protocol):
    """Hears of a whole job."""

    def reused(self, planned: Planned) -> None:
        """A step was finished before."""


class ProgressLines(Protocol):
    """Where a step's lines go."""

    def show(self, key: str, text: str | None) -> None:
        """A line that changes, None where it goes."""

    def say(self, line: str) -> None:
        """A line that stays."""


class SearchLog(Protocol):
    """Hears of the trials of a search."""

    def trial(self, planned: Planned, number: int, reused: bool = False) -> str:
        """A trial begins, or was ``reused``; returns its run's handle."""

    def epochs(self, run: str, planned: Planned, history: History) -> None:
        """As StepLog."""

    def failed(self, run: str, error: BaseException, interrupted: bool) -> None:
        """As StepLog."""

    def ended(self, run: str, reason: str, state: str, value: Mapping[str, float]) -> None:
        """A trial ended in ``state`` (as MLflow's runs) with these numbers, for this reason where there is one."""

    def log_totals(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers of the whole search after ``step`` trials."""
