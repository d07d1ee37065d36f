"""mvray ui | deliver | doctor: where runs are kept, and what this machine or cluster has."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from mvray.cli.options import FAILED, STORAGE
from mvray.errors import SettingError
from mvray.storage import Storage


def add(commands: Any) -> None:
    ui = commands.add_parser("ui", help="open MLflow on the run store")
    ui.add_argument("--storage", default=STORAGE, metavar="URI")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--host", default="127.0.0.1", help="where it listens; others than this machine want --server")
    server = ui.add_argument_group("a tracking server with users, for several people and machines")
    server.add_argument("--server", action="store_true", help="run MLflow's own server with passwords")
    server.add_argument("--folder", type=Path, default=Path("mlflow-server"), metavar="DIR", help="its data")
    server.add_argument(
        "--backend-store",
        metavar="URI",
        default="",
        help="database of runs and users, as postgresql://... without a "
        "password (default: MLFLOW_BACKEND_STORE_URI, else SQLite in DIR)",
    )
    server.add_argument("--artifacts", metavar="URI", default="", help="s3://... for files (default: a folder in DIR)")
    server.add_argument("--add-user", metavar="NAME", help="make a user of the server that runs over DIR")
    ui.set_defaults(command=_ui)

    deliver = commands.add_parser("deliver", help="send MLflow what waited while it was away")
    deliver.add_argument("--storage", default=STORAGE, metavar="URI")
    deliver.add_argument("--was", default="", metavar="URL", help="send too what was for this address of the server")
    deliver.set_defaults(command=_deliver)

    doctor = commands.add_parser("doctor", help="what this machine or cluster has, and what is wrong with it")
    doctor.add_argument("--storage", default=STORAGE, metavar="URI")
    doctor.set_defaults(command=_doctor)


def _ui(options: argparse.Namespace) -> int:
    if options.server:
        return _server(options)
    if options.add_user or options.artifacts or options.backend_store:
        raise SettingError("--add-user, --artifacts and --backend-store belong to a server. Add --server.")
    from mvray.tracking import tracking_uri, ui

    return ui(tracking_uri(Storage(options.storage)), options.host, options.port)


def _server(options: argparse.Namespace) -> int:
    from mvray.tracking import add_user, serve

    if options.add_user:
        password = add_user(options.folder, options.add_user)
        print(f"User {options.add_user}, password {password} (it is not kept; note it now)")
        return 0
    artifacts = options.artifacts
    if artifacts:
        storage = Storage(artifacts)
        storage.check()
        artifacts = storage.uri
    return serve(options.folder, options.host, options.port, options.backend_store, artifacts)


def _deliver(options: argparse.Namespace) -> int:
    from mvray.tracking import Outbox, deliver, outbox_folder, refuge, tracking_uri, waiting_for, without_password

    storage = Storage(options.storage)
    uri, outbox, away = tracking_uri(storage), outbox_folder(storage), refuge(storage)
    address = without_password(uri)
    if away:
        away.check()
    sent, undelivered = deliver(outbox, uri, refuge=away, former=options.was)
    print(f"{sent} events sent to {address}." if sent else f"Nothing was sent to {address}.")
    if undelivered:
        print(undelivered, file=sys.stderr)
    for other in sorted({*Outbox.addresses(outbox), *(waiting_for(away) if away else [])}):
        if other != address:
            again = shlex.join(["mvray", "deliver", "--storage", options.storage, "--was", other])
            print(f"More waits for {other}: set MLFLOW_TRACKING_URI to that, or send it here: {again}", file=sys.stderr)
        elif not undelivered:
            print("More waits of a run that goes on, or whose node vanished within 15 minutes.", file=sys.stderr)
    return FAILED if undelivered else 0


def _doctor(options: argparse.Namespace) -> int:
    from mvray.cli import doctor
    from mvray.tracking import tracking_uri

    findings = doctor.examine(options.storage, tracking_uri(Storage(options.storage)), os.environ.get("RAY_ADDRESS"))
    print(doctor.as_text(findings))
    return FAILED if any(finding.state == "bad" for finding in findings) else 0
