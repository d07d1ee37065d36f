"""mvray ui | doctor: where runs are kept, and what this machine or cluster has."""

from __future__ import annotations

import argparse
import os
from typing import Any

from mvray.cli.options import FAILED, STORAGE


def add(commands: Any) -> None:
    ui = commands.add_parser("ui", help="open MLflow on the run store")
    ui.add_argument("--storage", default=STORAGE, metavar="URI")
    ui.add_argument("--port", type=int, default=5000)
    ui.set_defaults(command=_ui)

    doctor = commands.add_parser("doctor", help="what this machine or cluster has, and what is wrong with it")
    doctor.add_argument("--storage", default=STORAGE, metavar="URI")
    doctor.set_defaults(command=_doctor)


def _ui(given: argparse.Namespace) -> int:
    from mvray.runlog import tracking_uri
    from mvray.storage import Storage
    from mvray.ui import ui

    return ui(tracking_uri(Storage(given.storage)), port=given.port)


def _doctor(given: argparse.Namespace) -> int:
    from mvray import doctor
    from mvray.runlog import tracking_uri
    from mvray.storage import Storage

    findings = doctor.examine(given.storage, tracking_uri(Storage(given.storage)), os.environ.get("RAY_ADDRESS"))
    print(doctor.as_text(findings))
    return FAILED if any(finding.state == "bad" for finding in findings) else 0
