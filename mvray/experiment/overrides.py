"""`--set` and a search's samples: a job with settings changed by dotted name."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mvray.errors import SettingError
from mvray.experiment import steps
from mvray.experiment.inputs import Clips, Pictures
from mvray.experiment.job import Job
from mvray.experiment.search_space import Search
from mvray.experiment.serialisation import SWITCHED, flat
from mvray.experiment.settings import Settings, kinds
from mvray.experiment.source import Source
from mvray.experiment.steps import Data, Scale, Step

T = TypeVar("T")

JOB_WIDE: dict[str, Any] = {
    "source": Source,
    "pictures": (Pictures, Clips),
    "data": Data,
    "scale": Scale,
    "search": Search,
}
"""Settings that every part of a job shares: `--set pictures.height=224` changes them everywhere."""

REPLACEABLE = tuple(base.family for base in SWITCHED)
"""The settings whose value is a part of which there are many kinds."""
_KEYS_INSIDE = re.compile(r"(\w+)://(?:[^/\s?#]*@|(?<=s3://)[^/\s?#'\"]*:\S)", re.IGNORECASE)
"""An address with "@" before its path or, as half of all secret keys for S3 have "/", with ":" in the bucket."""


def replaced(job: Job, changes: Mapping[str, Any]) -> Job:
    """``job`` with settings changed by dotted name.

    A name is ``STEP.path`` ("masked.method.probability"), or job-wide: "source.", "pictures.",
    "scale.", "search." and "seeds", for every such part that has the setting. Values may be text, as typed on
    a command line. The value of a part of which there are many kinds (source, method, generator, segmenter) may be
    the name of another kind. Raises SettingError that lists what exists where a name is
    unknown, where a value has the wrong type, or where one is an address with a password.
    """
    _check_addresses(changes)
    # A part of another kind first: what is set in it would be lost with the old one.
    for name in sorted(changes, key=lambda name: name.rpartition(".")[2] not in REPLACEABLE):
        job = _replaced_one(job, name, changes[name])
    for step in job.walk():
        _check_addresses({f"{step.name}.{name}": value for name, value in flat(step).items()})
    _check_addresses(flat(job.search, "search"))
    return _rebuilt(job, _checked)


def _check_addresses(settings: Mapping[str, Any]) -> None:
    """Raises SettingError for a user or password in an address: step.json and MLflow show settings to others."""
    for name, value in settings.items():
        if match := _KEYS_INSIDE.search(str(value)):
            raise SettingError(
                f"{name}: found a user or password before '@' in an address ({match[1]}://...); expected one without "
                "(and no ':' in a bucket's name), because settings are written to step.json, MLflow and the list of "
                "jobs. Copy the file to this machine or to s3://, where access is by a role or by AWS's own variables."
            )


def _replaced_one(job: Job, name: str, value: Any) -> Job:
    head, *path = name.split(".")
    if name == "seeds":
        return _with(job, seeds=_coerced(value, tuple[int, ...], name))
    steps: dict[str, Any] = {step.name: type(step) for step in job.walk()}
    if head in steps and path:
        return _rebuilt(job, lambda part: _set(part, path, value, name) if _named(part, head) else part)
    if head in JOB_WIDE:
        kind = JOB_WIDE[head]
        if path:
            kinds = _kinds(job, kind)
            if not kinds:
                raise SettingError(f"--set {name}: the job {job.name!r} has no {head}.")
            matching = {kind for kind in kinds if path[0] in {f.name for f in dataclasses.fields(kind)}} or kinds
            return _rebuilt(job, lambda part: _set(part, path, value, name) if type(part) in matching else part)
        return _rebuilt(job, lambda part: _set(part, [head], value, name) if isinstance(part, Data) else part)
    if head in steps:
        names = [f.name for f in dataclasses.fields(steps[head])]
        raise SettingError(f"--set {name}: {head} is a step; name one of its settings: {', '.join(names)}.")
    raise SettingError(
        f"--set {name}: nothing in the job {job.name!r} is named {head!r}{_nearest(head, [*steps, *JOB_WIDE])}. "
        f"Expected STEP.SETTING with a step of {', '.join(steps)}, or one of {', '.join(JOB_WIDE)}, seeds."
    )


def _kinds(job: Job, base: Any) -> set[type]:
    """The types of the job's parts that are of kind ``base``: it may have pictures as well as clips."""
    classes: set[type] = set()

    def note(part: Any) -> Any:
        if isinstance(part, base):
            classes.add(type(part))
        return part

    _rebuilt(job, note)
    return classes


def _named(part: Any, name: str) -> bool:
    return isinstance(part, Step) and part.name == name


def _rebuilt(job: Job, change: Callable[[Any], Any]) -> Job:
    """``job`` with ``change`` applied to every part, innermost first; what was shared stays shared."""
    replacements: dict[int, tuple[Any, Any]] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(visit(item) for item in value)
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return value
        if id(value) not in replacements:
            fields = {f.name: visit(getattr(value, f.name)) for f in dataclasses.fields(value)}
            same = all(fields[name] is getattr(value, name) for name in fields)
            replacements[id(value)] = (value, change(value if same else _with(value, **fields)))
        return replacements[id(value)][1]

    rebuilt: Job = visit(job)
    return rebuilt


def _set(part: T, path: list[str], value: Any, setting: str) -> T:
    name, *rest = path
    fields = {f.name: f for f in dataclasses.fields(part)}  # type: ignore[arg-type]
    names = list(fields)
    if name not in names:
        raise SettingError(
            f"--set {setting}: {type(part).__name__} has no setting {name!r}{_nearest(name, names)}. "
            f"It has: {', '.join(names)}."
        )
    current = getattr(part, name)
    if rest:
        if not dataclasses.is_dataclass(current):
            raise SettingError(f"--set {setting}: {name!r} is {current!r} and has no settings of its own.")
        return _with(part, **{name: _set(current, rest, value, setting)})
    if isinstance(current, SWITCHED) and isinstance(value, str):
        return _with(part, **{name: _of_kind(value, current, setting)})
    new_value = _coerced(value, _hints(type(part))[name], setting)
    if fields[name].metadata.get("file") and new_value and "://" not in new_value:
        new_value = str(Path(new_value).expanduser().absolute())  # Ray's workers have another working folder
    return _with(part, **{name: new_value})


def _with(part: T, **changes: Any) -> T:
    """``part`` with other fields, unchecked: values may only be valid together with those that are set next."""
    changed = object.__new__(type(part))
    for f in dataclasses.fields(part):  # type: ignore[arg-type]
        object.__setattr__(changed, f.name, changes.get(f.name, getattr(part, f.name)))
    return changed


def _checked(part: T) -> T:
    if check := getattr(part, "__post_init__", None):
        check()
    return part


def _of_kind(name: str, current: Settings, setting: str) -> Any:
    """Settings of the kind ``name`` in the place of ``current``, keeping the root and the step looked through."""
    base = next(base for base in SWITCHED if isinstance(current, base))
    classes = kinds(base)
    if name not in classes:
        raise SettingError(
            f"--set {setting}={name}: there is no {base.family} {name!r}{_nearest(name, list(classes))}. "
            f"There are: {', '.join(classes)}."
        )
    cls: Any = classes[name]
    if isinstance(current, cls):
        return current
    both = {f.name for f in dataclasses.fields(cls)} & {f.name for f in dataclasses.fields(current)}  # type: ignore[arg-type]
    return cls(**{name: getattr(current, name) for name in ("root", "of") if name in both})


_KINDS = {bool: "true or false", int: "a whole number, such as 2", float: "a number, such as 0.5", str: "text"}


def _coerced(value: Any, hint: Any, name: str) -> Any:
    """``value``, which may be text, as the type that ``hint`` asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value in (None, "none", "None", "") and type(None) in arguments:
            return None
        return _coerced(value, next(a for a in arguments if a is not type(None)), name)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [v for v in str(value).strip("()[]").split(",") if v]
        hints = [arguments[0]] * len(items) if arguments[-1] is ... else arguments
        if len(items) != len(hints):
            raise SettingError(f"--set {name}={value}: expected {len(hints)} values, with commas between them.")
        return tuple(_coerced(item, item_hint, name) for item, item_hint in zip(items, hints, strict=True))
    if origin is typing.Literal:
        if chosen := [argument for argument in arguments if value == argument or str(value) == str(argument)]:
            return chosen[0]
        raise SettingError(f"--set {name}={value}: expected one of {', '.join(map(str, arguments))}.")
    if hint is bool and str(value).lower() in ("true", "false", "1", "0", "yes", "no"):
        return str(value).lower() in ("true", "1", "yes")
    if hint in (int, float, str):
        try:
            coerced = hint(value.strip() if isinstance(value, str) else value)
            if isinstance(value, str) or coerced == value:
                return coerced
        except (TypeError, ValueError):
            pass
    if isinstance(hint, type) and issubclass(hint, Settings):
        inside = ", ".join(f"{name}.{f.name}" for f in dataclasses.fields(hint)[:4])  # type: ignore[arg-type]
        raise SettingError(f"--set {name}={value}: {name} has settings of its own; expected one of them, as {inside}.")
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        values = ", ".join(repr(member.value) for member in hint)
        raise SettingError(
            f"--set {name}={value}: {name} is an Enum, {hint.__name__}, which step.json cannot hold; expected it "
            f"annotated as Literal[{values}]. Change the settings class so."
        )
    kind = _KINDS.get(hint) or f"a value of type {getattr(hint, '__name__', hint)}"
    raise SettingError(f"--set {name}={value}: expected {kind}.")


def _hints(cls: type) -> dict[str, Any]:
    # Some files import the names of steps for type checkers only.
    return typing.get_type_hints(cls, localns=vars(steps))


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
