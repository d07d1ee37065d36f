"""What a long command says while it works."""

from __future__ import annotations

import io
import os
import re
import shutil
import time

import pytest

from mvray.tracking.terminal import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(said: str) -> list[str]:
    """What a terminal shows after ``said``: \\r, \\n, cursor up and erase-below are all that is used."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[A-Z]|\r|\n|[^\x1b\r\n]+", said):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A"):
            row -= int(part[2:-1])
        elif part.endswith("J"):
            lines[row] = lines[row][:column]
            del lines[row + 1 :]
        else:
            lines[row] = lines[row][:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return lines


def test_a_line_for_each_thing_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((30, 20)))
    out = Terminal()
    progress = Progress(out)
    progress.say("begun")
    progress.show("a", "a: 1/9")
    progress.show("b", "b: 1/9 " + "long " * 10)
    progress.show("a", "a: 2/9")
    assert screen(out.getvalue()) == ["begun", "a: 2/9", ("b: 1/9 " + "long " * 10)[:29]]
    progress.show("b", None)
    progress.say("b: done")
    assert screen(out.getvalue()) == ["begun", "b: done", "a: 2/9"]
    progress.show("a", None)
    progress.say("a: done")
    assert screen(out.getvalue())[:3] == ["begun", "b: done", "a: done"]


def test_more_lines_than_the_terminal_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((30, 5)))
    out = Terminal()
    progress = Progress(out)
    for number in range(8):
        progress.show(str(number), f"step {number}")
    assert screen(out.getvalue()) == ["step 0", "step 1", "step 2", "... and 5 more"]


def test_elsewhere_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    out = io.StringIO()
    progress = Progress(out)
    for second in range(200):
        now[0] = float(second)
        progress.show("a", f"a: {second}/200")
    progress.show("a", None)
    progress.say("a: done")
    assert out.getvalue().splitlines() == ["a: 61/200", "a: 122/200", "a: 183/200", "a: done"]
