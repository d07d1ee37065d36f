"""MLflow: what is told to it, kept while it is away, and shown by it; lines on the terminal."""

from mvray.tracking.mlflow_server import add_user, serve
from mvray.tracking.mlflow_store import REUSED, STEP_ID, without_password
from mvray.tracking.mlflow_ui import check, page, ui
from mvray.tracking.outbox import Outbox
from mvray.tracking.outbox_backup import waiting_for
from mvray.tracking.places import outbox_folder, refuge, tracking_uri, where_tracked
from mvray.tracking.redact import plain_addresses, redacted_all
from mvray.tracking.system_metrics import load, loopback
from mvray.tracking.terminal import Progress, duration, now
from mvray.tracking.tracker import Tracker, deliver

__all__ = [
    "REUSED",
    "STEP_ID",
    "Outbox",
    "Progress",
    "Tracker",
    "add_user",
    "check",
    "deliver",
    "duration",
    "load",
    "loopback",
    "now",
    "outbox_folder",
    "page",
    "plain_addresses",
    "redacted_all",
    "refuge",
    "serve",
    "tracking_uri",
    "ui",
    "waiting_for",
    "where_tracked",
    "without_password",
]
