"""Against real MLflow: an SQLite store, and a server that goes away in the middle (slow)."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from full_disk import files_end_at
from PIL import Image
from servers import has_asked

from mvray.tracking.mlflow_store import HANDLE, HOST, MlflowStore, folder_of, without_password
from mvray.tracking.mlflow_ui import served
from mvray.tracking.outbox import Refused
from mvray.tracking.tracker import Tracker, deliver

pytestmark = [
    pytest.mark.slow,  # MLflow makes its tables
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def store(empty_store, tmp_path_factory):
    """One SQLite store for all tests here."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('store'))}"


@pytest.fixture
def client(store):
    from mlflow.tracking import MlflowClient

    return MlflowClient(store)


def runs_of(client, experiment):
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {run.info.run_name: run for run in found}


def test_a_job_with_its_steps(store, client, tmp_path):
    job_file = tmp_path / "job.py"
    job_file.write_text("def job(): ...\n")
    tracker = Tracker(store, "comics [tiny]", tmp_path / "outbox")
    job = tracker.start_run("comics", tags={"mlflow.source.git.commit": "abc"}, params={"seeds": (0, 1)})
    step = tracker.start_run("plain", job, {"mvray.step_id": "0123", "mvray.inputs": ""}, {"optim.lr": 0.1})
    for epoch in range(3):
        tracker.metrics(step, {"validation/accuracy": epoch / 10, "train/loss": 1.0}, epoch, time_s=1e9 + epoch)
    tracker.metrics(step, {"validation/accuracy": 99.0}, 1)
    tracker.metrics(step, {"odd": math.nan, "big": math.inf, "top 5 [%]": 1}, 0)
    tracker.tags(step, {"mvray.note": "x" * 9000})
    tracker.data(step, "manga109", "f" * 64, "/data/manga", "training", {"train": 10, "classes": 3})
    tracker.artifact(job, job_file)
    tracker.figure(step, b"png", "heatmaps/plain.png")
    png = io.BytesIO()
    Image.new("RGB", (400, 300)).save(png, "PNG")
    tracker.image(step, png.getvalue(), "validation/samples", 2)
    tracker.end_run(step)
    tracker.end_run(job, "FAILED")
    assert tracker.close() == ""
    assert list((tmp_path / "outbox").iterdir()) == []

    runs = runs_of(client, "comics [tiny]")
    parent, child = runs["comics"], runs["plain"]
    assert (parent.info.status, child.info.status) == ("FAILED", "FINISHED")
    assert parent.data.params == {"seeds": "(0, 1)"}
    assert parent.data.tags["mlflow.source.git.commit"] == "abc"
    assert child.data.params == {"optim.lr": "0.1"}
    assert child.data.tags["mlflow.loggedImages"] == "True"
    full, small = sorted(client.list_artifacts(child.info.run_id, "images"), key=lambda file: len(file.path))
    assert re.fullmatch(r"images/validation~samples\+step\+2\+timestamp\+\d+\+[0-9a-f-]{36}\.png", full.path)
    assert small.path == full.path.removesuffix(".png") + "+compressed.webp"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert HOST in parent.data.tags
    assert HOST not in child.data.tags
    history = client.get_metric_history(child.info.run_id, "validation/accuracy")
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (0, 0.0, 10**12),
        (1, 0.1, 10**12 + 1000),
        (2, 0.2, 10**12 + 2000),
    ], "a step that is reported again after a restart counts once"
    assert math.isnan(child.data.metrics["odd"])
    assert child.data.metrics["top 5 ___"] == 1
    assert len(child.data.tags["mvray.note"]) == 8000
    assert child.data.tags["mvray.note"].endswith("... (cut; 9000 characters in all)")
    (dataset,) = child.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("manga109", "f" * 36)
    assert json.loads(dataset.dataset.profile) == {"train": 10, "classes": 3}
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]
    artifacts = Path(child.info.artifact_uri)
    assert artifacts.is_relative_to(Path(store.removeprefix("sqlite:///")).parent / "mlartifacts")
    assert (artifacts / "heatmaps/plain.png").read_bytes() == b"png"
    assert (Path(parent.info.artifact_uri) / "job.py").read_text() == "def job(): ...\n"


def test_more_than_one_call_takes(store, client, tmp_path):
    tracker = Tracker(store, "many", tmp_path)
    run = tracker.start_run("many", params={f"p{n}": "v" * 7000 for n in range(250)})
    for step in range(5):
        tracker.metrics(run, {f"m{n}": n for n in range(450)}, step)
    assert tracker.close() == ""
    many = runs_of(client, "many")["many"]
    assert len(many.data.params) == 250
    assert len(many.data.params["p7"]) == 6000
    assert len(many.data.metrics) == 450
    assert len(client.get_metric_history(many.info.run_id, "m449")) == 5


def test_a_reused_step_is_linked_to_the_run_that_made_it(store, client, tmp_path):
    first = Tracker(store, "made", tmp_path)
    made = first.start_run("plain", tags={"mvray.step_id": "cafe"})
    first.end_run(made)
    assert first.close() == ""
    again = Tracker(store, "reused", tmp_path)
    for name, step in (("again", "cafe"), ("unknown", "beef")):
        again.start_run(name, tags={"mvray.step_id": step, "mvray.reused": "true"})
    assert again.close() == ""
    original = runs_of(client, "made")["plain"].info
    tags = runs_of(client, "reused")["again"].data.tags
    assert tags["mvray.made_by"] == original.run_id
    page = f"#/experiments/{original.experiment_id}/runs/{original.run_id}?workflowType=machine_learning"
    assert tags["mvray.made_by_url"] == page
    assert page in tags["mlflow.note.content"]
    assert "mvray.made_by" not in runs_of(client, "reused")["unknown"].data.tags


def test_events_that_arrive_twice_change_nothing(store, client, tmp_path):
    away = Tracker("http://127.0.0.1:1", "twice", tmp_path / "outbox")
    run = away.start_run("twice", params={"a": 1})
    for step in range(20):
        away.metrics(run, {"loss": step}, step)
    away.data(run, "d", "1", "somewhere", "test", {})
    away.figure(run, b"1", "a/b.png")
    away.end_run(run)
    has_asked(away)
    left = away.close(timeout_s=0)
    assert "Not delivered yet: 1 data, 1 end, 1 file, 20 metrics, 1 stale, 1 start." in left
    assert "Error" in left
    # As if the killed process had sent everything and noted nothing of it.
    (folder,) = (tmp_path / "outbox").iterdir()
    (folder / "address").write_text(store)
    for _ in range(2):
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-r", str(tmp_path / "outbox"), str(copy)], check=True)
        assert deliver(copy, store)[1] == ""
        copy.rmdir()  # empty: everything was delivered
    (run,) = runs_of(client, "twice").values()
    assert [m.value for m in client.get_metric_history(run.info.run_id, "loss")] == list(range(20))
    assert run.info.status == "FINISHED"
    assert len(run.inputs.dataset_inputs) == 1


DRIVER = """
import sys, time
from pathlib import Path
from mvray.tracking import Tracker
tracker = Tracker(sys.argv[1], "killed", Path(sys.argv[2]), delay_s=0.0)
job = tracker.start_run("job")
step = tracker.start_run("step", job)
for n in range(10**9):
    tracker.metrics(step, {"n": n}, n)
    print(n, flush=True)
    time.sleep(0.01)
"""


def test_a_killed_driver_loses_nothing_and_its_runs_are_closed(store, client, tmp_path):
    """Killed in the middle of sending."""
    command = [sys.executable, "-c", DRIVER, store, str(tmp_path)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    driver.stdout.readline()
    written = 1
    while not (client.get_experiment_by_name("killed") and "step" in runs_of(client, "killed")):
        driver.stdout.readline()
        written += 1
    os.kill(driver.pid, signal.SIGKILL)
    written += len(driver.communicate()[0].splitlines())

    following = Tracker(store, "killed", tmp_path)
    alive = following.start_run("alive")
    following.metrics(alive, {"n": 1}, 0)
    assert following.close() == ""
    runs = {}
    for run in client.search_runs([client.get_experiment_by_name("killed").experiment_id], max_results=3):
        runs.setdefault(run.info.run_name, run)
    assert {name: run.info.status for name, run in runs.items()} == {
        "job": "KILLED",
        "step": "KILLED",
        "alive": "RUNNING",
    }
    values = [m.value for m in client.get_metric_history(runs["step"].info.run_id, "n")]
    assert values == list(range(len(values)))
    assert len(values) in (written, written + 1)
    assert runs["step"].info.end_time <= 1000 * time.time()
    client.set_terminated(runs["alive"].info.run_id)


def test_the_machine_is_watched_until_the_end(store, client, tmp_path):
    tracker = Tracker(store, "machine", tmp_path)
    run = tracker.start_run("machine")
    tracker.watch_machine(run, interval_s=0.1)
    time.sleep(0.5)
    assert tracker.close() == ""
    metrics = runs_of(client, "machine")["machine"].data.metrics
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert metrics["system/system_memory_usage_megabytes"] > 100


def test_logging_never_waits(tmp_path):
    started = time.monotonic()
    tracker = Tracker("http://127.0.0.1:1", "away", tmp_path)
    run = tracker.start_run("away")
    for step in range(1000):
        tracker.metrics(run, {"loss": 1.0}, step)
    assert time.monotonic() - started < 15
    assert tracker.close(timeout_s=0) != ""


def test_what_mlflow_refuses_is_kept_and_told(store, client, tmp_path):
    tracker = Tracker(store, "refused", tmp_path)
    run = tracker.start_run("refused", params={"a+b": 1, "a-b": 2, "a*b": 3})  # two names become a_b
    tracker.metrics(run, {"loss": 1.0}, 0)
    left = tracker.close()
    assert "Refused: 1 events" in left
    assert runs_of(client, "refused")["refused"].data.metrics == {"loss": 1.0}


@pytest.mark.parametrize("experiment", ["..", "."])
def test_names_from_a_storage_stay_below_the_artifacts(store, client, tmp_path, experiment):
    """Events that lay in a storage may have been written by others."""
    files = tmp_path / "files"
    files.mkdir()
    (files / ("0" * 32)).write_bytes(b"content")
    took = MlflowStore(store)
    event = {"experiment": experiment, "run": "0", "time_s": 1.0}
    start = {**event, "kind": "start", "name": "x", "parent": None, "tags": {HANDLE: "0"}, "params": {}}
    took.take([start], files)
    file = {**event, "kind": "file", "content": "0" * 32}
    for path in ("../x", "/x", "..", ""):
        with pytest.raises(Refused, match="no path below a run's artifacts"):
            took.take([{**file, "path": path}], files)
    with pytest.raises(Refused, match="no file that mvray has put there"):
        took.take([{**file, "content": "/etc/hostname", "path": "x"}], files)
    took.take([{**file, "path": "a/x"}], files)
    (artifacts,) = (run.info.artifact_uri for run in runs_of(client, experiment).values())
    assert folder_of(store) / "mlartifacts" / "_" in Path(artifacts).parents
    assert (Path(artifacts) / "a" / "x").read_bytes() == b"content"


def test_passwords_stay_out_of_the_outbox(tmp_path):
    tracker = Tracker("http://me:secret@127.0.0.1:1", "away", tmp_path)
    tracker.close(timeout_s=0)
    (folder,) = tmp_path.iterdir()
    assert (folder / "address").read_text() == "http://127.0.0.1:1"
    assert without_password("sqlite:////a/mlflow.db") == "sqlite:////a/mlflow.db"


def written(tmp_path):
    (events,) = tmp_path.glob("*/events.jsonl")
    return [json.loads(line) for line in events.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_a_full_disk_loses_nothing_once_there_is_room(store, client, tmp_path, caplog):
    """The disk takes half a line, then nothing; pictures, metrics and ends wait in memory."""
    tracker = Tracker(store, "full", tmp_path, delay_s=60)
    run = tracker.start_run("full")
    tracker.metrics(run, {"loss": 0.0}, 0)
    (events,) = tmp_path.glob("*/events.jsonl")
    with files_end_at(events.stat().st_size + 20):
        for step in range(1, 20):
            tracker.metrics(run, {"loss": float(step)}, step)
        tracker.figure(run, bytes(100_000), "pictures/black.png")
        tracker.tags(run, {"after": "picture"})
    assert [event["kind"] for event in written(tmp_path)] == ["stale", "start", "metrics"]
    tracker.end_run(run)
    kinds = ["stale", "start", *20 * ["metrics"], "file", "tags", "end"]
    assert [event["kind"] for event in written(tmp_path)] == kinds
    assert tracker.close() == ""
    found = runs_of(client, "full")["full"]
    assert [m.value for m in client.get_metric_history(found.info.run_id, "loss")] == list(range(20))
    assert found.info.status == "FINISHED"
    assert found.data.tags["after"] == "picture"
    assert (Path(found.info.artifact_uri) / "pictures/black.png").read_bytes() == bytes(100_000)
    (said,) = [line for line in caplog.messages if "waits in memory" in line]
    assert "cannot be written (File too large)" in said
    assert "Lost" not in caplog.text


def test_what_a_full_disk_never_took_is_told_at_the_end(tmp_path, caplog):
    tracker = Tracker("http://127.0.0.1:1", "full", tmp_path, delay_s=60, held_events=10, held_bytes=1000)
    (events,) = tmp_path.glob("*/events.jsonl")
    full = events.stat().st_size + 20
    with files_end_at(full):
        run = tracker.start_run("full")
        for step in range(20):
            tracker.metrics(run, {"loss": float(step)}, step)
        for picture in range(3):
            tracker.figure(run, bytes(400), f"{picture}.png")
    tracker.tags(run, {"there is": "room"})
    kept = written(tmp_path)
    assert [event["kind"] for event in kept] == ["stale", "start", *7 * ["metrics"], "file", "file", "tags"]
    assert [event["step"] for event in kept if event["kind"] == "metrics"] == list(range(13, 20))
    assert [event["path"] for event in kept if event["kind"] == "file"] == ["1.png", "2.png"]
    with files_end_at(events.stat().st_size + 20):
        tracker.end_run(run)
        left = tracker.close(timeout_s=0)
    assert "Not delivered yet: 2 file, 7 metrics, 1 stale, 1 start, 1 tags." in left
    (said,) = [line for line in caplog.messages if "Lost" in line]
    assert said.endswith("could not be written: 1 end, 1 file, 13 metrics.")
    assert sum("waits in memory" in line for line in caplog.messages) == 2, "once each time"


@pytest.mark.drill
def test_a_server_that_is_away_for_a_while(tmp_path):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    Tracker(store, "outage", tmp_path / "outbox").close()
    tracker = None
    sent = 0

    def log_for(seconds):
        nonlocal sent
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            tracker.metrics(run, {"loss": float(sent)}, sent)
            tracker.figure(run, str(sent).encode(), f"pictures/{sent}.png") if sent % 50 == 0 else None
            sent += 1
            time.sleep(0.02)

    with served(store, port=5680) as (_, address):
        port = int(address.rpartition(":")[2])
        tracker = Tracker(address, "outage", tmp_path / "outbox")
        job = tracker.start_run("job")
        run = tracker.start_run("step", job)
        log_for(8)
    log_for(8)  # nobody is there
    late = tracker.start_run("late", job)
    tracker.end_run(late)
    with served(store, port=port) as (_, again):
        assert again == address
        log_for(3)
        tracker.end_run(run)
        tracker.end_run(job)
        assert tracker.close() == ""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(address)
        runs = runs_of(client, "outage")
        assert {name: r.info.status for name, r in runs.items()} == dict.fromkeys(("job", "step", "late"), "FINISHED")
        run_id = runs["step"].info.run_id
        values = [m.value for m in client.get_metric_history(run_id, "loss")]
        assert values == [float(n) for n in range(sent)]
        assert len(client.list_artifacts(run_id, "pictures")) == math.ceil(sent / 50)
        assert len(client.search_runs([runs["job"].info.experiment_id], f"tags.`{HANDLE}` != ''")) == 3
