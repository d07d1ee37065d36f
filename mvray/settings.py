"""Jobs as text: dotted settings (`--set`), ids, and the JSON in step.json.

A step's id is a hash of everything that decides its result: its own settings, the versions of its
method, generator and reader, the fingerprint of its data, its seed, and the ids of its inputs.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import mvray.job
from mvray.errors import DataError, SettingError
from mvray.job import Clips, Data, GeneratorConfig, Job, MethodConfig, Pictures, Scale, Search, SegmenterConfig, Step
from mvray.source import Source

T = TypeVar("T")

JOB_WIDE: dict[str, Any] = {
    "source": Source,
    "pictures": (Pictures, Clips),
    "data": Data,
    "scale": Scale,
    "search": Search,
}
"""Settings that every part of a job shares: `--set pictures.height=224` changes them everywhere."""

CATALOGUE = {
    Source: "mvray.data",
    MethodConfig: "mvray.methods",
    GeneratorConfig: "mvray.generators",
    SegmenterConfig: "mvray.segmenters",
}
"""Where `--set source=folder` looks for the class: the module of that name in this package."""
REPLACEABLE = ("source", "method", "generator", "segmenter")
"""The settings whose value is such a class."""
_KEYS_INSIDE = re.compile(r"(\w+)://(?:[^/\s?#]*@|(?<=s3://)[^/\s?#'\"]*:\S)", re.IGNORECASE)
"""An address with "@" before its path or, as half of all secret keys for S3 have "/", with ":" in the bucket."""


def name_of(thing: Any) -> str:
    """A class or function as "module:name"."""
    return f"{thing.__module__}:{thing.__qualname__}"


# -- ids -----------------------------------------------------------------------------------------


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


# -- JSON ----------------------------------------------------------------------------------------


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


# -- changes -------------------------------------------------------------------------------------


def replaced(job: Job, changes: Mapping[str, Any]) -> Job:
    """``job`` with settings changed by dotted name.

    A name is ``STEP.path`` ("masked.method.probability"), or job-wide: "source.", "pictures.",
    "scale.", "search." and "seeds", for every such part that has the setting. Values may be text, as typed on
    a command line. The value of a part with a catalogue (source, method, generator) may be the name
    of another file of that catalogue. Raises SettingError that lists what exists where a name is
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
        if found := _KEYS_INSIDE.search(str(value)):
            raise SettingError(
                f"{name}: found a user or password before '@' in an address ({found[1]}://...); expected one without "
                "(and no ':' in a bucket's name), because settings are written to step.json, MLflow and the list of "
                "jobs. Copy the file to this machine or to s3://, where access is by a role or by AWS's own variables."
            )


def _replaced_one(job: Job, name: str, value: Any) -> Job:
    head, *path = name.split(".")
    if name == "seeds":
        return _with(job, seeds=_coerced(value, tuple[int, ...], name))
    steps = {step.name: type(step) for step in job.walk()}
    if head in steps and path:
        return _rebuilt(job, lambda part: _set(part, path, value, name) if _named(part, head) else part)
    if head in JOB_WIDE:
        kind = JOB_WIDE[head]
        if path:
            kinds = _kinds(job, kind)
            if not kinds:
                raise SettingError(f"--set {name}: the job {job.name!r} has no {head}.")
            meant = {each for each in kinds if path[0] in {f.name for f in dataclasses.fields(each)}} or kinds
            return _rebuilt(job, lambda part: _set(part, path, value, name) if type(part) in meant else part)
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
    found: set[type] = set()

    def note(part: Any) -> Any:
        if isinstance(part, base):
            found.add(type(part))
        return part

    _rebuilt(job, note)
    return found


def _named(part: Any, name: str) -> bool:
    return isinstance(part, Step) and part.name == name


def _rebuilt(job: Job, change: Callable[[Any], Any]) -> Job:
    """``job`` with ``change`` applied to every part, innermost first; what was shared stays shared."""
    done: dict[int, tuple[Any, Any]] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(visit(item) for item in value)
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return value
        if id(value) not in done:
            fields = {f.name: visit(getattr(value, f.name)) for f in dataclasses.fields(value)}
            same = all(fields[name] is getattr(value, name) for name in fields)
            done[id(value)] = (value, change(value if same else _with(value, **fields)))
        return done[id(value)][1]

    rebuilt: Job = visit(job)
    return rebuilt


def _set(part: T, path: list[str], value: Any, whole: str) -> T:
    name, *rest = path
    fields = {f.name: f for f in dataclasses.fields(part)}  # type: ignore[arg-type]
    names = list(fields)
    if name not in names:
        raise SettingError(
            f"--set {whole}: {type(part).__name__} has no setting {name!r}{_nearest(name, names)}. "
            f"It has: {', '.join(names)}."
        )
    current = getattr(part, name)
    if rest:
        if not dataclasses.is_dataclass(current):
            raise SettingError(f"--set {whole}: {name!r} is {current!r} and has no settings of its own.")
        return _with(part, **{name: _set(current, rest, value, whole)})
    for base, package in CATALOGUE.items():
        if isinstance(current, base) and isinstance(value, str):
            return _with(part, **{name: _from_catalogue(value, base, package, current, whole)})
    made = _coerced(value, _hints(type(part))[name], whole)
    if fields[name].metadata.get("file") and made and "://" not in made:
        made = str(Path(made).expanduser().absolute())  # Ray's workers have another working folder
    return _with(part, **{name: made})


def _with(part: T, **changes: Any) -> T:
    """``part`` with other fields, not checked: values may fit only together with those that are set next."""
    made = object.__new__(type(part))
    for f in dataclasses.fields(part):  # type: ignore[arg-type]
        object.__setattr__(made, f.name, changes.get(f.name, getattr(part, f.name)))
    return made


def _checked(part: T) -> T:
    if check := getattr(part, "__post_init__", None):
        check()
    return part


def _from_catalogue(name: str, base: type, package: str, current: Any, whole: str) -> Any:
    """The settings class of the file ``name`` in ``package``, keeping the root and the step that is looked through."""
    names = [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    found = _class_in(f"{package}.{name}", base) if name in names else None
    if found is None:
        known = [other for other in names if _class_in(f"{package}.{other}", base)]
        raise SettingError(
            f"--set {whole}={name}: there is no such {base.__name__} in {package}{_nearest(name, known)}. "
            f"It has: {', '.join(known)}."
        )
    if isinstance(current, found):
        return current
    own = {f.name for f in dataclasses.fields(found)}
    return found(**{name: getattr(current, name) for name in ("root", "of") if name in own and hasattr(current, name)})


def _class_in(module: str, base: type) -> Any:
    """The class that ``module`` adds to the catalogue of ``base``; None where it adds none."""
    for item in vars(importlib.import_module(module)).values():
        if isinstance(item, type) and issubclass(item, base) and item.__module__ == module:
            return None if inspect.isabstract(item) else item
    return None


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
        return tuple(_coerced(item, each, name) for item, each in zip(items, hints, strict=True))
    if hint is bool and str(value).lower() in ("true", "false", "1", "0", "yes", "no"):
        return str(value).lower() in ("true", "1", "yes")
    if hint in (int, float, str):
        try:
            made = hint(value.strip() if isinstance(value, str) else value)
            if isinstance(value, str) or made == value:
                return made
        except (TypeError, ValueError):
            pass
    wanted = getattr(hint, "__name__", str(hint))
    raise SettingError(f"--set {name}={value}: expected a value of type {wanted}.")


def _hints(cls: type) -> dict[str, Any]:
    # Files of the catalogue import job.py's names for type checkers only.
    return typing.get_type_hints(cls, localns=vars(mvray.job))


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
