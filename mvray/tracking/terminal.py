"""What a long command says: one honest line while it works, in words that people use."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import Any

SAY_EVERY_S = 60.0
"""How often work that goes on is mentioned where the output is no terminal: the log of a submitted job, a file."""


class Progress:
    """A line for each thing that goes on, rewritten in place on a terminal; elsewhere one now and then."""

    def __init__(self, out: Any = None) -> None:
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._lock = threading.Lock()
        self._parts: dict[str, str] = {}
        self._said_at: dict[str, float] = {}
        self._drawn = 0

    def show(self, key: str, text: str | None) -> None:
        """Set what is shown for ``key``; None takes it away."""
        with self._lock:
            if text is None:
                self._parts.pop(key, None)
                self._said_at.pop(key, None)
            else:
                self._parts[key] = text
            if self._live:
                self._draw()
            elif text and time.monotonic() > self._said_at.setdefault(key, time.monotonic()) + SAY_EVERY_S:
                self._said_at[key] = time.monotonic()
                print(text, file=self._out, flush=True)

    def say(self, line: str) -> None:
        """A line that stays."""
        with self._lock:
            if self._live:
                self._wipe()
            print(line, file=self._out, flush=True)
            if self._live:
                self._draw()

    def _wipe(self) -> None:
        """Take away what `_draw` drew; the cursor is where it began."""
        if self._drawn:
            up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
            self._out.write(f"\r{up}\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        size = shutil.get_terminal_size()
        self._wipe()
        lines = list(self._parts.values())
        if len(lines) >= size.lines:
            lines = [*lines[: size.lines - 2], f"... and {len(lines) - size.lines + 2} more"]
        self._out.write("\n".join(line[: size.columns - 1] for line in lines))
        self._out.flush()
        self._drawn = len(lines)


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
