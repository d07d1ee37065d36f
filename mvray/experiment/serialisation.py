"""Steps as the JSON in step.json and back, and as the dotted settings that MLflow shows."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
from typing import Any

from mvray.errors import SettingError
from mvray.experiment.contracts import GeneratorConfig, MethodConfig, Metric, SegmenterConfig
from mvray.experiment.job_file import is_from_a_job
from mvray.experiment.settings import Settings, kind_of, kinds
from mvray.experiment.source import Source
from mvray.experiment.steps import Step

FAMILIES: dict[str, type[Settings]] = {
    base.family: base for base in (Settings, Step, Source, MethodConfig, GeneratorConfig, SegmenterConfig, Metric)
}
SWITCHED = (Source, MethodConfig, GeneratorConfig, SegmenterConfig)
"""Parts of which there are many kinds: the settings name the one that is used."""


def encoded(value: Any) -> Any:
    """``value`` as JSON from which `decoded` builds it again."""
    if isinstance(value, Settings) and dataclasses.is_dataclass(value):
        fields = {f.name: encoded(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {value.family: kind_of(type(value)), "fields": fields}
    if isinstance(value, tuple | list):
        return [encoded(item) for item in value]
    if callable(value):
        return {"function": f"{value.__module__}:{value.__qualname__}"}
    return value


def decoded(value: Any) -> Any:
    """The object that `encoded` described. Raises SettingError for what is of another version, or not mvray's.

    Only settings classes of mvray and of code that this process has imported by itself (a job's own) are built, and
    functions of a job's own. Nothing is imported because a file names it.
    """
    if isinstance(value, list):
        return tuple(decoded(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "function" in value:
        return _function(str(value["function"]))
    family = next(iter(value), "")
    if "fields" not in value or family not in FAMILIES:
        raise SettingError(
            f"Found {str(value)[:80]} in a step's settings; expected those of this version of mvray. A step of an "
            "older version is made again by running its job again."
        )
    classes = kinds(FAMILIES[family])
    if value[family] not in classes:
        raise SettingError(
            f"A step's settings name the {family} {value[family]!r}, which is none of mvray's ({', '.join(classes)}). "
            "If it is your own, give the job file that has it: --job FILE (in Python: import it before)."
        )
    cls: Any = classes[value[family]]
    try:
        return cls(**{name: decoded(item) for name, item in value["fields"].items()})
    except TypeError as error:
        raise SettingError(f"These settings are of another version of mvray: {error}.") from None


def _function(name: str) -> Any:
    """The function ``name``, "module:function", of a job that was loaded."""
    module, _, attribute = name.partition(":")
    function = None
    if module in sys.modules:
        function = getattr(importlib.import_module(module), attribute, None)
    if not (isinstance(function, types.FunctionType) and is_from_a_job(function)):
        raise SettingError(
            f"{name} is no function of a job that was loaded. If it is your own, give the job file that has it: "
            "--job FILE (in Python: import it before)."
        )
    return function


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, as MLflow shows them; steps appear by their names."""
    if isinstance(value, Step) and prefix:
        return {prefix: value.name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = {prefix: kind_of(type(value))} if isinstance(value, SWITCHED) else {}
        for f in dataclasses.fields(value):
            shown |= flat(getattr(value, f.name), f"{prefix}.{f.name}" if prefix else f.name)
        return shown
    if isinstance(value, tuple | list):
        plain = [item.name if isinstance(item, Step) else _shown(item) for item in value]
        return {prefix: ", ".join(str(item) for item in plain)}
    return {prefix: _shown(value)}


def _shown(value: Any) -> Any:
    if isinstance(value, Settings):
        return str(value) if dataclasses.fields(value) else kind_of(type(value))  # type: ignore[arg-type]
    return value.__name__ if isinstance(value, types.FunctionType) else value
