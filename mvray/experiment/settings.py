"""Settings: frozen dataclasses with a stable name of their own, by which ids and step.json know them.

So a class may move to another module without any step getting another id. Within a ``family`` (what kind of part it
is) a ``kind`` is unique.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

from mvray.errors import SettingError

S = TypeVar("S", bound="Settings")

CATALOGUE = (
    "mvray.data.readers",
    "mvray.generators",
    "mvray.generators.segmenters",
    "mvray.methods",
    "mvray.metrics",
)
"""Packages whose faces import every settings class that mvray has beside those of a job itself."""


class Settings:
    """What every settings class is: a frozen dataclass that declares its ``kind``.

    ``version`` grows when results change with equal settings. A class that declares no kind, as one of your own may, is
    known as "module.Class".
    """

    family: ClassVar[str] = "settings"
    kind: ClassVar[str] = ""
    version: ClassVar[int] = 1


def kind_of(cls: type[Settings]) -> str:
    """The stable name of a settings class."""
    return str(vars(cls).get("kind") or f"{cls.__module__.rpartition('.')[2]}.{cls.__qualname__}")


def kinds(base: type[S]) -> dict[str, type[S]]:
    """The settings classes below ``base`` that can be built, by name: mvray's, and those that were imported."""
    for package in CATALOGUE:
        importlib.import_module(package)
    classes: dict[str, type[S]] = {}
    for cls in _below(base, base.family):
        name = kind_of(cls)
        if name in classes and classes[name] is not cls and _is_current(classes[name]) and _is_current(cls):
            raise SettingError(
                f"{_place(classes[name])} and {_place(cls)} are both named {name!r}; expected one {base.family} of "
                "that name. Give one of them another `kind`."
            )
        if name not in classes or _is_current(cls):
            classes[name] = cls
    return dict(sorted(classes.items(), key=lambda item: (not item[1].__module__.startswith("mvray."), item[0])))


def _below(base: type[S], family: str) -> Iterator[type[S]]:
    for cls in base.__subclasses__():
        declares = "kind" in vars(cls) or not cls.__module__.startswith("mvray.")
        if declares and not inspect.isabstract(cls) and cls.family == family:
            yield cls
        yield from _below(cls, family)


def _is_current(cls: type) -> bool:
    """Whether its module still has this very class: a notebook's cell, or a file that is loaded again, makes others."""
    part: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        part = getattr(part, name, None)
    return part is cls


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
