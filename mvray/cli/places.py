"""mvray ui | doctor: where runs are kept, and what this machine or cluster has."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from mvray.cli.options import FAILED, STORAGE
from mvray.errors import SettingError


def add(commands: Any) -> None:
    ui = commands.add_parser("ui", help="open MLflow on the run store")
    ui.add_argument("--storage", default=STORAGE, metavar="URI")
    ui.add_argument("--port", type=int, default=5000)
    server = ui.add_argument_group("a tracking server with users, for several people and machines")
    server.add_argument("--server", action="store_true", help="run MLflow over PostgreSQL and S3, with passwords")
    server.add_argument("--folder", type=Path, default=Path("mlflow-server"), metavar="DIR", help="its data")
    server.add_argument("--host", default="127.0.0.1", help="where it listens (default: this machine alone)")
    server.add_argument(
        "--artifacts", metavar="URI", help="files go to this s3://... (default: an S3 server of its own)"
    )
    server.add_argument("--add-user", metavar="NAME", help="make a user of the server that runs over DIR")
    ui.set_defaults(command=_ui)

    doctor = commands.add_parser("doctor", help="what this machine or cluster has, and what is wrong with it")
    doctor.add_argument("--storage", default=STORAGE, metavar="URI")
    doctor.set_defaults(command=_doctor)


def _ui(given: argparse.Namespace) -> int:
    if given.server:
        return _server(given)
    if given.add_user or given.artifacts:
        raise SettingError("--add-user and --artifacts belong to a server. Add --server.")
    from mvray.runlog import tracking_uri
    from mvray.storage import Storage
    from mvray.ui import ui

    return ui(tracking_uri(Storage(given.storage)), given.host, given.port)


def _server(given: argparse.Namespace) -> int:
    from mvray.server import add_user, serve
    from mvray.storage import Storage

    if given.add_user:
        print(f"User {given.add_user}, password {add_user(given.folder, given.add_user)} (it is not kept; note it now)")
        return 0
    artifacts = given.artifacts
    if artifacts:
        storage = Storage(artifacts)
        storage.check()
        artifacts = storage.uri
    return serve(given.folder, given.host, given.port, artifacts)


def _doctor(given: argparse.Namespace) -> int:
    from mvray import doctor
    from mvray.runlog import tracking_uri
    from mvray.storage import Storage

    findings = doctor.examine(given.storage, tracking_uri(Storage(given.storage)), os.environ.get("RAY_ADDRESS"))
    print(doctor.as_text(findings))
    return FAILED if any(finding.state == "bad" for finding in findings) else 0
