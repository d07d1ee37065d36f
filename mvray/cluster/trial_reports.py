"""The actor to which a search's trials report each epoch's metrics, and which tells them whether to go on.

    rank 0 of a trial   reports each epoch's metrics                  tell -> TrialReports.add
    Tune's trial        hands them one by one to Ray Tune             tuning/ray_tune.py -> TrialReports.next
    every rank          waits after some epochs for Tune's answer     tell -> TrialReports.goes_on
    the driver          notes that a trial was stopped, or has ended  tuning/tune.py -> TrialReports.stop, .end

When Tune's trial asks for the next epoch, Tune has let the trial go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvray.training import SearchTrial

Row = dict[str, float]
"""Metrics of one epoch."""


@dataclass
class _TrialState:
    """What is known of a trial."""

    rows: list[Row] = field(default_factory=list)
    allowed: int = 0
    """After how many epochs Tune has let it go on."""
    stopped: bool = False
    ended: bool = False


class TrialReports:
    """The actor. Its methods are coroutines: one that waits does not block the others."""

    def __init__(self) -> None:
        self._trials: dict[int, _TrialState] = {}
        self._changed = asyncio.Condition()

    def _trial(self, number: int) -> _TrialState:
        return self._trials.setdefault(number, _TrialState())

    async def add(self, number: int, rows: list[Row]) -> None:
        """Add epochs of a trial; those that are there already stay as they are."""
        async with self._changed:
            stored = self._trial(number).rows
            stored += [row for row in rows if row["epoch"] >= len(stored)]
            self._changed.notify_all()

    async def next(self, number: int, done: int) -> list[Row] | None:
        """The epochs up to the one after ``done`` ones, as soon as it has ended; None where no more come."""
        async with self._changed:
            trial = self._trial(number)
            if not trial.stopped:
                trial.allowed = max(trial.allowed, done)
                self._changed.notify_all()
            await self._changed.wait_for(lambda: len(trial.rows) > done or trial.ended)
            return trial.rows[: done + 1] if len(trial.rows) > done else None

    async def goes_on(self, number: int, done: int) -> bool:
        """Whether a trial goes on after ``done`` epochs, as soon as that is decided; the same for all who ask."""
        async with self._changed:
            trial = self._trial(number)
            await self._changed.wait_for(lambda: trial.allowed >= done or trial.stopped)
            return trial.allowed >= done

    async def stop(self, number: int) -> None:
        """The trial is not to go on, wherever it waits."""
        async with self._changed:
            self._trial(number).stopped = True
            self._changed.notify_all()

    async def end(self, number: int) -> None:
        """No more epochs come."""
        async with self._changed:
            self._trial(number).ended = True
            self._changed.notify_all()


def tell(trial: SearchTrial, metrics: Mapping[str, float], rank: int) -> bool:
    """Report an epoch's metrics to TrialReports; returns whether to go on."""
    import ray

    scores: Any = ray.get_actor(trial.scores)
    done = int(metrics["epoch"]) + 1
    if rank == 0:
        ray.get(scores.add.remote(trial.number, [dict(metrics)]))
    return done not in trial.waits or bool(ray.get(scores.goes_on.remote(trial.number, done)))
