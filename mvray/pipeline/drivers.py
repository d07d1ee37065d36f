"""Which driver runs which kind of step. Another kind is a class in experiment/steps.py, a driver, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from mvray.cluster import Cluster
from mvray.experiment import Generate, Measure, Step, Train
from mvray.pipeline import generate, measure, train
from mvray.pipeline.plan import Planned

Driver = Callable[[Planned, Cluster], dict[str, float]]
"""Executes a step to its end; returns its numbers. It goes on from what an earlier attempt has left."""

DRIVERS: dict[type[Step], Driver] = {
    Train: train.run,
    Generate: generate.run,
    Measure: measure.run,
}
