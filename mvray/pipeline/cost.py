"""What a step has cost: wall time, CPU-hours, GPU-hours, and money where a price is set.

A meter runs beside every step and keeps its account in the step's folder (spent/<attempt>.json), now and
then, so that interrupted and killed attempts are counted too, all but their last seconds.
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
class Spent:
    """``seconds`` of wall time; hours of CPUs and GPUs that were held; ``cost`` in the currency of the prices."""

    seconds: float = 0.0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    cost: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.seconds + other.seconds,
            self.cpu_hours + other.cpu_hours,
            self.gpu_hours + other.gpu_hours,
            self.cost + other.cost,
        )


class Meter:
    """Runs while a step does. Not thread-safe: one thread calls it."""

    def __init__(self, folder: Storage, scale: Scale) -> None:
        self._folder, self._name = folder, f"spent/{uuid.uuid4().hex}.json"
        self._prices = scale.price_per_cpu_hour, scale.price_per_gpu_hour
        self._sum = Spent()
        self._read_at = self._kept_at = time.monotonic()

    def read(self, cpus: float, gpus: float) -> None:
        """So many CPUs and GPUs were held since the last reading."""
        now = time.monotonic()
        hours, self._read_at = (now - self._read_at) / 3600, now
        cost = hours * (cpus * self._prices[0] + gpus * self._prices[1])
        self._sum += Spent(hours * 3600, hours * cpus, hours * gpus, cost)
        if now - self._kept_at > KEEP_EVERY_S:
            self.keep()

    def keep(self) -> None:
        """Write the account down; where that fails, the next one has it all."""
        self._kept_at = time.monotonic()
        self._folder.try_write(self._name, json.dumps(asdict(self._sum)).encode())


def total(folder: Storage) -> Spent:
    """What all attempts at the step in ``folder`` have cost."""
    spent = Spent()
    for entry in folder.list("spent"):
        kept = folder.read_json(entry.path, dict)
        try:
            spent += Spent(**kept)
        except TypeError as error:
            raise folder.damaged(entry.path, str(error)) from error
    return spent


def as_metrics(spent: Spent) -> dict[str, float]:
    """For MLflow: "spent/seconds", and what of the others is not zero."""
    values = asdict(spent)
    return {f"spent/{name}": value for name, value in values.items() if value or name == "seconds"}


def as_text(rows: Iterable[tuple[str, Spent]]) -> str:
    """A table for people, with a last line for all; columns that are zero everywhere are left out."""
    rows = list(rows)
    everything = sum((spent for _, spent in rows), Spent())
    shown = [("step", [name for name, _ in (*rows, ("in all", everything))])]
    each = [spent for _, spent in (*rows, ("", everything))]
    shown.append(("wall time", [duration(spent.seconds) for spent in each]))
    for title, values in (
        ("CPU-hours", [spent.cpu_hours for spent in each]),
        ("GPU-hours", [spent.gpu_hours for spent in each]),
        ("cost", [spent.cost for spent in each]),
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
