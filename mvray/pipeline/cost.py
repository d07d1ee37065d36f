"""What a step has cost: wall time, CPU-hours, GPU-hours, and money where a price is set.

A CostMeter runs beside every step and writes its sum to the step's folder (spent/<attempt>.json) at
intervals, so that interrupted and killed attempts are counted too, all but their last seconds.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mvray.tracking import duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mvray.experiment import Scale
    from mvray.storage import Storage

KEEP_EVERY_S = 15.0


@dataclass(frozen=True)
class Cost:
    """``seconds`` of wall time; hours of CPUs and GPUs that were held; ``cost`` in the currency of the prices."""

    seconds: float = 0.0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    cost: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.cpu_hours + other.cpu_hours,
            self.gpu_hours + other.gpu_hours,
            self.cost + other.cost,
        )


class CostMeter:
    """Runs while a step does. Not thread-safe: one thread calls it."""

    def __init__(self, folder: Storage, scale: Scale) -> None:
        self._folder, self._name = folder, f"spent/{uuid.uuid4().hex}.json"
        self._prices = scale.price_per_cpu_hour, scale.price_per_gpu_hour
        self._sum = Cost()
        self._read_at = self._kept_at = time.monotonic()

    def read(self, cpus: float, gpus: float) -> None:
        """So many CPUs and GPUs were held since the last reading."""
        now = time.monotonic()
        hours, self._read_at = (now - self._read_at) / 3600, now
        money = hours * (cpus * self._prices[0] + gpus * self._prices[1])
        self._sum += Cost(hours * 3600, hours * cpus, hours * gpus, money)
        if now - self._kept_at > KEEP_EVERY_S:
            self.keep()

    def keep(self) -> None:
        """Write the account down; where that fails, the next one has it all."""
        self._kept_at = time.monotonic()
        self._folder.try_write(self._name, json.dumps(asdict(self._sum)).encode())


def total(folder: Storage) -> Cost:
    """What all attempts at the step in ``folder`` have cost."""
    cost = Cost()
    for entry in folder.list("spent"):
        fields = folder.read_json(entry.path, dict)
        try:
            cost += Cost(**fields)
        except TypeError as error:
            raise folder.damaged(entry.path, str(error)) from error
    return cost


def as_metrics(cost: Cost) -> dict[str, float]:
    """For MLflow: "spent/seconds", and what of the others is not zero."""
    values = asdict(cost)
    return {f"spent/{name}": value for name, value in values.items() if value or name == "seconds"}


def as_text(rows: Iterable[tuple[str, Cost]]) -> str:
    """A table for people, with a last line for all; columns that are zero everywhere are left out."""
    rows = list(rows)
    everything = sum((cost for _, cost in rows), Cost())
    shown = [("step", [name for name, _ in (*rows, ("in all", everything))])]
    costs = [cost for _, cost in (*rows, ("", everything))]
    shown.append(("wall time", [duration(cost.seconds) for cost in costs]))
    for title, values in (
        ("CPU-hours", [cost.cpu_hours for cost in costs]),
        ("GPU-hours", [cost.gpu_hours for cost in costs]),
        ("cost", [cost.cost for cost in costs]),
    ):
        if values[-1]:
            digits = 2 if values[-1] >= 1 else 4
            shown.append((title, [f"{value:.{digits}f}" for value in values]))
    columns = [[title, *cells] for title, cells in shown]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for cells in zip(*columns, strict=True):
        numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        lines.append("   ".join([cells[0].ljust(widths[0]), *numbers]))
    return "\n".join(lines)
