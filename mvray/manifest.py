"""step.json: what a finished step says of itself. It is written last; without it a step does not count."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvray import __version__
from mvray.progress import now
from mvray.redact import plain_addresses, redacted_all
from mvray.settings import encoded, flat

if TYPE_CHECKING:
    from mvray.plan import Planned
    from mvray.spent import Spent

MANIFEST = "step.json"
NOTE = ".mvray-shipped.json"
"""Beside code that `mvray submit` sent to a cluster: the commit that it is, and the versions that it needs."""


def manifest_of(planned: Planned, seconds: float, run: str | None, spent: Spent) -> dict[str, Any]:
    """What step.json says: settings, inputs, data, versions, time; ``spent`` counts earlier attempts too."""
    rows = planned.rows()
    return {
        "name": planned.name,
        "kind": type(planned.step).__name__,
        "id": planned.id,
        "seed": planned.seed,
        "settings": redacted_all(flat(planned.step)),
        # Names of classes must stay, whatever secret variables say. No address in it is used again.
        "step": redacted_all(encoded(planned.step), plain_addresses),
        "inputs": {name: other.id for name, other in planned.inputs.items()},
        "data": {
            "fingerprint": planned.fingerprint,
            "samples": {item["values"]: item["counts"] for item in rows["split"].value_counts().to_pylist()},
            "classes": list(planned.index.classes),
            "unseen": list(planned.index.unseen),
            "bad": len(planned.index.bad),
        },
        "seconds": round(seconds, 3),
        "spent": {name: round(value, 6) for name, value in asdict(spent).items()},
        "finished_at": now(),
        "tracking": run,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Versions of what decides results."""
    names = ("torch", "torchvision", "ray", "numpy", "pillow", "pyarrow", "mlflow")
    return {"python": platform.python_version(), "mvray": __version__, **{name: version(name) for name in names}}


def shipped(folder: Path | None = None) -> dict[str, Any] | None:
    """The note that `mvray submit` put beside the code in ``folder`` (default: the working folder), if it did."""
    try:
        read: dict[str, Any] = json.loads(((folder or Path()) / NOTE).read_bytes())
    except FileNotFoundError:
        return None
    return read


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
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=5, check=check)
    return done.stdout.strip()
