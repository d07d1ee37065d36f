"""step.json: what a finished step says of itself. It is written last; without it a step does not count."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mvray import __version__
from mvray.progress import now
from mvray.settings import encoded, flat

if TYPE_CHECKING:
    from mvray.plan import Planned
    from mvray.spent import Spent

MANIFEST = "step.json"


def manifest_of(planned: Planned, seconds: float, run: str | None, spent: Spent) -> dict[str, Any]:
    """What step.json says: settings, inputs, data, versions, time; ``spent`` counts earlier attempts too."""
    rows = planned.rows()
    return {
        "name": planned.name,
        "kind": type(planned.step).__name__,
        "id": planned.id,
        "seed": planned.seed,
        "settings": flat(planned.step),
        "step": encoded(planned.step),
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


def git_commit() -> str | None:
    """The commit of the working folder, with "+" where files differ from it; None outside git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
