"""What a check of the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

GB: Final = 1e9


@dataclass(frozen=True)
class Finding:
    """What one check found. Of ``bad`` ones, jobs fail; every ``warn`` and ``bad`` has a remedy."""

    name: str
    state: Literal["ok", "info", "warn", "bad"]
    text: str
    remedy: str = ""
