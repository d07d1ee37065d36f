"""What a long command says: one honest line while it works, in words that people use."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import Any


class Progress:
    """One line on a terminal, rewritten in place; nothing where the output is not a terminal."""

    def __init__(self, out: Any = None) -> None:
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._lock = threading.Lock()
        self._parts: dict[str, str] = {}
        self._width = 0

    def show(self, key: str, text: str | None) -> None:
        """Set what is shown for ``key``; None takes it away."""
        with self._lock:
            if text is None:
                self._parts.pop(key, None)
            else:
                self._parts[key] = text
            if self._live:
                self._draw("   ".join(self._parts.values()))

    def say(self, line: str) -> None:
        """A line that stays."""
        with self._lock:
            if self._live:
                self._draw("")
            print(line, file=self._out, flush=True)

    def _draw(self, text: str) -> None:
        text = text[: shutil.get_terminal_size().columns - 1]
        self._out.write("\r" + text.ljust(self._width) + ("\r" if not text else ""))
        self._out.flush()
        self._width = len(text)


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 90:
        return f"{seconds} s"
    if seconds < 5400:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def now() -> str:
    """The time as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
