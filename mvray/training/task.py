"""A Train step, ready to be executed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mvray.experiment import Facts, Train


@dataclass(frozen=True)
class SearchTrial:
    """The task is trial ``number`` of a search, whose actor is named ``scores`` (cluster/trial_reports.py).

    Every epoch is reported to that actor. After as many epochs as one of ``waits`` says, training waits for its answer.
    """

    scores: str
    number: int
    waits: tuple[int, ...] = ()


@dataclass(frozen=True)
class Task:
    """A Train step, ready to be executed: sent to every rank.

    ``folder`` is the step's folder; its index.parquet holds the rows of both splits. ``columns``
    are the folders of the Generate steps that are joined; ``start_weights`` is the URI of the
    weights to begin with; ``epochs`` is what is left to train.
    """

    step: Train
    seed: int
    folder: str
    facts: Facts
    epochs: int
    attempt: str = ""
    """Who may write to the folder: its file ``attempt`` names the newest driver that took the step on."""
    columns: tuple[str, ...] = ()
    start_weights: str | None = None
    search_trial: SearchTrial | None = None
