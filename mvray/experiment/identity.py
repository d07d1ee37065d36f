"""A step's id: a hash of everything that decides its result.

That is its own settings, the versions of its method, generator and reader, the fingerprint of its data, its seed,
and the ids of its inputs. Where code lies, and what its comments say, does not count.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mvray.errors import DataError, SettingError
from mvray.experiment.settings import Settings, kind_of
from mvray.experiment.steps import Step

T = TypeVar("T")


def described(value: Any, step_id: Callable[[Step], str]) -> Any:
    """``value`` as plain JSON, without what does not change results; steps become their ids.

    Raises SettingError for a dataclass that is no Settings, and for a function that has no name.
    """
    if isinstance(value, Step):
        return step_id(value)
    if isinstance(value, Settings):
        return {value.family: kind_of(type(value)), "version": value.version, **_fields(value, step_id)}
    if isinstance(value, tuple | list):
        return [described(item, step_id) for item in value]
    if dataclasses.is_dataclass(value):
        raise SettingError(f"{type(value)} is no settings class; let it inherit from mvray.experiment.Settings.")
    if callable(value):
        return {"function": value.__name__, "code": code_of(value)}
    # 7 in a job file and 7.0 from --set are the same setting.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fields(part: Any, step_id: Callable[[Step], str], *without: str) -> dict[str, Any]:
    content = {}
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if f.metadata.get("added") and value == f.default:
            continue
        if f.metadata.get("identity", True) and f.name not in without:
            _check_plain(value, part, f.name)
            content[f.name] = _content(value) if f.metadata.get("file") else described(value, step_id)
    return content


def _check_plain(value: Any, part: Any, name: str) -> None:
    """Raises SettingError for a value that step.json could not give back as it was, such as an Enum or a dict."""
    if isinstance(value, tuple | list):
        for item in value:
            _check_plain(item, part, name)
        return
    is_enum = isinstance(value, enum.Enum)  # of text, too: step.json would give the text back
    if is_enum or not (value is None or isinstance(value, str | int | float) or _is_described(value)):
        raise SettingError(
            f"{type(part).__qualname__}.{name} is {value!r}; expected text, a number, true or false, None, other "
            'settings, or a tuple of these, which step.json can hold. For one of some values: Literal["mean", "max"].'
        )


def _is_described(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or callable(value)


def code_of(function: Callable[..., Any]) -> str:
    """The hash of a function's code, comments and docstrings left out. Raises SettingError for a lambda."""
    if function.__qualname__.endswith("<lambda>"):
        raise SettingError(f"{function} has no name; expected a function made with def, so that it can be told apart.")
    return syntax_hash(textwrap.dedent(inspect.getsource(function)))


def syntax_hash(source: str) -> str:
    """12 hexadecimal digits for what ``source`` does: comments, docstrings and layout do not count.

    Of the fields that are set alone, so that a release of Python which has others gives the same.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()[:12]


def _plain(part: Any) -> Any:
    if isinstance(part, ast.AST):
        return type(part).__name__, [
            (n, _plain(value)) for n, value in ast.iter_fields(part) if value not in (None, [])
        ]
    return [_plain(item) for item in part] if isinstance(part, list) else part


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
    content = {
        "step": step.kind,
        "settings": _fields(step, step_id, "name"),
        "data": fingerprint,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
