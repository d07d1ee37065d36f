"""infra/mlflow/serve.py as the images run it, over a real PostgreSQL; files go to a folder instead of S3."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil
import pytest
import requests
from account import ROOT
from nodes import free_ports
from postgres import OWNER, Postgres

from mvray.tracking.tracker import Tracker

pytestmark = pytest.mark.slow
BALANCER = "internal-Mvray-Balan-1ABCDEFGHIJKL-123456789.us-west-2.elb.amazonaws.com"
"""As AWS makes it of CloudFormation's own names."""


@dataclass(frozen=True)
class Served:
    """A running server: its address, the password of the user admin, its process."""

    address: str
    password: str
    process: psutil.Process


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    # Not below pytest's own folders: under root, PostgreSQL runs as a user who may not enter them.
    folder = Path(tempfile.mkdtemp(prefix="mvray-serve-"))
    folder.chmod(0o755)
    database = Postgres(folder, "of-postgres", "a/b:c@d%40e")
    service = database.start()
    (port,) = free_ports(1)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    environ = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DATABASE_HOST": f"127.0.0.1:{database.port}",
        "DATABASE_NAME": "mlflow",
        "DATABASE_USER": OWNER,
        "DATABASE_PASSWORD": "a/b:c@d%40e",
        "ARTIFACTS": str(folder / "artifacts"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "of-the-admin-alone",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs-forms",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{BALANCER}, localhost:*",
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(port),
    }
    with (folder / "log").open("wb") as log:
        command = [sys.executable, ROOT / "infra/mlflow/serve.py"]
        server = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://localhost:{port}"
        wait_for(address, server, folder / "log")
        yield Served(address, environ["MLFLOW_AUTH_ADMIN_PASSWORD"], psutil.Process(server.pid))
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its data goes too
        server.wait()
        service.end()
        shutil.rmtree(folder)


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until and server.poll() is None:
        try:
            urlopen(f"{address}/health", timeout=5).close()  # noqa: S310  our own server
            return
        except (URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"MLflow did not start: {log.read_text(errors='replace')[-2000:]}")


def as_user(patch: pytest.MonkeyPatch, name: str, password: str) -> None:
    patch.setenv("MLFLOW_TRACKING_USERNAME", name)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def logged(address: str, run: str, outbox: Path) -> str:
    """Log a run of that name to the experiment `shared`; returns what was not delivered."""
    tracker = Tracker(address, "shared", outbox)
    step = tracker.start_run(run, params={"lr": 0.1})
    tracker.metrics(step, {"loss": 0.5}, 1)
    tracker.figure(step, b"\x89PNG", "pictures/1.png")
    tracker.end_run(step)
    return tracker.close(timeout_s=60)


def test_a_user_logs_to_an_experiment_that_another_made(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    as_user(monkeypatch, "admin", served.password)
    assert logged(served.address, "admins", tmp_path / "admin") == ""
    made = requests.post(
        f"{served.address}/api/2.0/mlflow/users/create",
        json={"username": "ada", "password": "hers-and-long-enough"},
        auth=("admin", served.password),
        timeout=30,
    )
    assert made.status_code == 200, made.text
    as_user(monkeypatch, "ada", "hers-and-long-enough")
    assert logged(served.address, "adas", tmp_path / "ada") == ""
    client = MlflowClient(served.address)
    experiment = client.get_experiment_by_name("shared")
    assert experiment is not None
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(found) == {"admins", "adas"}
    assert (found["adas"].info.status, found["adas"].data.metrics) == ("FINISHED", {"loss": 0.5})


@pytest.mark.parametrize("host", [BALANCER, BALANCER.lower()])
def test_it_is_reached_under_the_balancers_name(served: Served, host: str) -> None:
    """Clients send a host's name in lower case; 401: it was let through to where a password is wanted."""
    assert answer_to(served, host) == 401


def test_other_names_are_refused(served: Served) -> None:
    assert answer_to(served, "rebound.example") == 403


def answer_to(served: Served, host: str) -> int:
    request = Request(f"{served.address}/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": host})  # noqa: S310
    with pytest.raises(HTTPError) as refused:
        urlopen(request, timeout=30)  # noqa: S310  our own server
    refused.value.close()
    return refused.value.code


def test_one_worker_and_no_job_runners(served: Served) -> None:
    """The container has one core: MLflow's own defaults are four workers, and runners that keep a core each busy."""
    commands = [" ".join(process.cmdline()) for process in served.process.children(recursive=True)]
    assert not [command for command in commands if "job_runner" in command or "huey" in command]
    assert len([command for command in commands if "resource_tracker" not in command]) <= 1, commands
    environ = served.process.environ()
    assert "DATABASE_PASSWORD" not in environ
    assert "a/b:c" not in " ".join(served.process.cmdline())
