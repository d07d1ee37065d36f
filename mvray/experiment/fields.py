"""What a field of a settings class is to the step's id, and the check that most of them need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvray.errors import SettingError

NOT_IDENTITY: Mapping[str, Any] = {"identity": False}
"""Metadata of a field that changes how a step is executed (where data lies, how many workers), not what it makes."""
FILE: Mapping[str, Any] = {"file": True}
"""Metadata of a field that names a file ("" for none), which counts by its content."""


ADDED: Mapping[str, Any] = {"added": True}
"""Metadata of a field that a later release has added: where it has its default it does not count, so ids stay."""


def check_above_0(part: Any, part_name: str, *names: str, or_0: bool = False) -> None:
    """Raises SettingError where a number is not above 0 (None is left out); NaN and infinity are not."""
    for name, number in ((name, getattr(part, name)) for name in names):
        if number is not None and not (0 < number < float("inf") or (or_0 and number == 0)):
            expected = "0 or more" if or_0 else "a value above 0"
            raise SettingError(f"{part_name}.{name} is {number}; expected {expected}.")
