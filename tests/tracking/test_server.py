"""The tracking server with users as real processes: killed, wrong passwords, seen in a browser."""

import importlib.util
import io
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from postgres import Postgres, binaries
from seaweed import SeaweedFS
from servers import Browser, MlflowServer, client_of, has_asked

from mvray.errors import ClusterError, DataError, SettingError
from mvray.reports.figures import curves
from mvray.tracking.mlflow_server import _checked, add_user, running, serve
from mvray.tracking.mlflow_ui import check
from mvray.tracking.tracker import Tracker, deliver

SLOW = pytest.mark.slow


def runs_of(client, experiment):
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {run.info.run_name: run for run in found}


def png(shade):
    out = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


class Work:
    """A run of a job that logs a number every 50 ms and a picture every 20 numbers."""

    def __init__(self, address, experiment, outbox):
        self.tracker = Tracker(address, experiment, outbox)
        self.job = self.tracker.start_run("job", params={"seeds": (0,), "lr": 0.1})
        self.step = self.tracker.start_run("step", self.job, params={"epochs": 3})
        self.slowest_s = 0.0

    def log(self, first, last):
        for n in range(first, last):
            started = time.monotonic()
            self.tracker.metrics(self.step, {"loss": 1 / (n + 1), "accuracy": n / 1000}, n, time_s=1e9 + n)
            if n % 20 == 0:
                self.tracker.figure(self.step, png(n % 256), f"pictures/{n}.png")
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)
            time.sleep(0.05)

    def end(self, timeout_s=120.0):
        self.tracker.end_run(self.step)
        self.tracker.end_run(self.job)
        return self.tracker.close(timeout_s)


def kept(client, experiment):
    """All that a server knows of the runs of an experiment, with every point of every curve."""
    found = {}
    for run in client.search_runs([client.get_experiment_by_name(experiment).experiment_id]):
        assert run.info.run_name not in found, "a run is there twice"
        points = {
            name: [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
            if not name.startswith("system/")
        }
        files = {
            file.path: file.file_size
            for folder in client.list_artifacts(run.info.run_id)
            for file in client.list_artifacts(run.info.run_id, folder.path)
        }
        found[run.info.run_name] = (run.info.status, run.data.params, points, files)
    return found


@SLOW
def test_what_it_keeps_is_for_its_owner_and_on_loopback(mlflow_server):
    data = mlflow_server.folder / "data"
    for name in ("admin_password", "secrets.json", "auth.ini"):
        assert stat.S_IMODE((data / name).stat().st_mode) == 0o600, name
    shown = (data / "mlflow.log").read_text(errors="replace") + "".join(mlflow_server.output)
    for process in mlflow_server.processes():
        shown += " ".join(process.cmdline())
        for connection in process.net_connections("tcp"):
            if connection.status == "LISTEN":
                assert connection.laddr.ip == "127.0.0.1"
    assert mlflow_server.password not in shown
    assert mlflow_server.output[-3:-1] == [
        f"    export MLFLOW_TRACKING_URI={mlflow_server.address}",
        "    export MLFLOW_TRACKING_USERNAME=admin",
    ]
    with pytest.raises(ClusterError, match=r"runs over .* already"), running(data):
        pass


@SLOW
def test_what_a_killed_server_left_is_ended_by_the_next(mlflow_server):
    left = mlflow_server.processes()
    password = mlflow_server.password
    mlflow_server.kill(leave_mlflow=True)
    assert left
    assert all(process.is_running() for process in left)
    mlflow_server.start()
    assert not any(process.is_running() for process in left)
    assert mlflow_server.password == password


@SLOW
@pytest.mark.drill
def test_over_postgresql_and_s3(tmp_path, monkeypatch):
    """Addresses that are given: runs and users are in the one, files in the other; passwords are seen nowhere."""
    if binaries() is None:
        pytest.skip("needs PostgreSQL's server (apt-get install postgresql)")
    # Not below pytest's own folders: under root, PostgreSQL runs as a user who may not enter them.
    with tempfile.TemporaryDirectory(prefix="mvray-postgres-") as folder, ExitStack() as ending:
        Path(folder).chmod(0o755)
        database = Postgres(Path(folder), "of-postgres", "of/mlflow:p%40@")
        ending.callback(database.start().end)
        (tmp_path / "weed").mkdir()
        files = SeaweedFS(tmp_path / "weed", "mlflow")
        ending.callback(files.start().end, 0)
        given = {**files.environ, "PGPASSWORD": database.password}
        server = MlflowServer(["--backend-store", database.uri, "--artifacts", "s3://mlflow/files"], given)
        ending.callback(server.end)
        server.port = 5790
        server.start()
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        work = Work(server.address, "elsewhere", tmp_path / "outbox")
        work.log(0, 1)
        assert work.end() == ""
        (files_of_step,) = (files for _, _, _, files in kept(client_of(server), "elsewhere").values() if files)
        assert set(files_of_step) == {"pictures/0.png"}
        assert [item["Key"] for item in files.client().list_objects_v2(Bucket="mlflow")["Contents"]]
        assert not list((server.folder / "data").glob("*.db"))
        add_user(server.folder / "data", "ada")
        shown = (server.folder / "data/mlflow.log").read_text() + "".join(server.output)
        shown += "".join(" ".join(process.cmdline()) for process in server.processes())
        for password in (database.password, server.password, given["AWS_SECRET_ACCESS_KEY"]):
            assert password not in shown
        server.kill()
        server.start()
        with pytest.raises(ClusterError, match=r"make the user 'ada'.*already exists"):
            add_user(server.folder / "data", "ada")


@SLOW
def test_without_the_right_password_events_wait(mlflow_server, monkeypatch, tmp_path):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ClusterError, match="wants a user and a password, and none is given"):
        check(mlflow_server.address)
    password = add_user(mlflow_server.folder / "data", "ada")
    with pytest.raises(ClusterError, match=r"make the user 'ada'.*already exists"):
        add_user(mlflow_server.folder / "data", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not hers at all")
    with pytest.raises(ClusterError, match="refuses the user 'ada' with the password given"):
        check(mlflow_server.address)
    tracker = Tracker(mlflow_server.address, "waits", tmp_path)
    run = tracker.start_run("waits", params={"a": 1})
    tracker.figure(run, png(1), "pictures/1.png")
    tracker.end_run(run)
    has_asked(tracker)
    left = tracker.close(timeout_s=0)
    assert "Not delivered yet: 1 end, 1 file, 1 stale, 1 start." in left
    assert "refuses the user 'ada'" in left
    assert "not hers at all" not in left

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    assert check(mlflow_server.address).startswith("MLflow 3")
    assert deliver(tmp_path, mlflow_server.address) == (4, "")
    run = runs_of(client_of(mlflow_server), "waits")["waits"]
    assert (run.info.status, run.data.params) == ("FINISHED", {"a": "1"})


@pytest.mark.drill
def test_killed_in_the_middle_and_gone_for_the_rest(mlflow_user, tmp_path):
    """Three runs log the same: one undisturbed, one across the death of all, one that ends before it is back."""
    server, client = mlflow_user, client_of(mlflow_user)
    works = {name: Work(server.address, name, tmp_path / name) for name in ("undisturbed", "across", "gone")}
    calm = works["undisturbed"]
    calm.log(0, 61)
    assert calm.end() == ""
    for name in ("across", "gone"):
        works[name].log(0, 25)
    while not (client.get_experiment_by_name("gone") and client.get_experiment_by_name("across")):
        time.sleep(0.2)
    server.kill()
    works["gone"].log(25, 61)
    left = works["gone"].end(timeout_s=2)
    assert "Not delivered yet" in left
    assert str(tmp_path / "gone") in left
    across = threading.Thread(target=works["across"].log, args=(25, 61))
    across.start()
    server.start()
    across.join()
    assert works["across"].end() == ""
    assert kept(client, "across") == kept(client, "undisturbed")
    assert kept(client, "gone") != kept(client, "undisturbed")
    sent, left = deliver(tmp_path / "gone", server.address)
    assert left == ""
    assert sent >= 36
    assert kept(client, "gone") == kept(client, "undisturbed")
    assert max(work.slowest_s for work in works.values()) < 5.0, "nobody waited"


@pytest.mark.drill
def test_a_command_whose_server_goes_says_so_and_deliver_sends_the_rest(mlflow_user, drawings, tmp_path):
    mvray, runs = Path(sys.executable).parent / "mvray", tmp_path / "runs"
    job = Path(__file__).parents[1] / "searched.py"
    command = [mvray, "run", job, "--data", drawings, "--storage", runs, "--workers", "0"]
    with (tmp_path / "said").open("wb") as said:
        running = subprocess.Popen(command, stdout=said, stderr=said)
    until = time.monotonic() + 120
    while not list(runs.glob("first-*/step.json")):
        assert running.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < until
        time.sleep(0.02)
    mlflow_user.kill()
    assert running.wait(120) == 0
    said = (tmp_path / "said").read_text()
    assert f"Send them with: mvray deliver --storage {runs} (so does the next run)." in said
    assert "Traceback" not in said
    deliver = [mvray, "deliver", "--storage", runs]
    away = subprocess.run(deliver, capture_output=True, text=True, timeout=120)
    assert (away.returncode, away.stdout) == (1, f"Nothing was sent to {mlflow_user.address}.\n")
    assert "Traceback" not in away.stderr
    mlflow_user.start()
    sent = subprocess.run(deliver, capture_output=True, text=True, timeout=120)
    assert (sent.returncode, sent.stderr) == (0, "")
    assert re.fullmatch(rf"\d+ events sent to {mlflow_user.address}\.\n", sent.stdout)
    found = kept(client_of(mlflow_user), "searched")
    assert {name: run[0] for name, run in found.items()} == dict.fromkeys(
        ("first seed 0", "second seed 0", "searched"), "FINISHED"
    )
    assert len(found["second seed 0"][2]["validation/loss"]) == 6
    assert subprocess.run(deliver, capture_output=True, text=True, timeout=120).stdout.startswith("Nothing was sent")


@SLOW
def test_the_pages_in_a_browser(mlflow_user, tmp_path):
    """A study with a trial: logging in, its run with the curve, its pictures."""
    if shutil.which("chromium") is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    tracker = Tracker(mlflow_user.address, "comics study", tmp_path / "outbox")
    study = tracker.start_run("study", params={"trials": 1})
    trial = tracker.start_run("trial 0", study, params={"probability": 0.3})
    points = [(n, 1 - 0.8**n) for n in range(10)]
    for n, value in points:
        tracker.metrics(trial, {"validation/accuracy": value}, n)
    tracker.figure(trial, curves({"validation": points}, "trial 0", "accuracy"), "curves/accuracy.png")
    tracker.end_run(trial)
    tracker.end_run(study)
    assert tracker.close() == ""
    trial = runs_of(client_of(mlflow_user), "comics study")["trial 0"].info
    login = mlflow_user.address.replace("://", f"://admin:{mlflow_user.password}@")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(mlflow_user.address, timeout=30)  # noqa: S310  our own server
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(login)  # where a person types them; the pages' own requests take no address with a password in it
        browser.wait_for("document.body && document.body.innerText.includes('Experiments')")
        seen = look(browser, mlflow_user.address, trial)
    finally:
        browser.end()
    for name, picture in seen.items():
        (tmp_path / f"{name}.png").write_bytes(picture)
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, f"{name} is empty"


def look(browser, address, trial):
    """Pictures of the pages that a person opens: the runs, one run's curves, its picture."""
    kind = "?workflowType=machine_learning"
    browser.open(f"{address}/#/experiments/{trial.experiment_id}{kind}")
    browser.wait_for("[...document.links].some(link => link.innerText.trim() == 'study')")
    browser.run("document.querySelector('[data-component-id*=runnamecellrenderer]').click()")  # its "+"
    browser.wait_for("[...document.links].some(link => link.innerText.trim() == 'trial 0')")
    seen = {"runs": browser.picture()}
    page = f"{address}/#/experiments/{trial.experiment_id}/runs/{trial.run_id}"
    browser.open(f"{page}/model-metrics{kind}")
    browser.wait_for(
        "document.querySelector('.js-plotly-plot .scatterlayer path, .js-plotly-plot .lines path') !== null"
    )
    seen["curves"] = browser.picture()
    browser.open(f"{page}/artifacts/curves/accuracy.png{kind}")
    browser.wait_for("[...document.images].some(i => i.naturalWidth > 300)")
    seen["pictures"] = browser.picture()
    return seen


def test_what_is_not_installed_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ClusterError, match=r"pip install 'mlflow\[auth\]' psycopg2-binary"):
        serve(tmp_path, backend_store="postgresql://here/mlflow")


@pytest.mark.parametrize("uri", ["postgresql://me:secret/x@here/mlflow", "postgresql://here/mlflow?password=secret"])
def test_a_password_on_the_command_line_is_refused(tmp_path, uri):
    with pytest.raises(SettingError, match=r"password in --backend-store(.|\n)*MLFLOW_BACKEND_STORE_URI") as refusal:
        serve(tmp_path, backend_store=uri)
    assert "secret" not in str(refusal.value)


def test_an_address_without_a_password_is_taken_from_the_command_line():
    uri = "postgresql://me@here:5432/mlflow?sslmode=require"
    assert _checked(uri) == uri.replace("postgresql", "postgresql+psycopg2")


def test_users_are_made_where_a_server_runs(tmp_path):
    with pytest.raises(DataError, match="No server runs over"):
        add_user(tmp_path, "ada")
