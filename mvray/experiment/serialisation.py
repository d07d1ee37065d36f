"""Steps as the JSON in step.json and back, and as the dotted settings that MLflow shows."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
from typing import Any

from mvray.errors import SettingError
from mvray.experiment.contracts import GeneratorConfig, MethodConfig, SegmenterConfig
from mvray.experiment.identity import name_of
from mvray.experiment.source import Source
from mvray.experiment.steps import Step

CATALOGUE = {
    Source: "mvray.data.readers",
    MethodConfig: "mvray.methods",
    GeneratorConfig: "mvray.generators",
    SegmenterConfig: "mvray.generators.segmenters",
}
"""Where `--set source=folder` looks for the class: the module of that name in this package."""


def encoded(value: Any) -> Any:
    """``value`` as JSON from which `decoded` builds it again."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encoded(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": name_of(type(value)), "fields": fields}
    if isinstance(value, tuple | list):
        return [encoded(item) for item in value]
    if callable(value):
        return {"function": name_of(value)}
    return value


def decoded(value: Any) -> Any:
    """The object that `encoded` described.

    Only settings classes and functions of mvray are built, and those of modules that this process has
    imported by itself (a job's own). Nothing is imported because a file names it.
    """
    if isinstance(value, list):
        return tuple(decoded(item) for item in value)
    if isinstance(value, dict) and "function" in value:
        return _function(str(value["function"]))
    if isinstance(value, dict) and "class" in value:
        cls = _settings_class(str(value["class"]))
        try:
            return cls(**{name: decoded(item) for name, item in value["fields"].items()})
        except TypeError as error:
            raise SettingError(f"These settings are of another version of mvray: {error}.") from None
    return value


def _settings_class(name: str) -> Any:
    """The frozen dataclass ``name``: all settings are, and metrics that have settings of their own."""
    cls = _imported(name)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise SettingError(f"{name} is no settings class; this step.json was not written by mvray.")
    return cls


def _function(name: str) -> Any:
    """The function ``name``, of mvray or of a job file that was loaded (`mvray run` names it mvray_job_...)."""
    found = _imported(name)
    ours = name.startswith(("mvray.", "mvray_job_"))
    if not (isinstance(found, types.FunctionType) and ours and found.__module__ == name.partition(":")[0]):
        raise SettingError(f"{name} is no function of mvray or of a job; this step.json was not written by mvray.")
    return found


def _imported(name: str) -> Any:
    """What is called ``name``, "module:attribute". Raises SettingError for modules that are not mvray's or loaded."""
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] != "mvray" and module not in sys.modules:
        raise SettingError(
            f"{name} is named in a step's settings, but is not part of mvray; expected mvray's own, because whoever "
            "can write to the storage could name any module. If it is yours, import it first and use mvray from Python."
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingError(f"{name} is named in a step's settings but cannot be imported: {error}.") from None


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, as MLflow shows them; steps appear by their names."""
    if isinstance(value, Step) and prefix:
        return {prefix: value.name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {prefix: type(value).__module__.rpartition(".")[2]} if _in_catalogue(type(value)) else {}
        for f in dataclasses.fields(value):
            found |= flat(getattr(value, f.name), f"{prefix}.{f.name}" if prefix else f.name)
        return found
    if isinstance(value, tuple | list):
        plain = [item.name if isinstance(item, Step) else _shown(item) for item in value]
        return {prefix: ", ".join(str(item) for item in plain)}
    return {prefix: _shown(value)}


def _shown(value: Any) -> Any:
    return getattr(value, "__name__", str(value)) if callable(value) else value


def _in_catalogue(cls: type) -> bool:
    return any(issubclass(cls, base) for base in CATALOGUE)
