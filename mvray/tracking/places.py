"""Where runs are kept: MLflow's address, and where events wait while nobody answers there."""

from __future__ import annotations

import os
from pathlib import Path

from mvray.experiment import shipped
from mvray.storage import Storage
from mvray.tracking.mlflow_store import without_password
from mvray.tracking.system_metrics import loopback


def tracking_uri(storage: Storage) -> str:
    """MLFLOW_TRACKING_URI, as MLflow defines it, else SQLite in the storage (on S3: on this machine).

    Code that was sent here may know a loopback address of the submitter's, which counts on the submitter's own machine.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if (submitter := _submitters()) and submitter["loopback"] == loopback():
        return submitter["uri"]
    return f"sqlite:///{storage.local() or _own_place()}/mlflow.db"


def _submitters() -> dict[str, str]:
    """MLflow at a loopback address of the machine from which the code was sent here, if it was; "uri", "loopback"."""
    addresses: dict[str, str] = (shipped() or {}).get("mlflow", {})
    return addresses


def where_tracked(storage: Storage) -> str:
    """A line for the log of code that was sent here, whose submitter cannot know it; "" for other code."""
    if shipped() is None:
        return ""
    uri, other = without_password(tracking_uri(storage)), _submitters().get("uri", "")
    return f"Tracked in MLflow at {uri}" + (f", not at the submitter's {other}." if other not in ("", uri) else ".")


def outbox_folder(storage: Storage) -> Path:
    """Where events wait on this machine until MLflow has them."""
    return (storage.local() or _own_place()) / ".spool"


def _own_place() -> Path:
    """Where this machine keeps what cannot lie on S3: ./runs, or for code that was sent here, whose folder goes again,
    ~/.mvray/runs."""
    return Path.home() / ".mvray" / "runs" if shipped() else Path("runs").absolute()


def refuge(storage: Storage) -> Storage | None:
    """Where events wait that this machine might take along when it vanishes: the storage, if that is elsewhere."""
    return None if storage.is_local else storage
