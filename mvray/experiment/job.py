"""An experiment is a graph of frozen value objects: a Job of steps, which point at each other.

A job file (jobs/*.py) holds one function, ``job(tiny=False) -> Job``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from mvray.errors import SettingError
from mvray.experiment.exhibits import Exhibit, Table
from mvray.experiment.search_space import Search
from mvray.experiment.settings import Settings
from mvray.experiment.steps import Step


@dataclass(frozen=True)
class Job(Settings):
    """Steps in any order; what they point at is part of the job too."""

    kind: ClassVar[str] = "job"
    name: str
    steps: tuple[Step, ...]
    table: Table | None = None
    seeds: tuple[int, ...] = (0,)
    sheets: tuple[Exhibit, ...] = ()
    search: Search | None = None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise SettingError(f"seeds is {self.seeds}; expected one or more different numbers from 0 on.")
        names: dict[str, Step] = {}
        for step in self.walk():
            if names.setdefault(step.name, step) is not step and names[step.name] != step:
                raise SettingError(f"Two different steps are named {step.name!r}; a name must be unique in a job.")

    def walk(self) -> Iterator[Step]:
        """Every step once, inputs before the steps that read them."""
        visited: set[int] = set()

        def visit(step: Step) -> Iterator[Step]:
            if id(step) in visited:
                return
            visited.add(id(step))
            for input_ in step.inputs:
                yield from visit(input_)
            yield step

        for step in self.steps:
            yield from visit(step)
