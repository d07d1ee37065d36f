"""Where results come from: versions of packages, the git commit, what `mvray submit` sent."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

NOTE = ".mvray-shipped.json"
"""Beside code that `mvray submit` sent to a cluster: the commit that it is, and the versions that it needs."""


def versions() -> dict[str, str]:
    """Versions of what decides results."""
    names = ("mvray", "torch", "torchvision", "ray", "numpy", "pillow", "pyarrow", "mlflow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def shipped(folder: Path | None = None) -> dict[str, Any] | None:
    """The note that `mvray submit` put beside the code in ``folder`` (default: the working folder), if it did."""
    try:
        note: dict[str, Any] = json.loads(((folder or Path()) / NOTE).read_bytes())
    except FileNotFoundError:
        return None
    return note


def git_commit(folder: Path | None = None) -> str | None:
    """The commit of ``folder`` (default: the working folder), with "+" where files differ from it; None outside git.

    Of code that was sent to a cluster, the commit that it was sent from.
    """
    if note := shipped(folder):
        return note["commit"] or None
    try:
        head = _git(folder, "rev-parse", "HEAD", check=True)
        changed = _git(folder, "status", "--porcelain", "-uno", check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(folder: Path | None, *words: str, check: bool) -> str:
    process = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=5, check=check)
    return process.stdout.strip()
