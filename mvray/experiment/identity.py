"""A step's id: a hash of everything that decides its result.

That is its own settings, the versions of its method, generator and reader, the fingerprint of its data, its seed,
and the ids of its inputs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mvray.errors import DataError, SettingError
from mvray.experiment.steps import Step

T = TypeVar("T")


def name_of(thing: Any) -> str:
    """A class or function as "module:name"."""
    return f"{thing.__module__}:{thing.__qualname__}"


def described(value: Any, step_id: Callable[[Step], str]) -> Any:
    """``value`` as plain JSON, without what does not change results; steps become their ids."""
    if isinstance(value, Step):
        return step_id(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields: dict[str, Any] = {}
        for f in dataclasses.fields(value):
            if f.metadata.get("identity", True):
                given = getattr(value, f.name)
                fields[f.name] = _content(given) if f.metadata.get("file") else described(given, step_id)
        return {"class": name_of(type(value)), "version": getattr(value, "version", 1), **fields}
    if isinstance(value, tuple | list):
        return [described(item, step_id) for item in value]
    if callable(value):
        return {"function": name_of(value), "text": _text(value)}
    # 7 in a job file and 7.0 from --set are the same setting.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(function: Callable[..., Any]) -> str:
    """The hash of a function's text: a changed function gives other results. Raises SettingError for a lambda."""
    if getattr(function, "__qualname__", "<lambda>").endswith("<lambda>"):
        raise SettingError(f"{function} has no name; expected a function made with def, so that it can be told apart.")
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]


def _content(file: str) -> str:
    """The hash of a file's content, "" for no file, an address as it is. Raises DataError where it is not there."""
    if "://" in file:
        return file
    if not file:
        return ""
    try:
        with Path(file).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); expected the file that a setting names.") from None


def without_files(config: T) -> T:
    """``config`` without what its files give: enough to build what trained weights are loaded into."""
    files = {f.name: "" for f in dataclasses.fields(config) if f.metadata.get("file")}  # type: ignore[arg-type]
    return dataclasses.replace(config, **files)  # type: ignore[type-var]


def identify(step: Step, seed: int, fingerprint: str, step_id: Callable[[Step], str]) -> str:
    """The id of ``step``: 12 hexadecimal digits."""
    own = {f.name: getattr(step, f.name) for f in dataclasses.fields(step) if f.name != "name"}
    visible = {f.name for f in dataclasses.fields(step) if f.metadata.get("identity", True)}
    content = {
        "kind": type(step).__name__,
        "settings": {k: described(v, step_id) for k, v in own.items() if k in visible},
        "data": fingerprint,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
