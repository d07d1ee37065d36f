"""mvray: distributed training on Ray for methods about where a network looks and how it groups what it sees.

Write an experiment as a `Job` of steps, and `run` it. What is named here is imported when it is first used, so that
``import mvray`` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvray.api import Result, SearchResult, load, report, run, tune
    from mvray.experiment import (
        LAST,
        Choice,
        ClassMaps,
        Clips,
        Column,
        Data,
        Generate,
        Groups,
        Integers,
        Job,
        LogUniform,
        Masks,
        Matches,
        Measure,
        Optim,
        Pictures,
        Row,
        Scale,
        Search,
        Sheet,
        Table,
        Train,
        Uniform,
    )

__version__ = "0.1.0"

_API = ("Result", "SearchResult", "load", "report", "run", "tune")
__all__ = [
    "LAST",
    "Choice",
    "ClassMaps",
    "Clips",
    "Column",
    "Data",
    "Generate",
    "Groups",
    "Integers",
    "Job",
    "LogUniform",
    "Masks",
    "Matches",
    "Measure",
    "Optim",
    "Pictures",
    "Result",
    "Row",
    "Scale",
    "Search",
    "SearchResult",
    "Sheet",
    "Table",
    "Train",
    "Uniform",
    "load",
    "report",
    "run",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("mvray.api" if name in _API else "mvray.experiment"), name)
