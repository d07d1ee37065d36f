"""Searches on real Ray: one Ray for the file, and the command as a user types it, killed half way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import mvray

from mvray import Job
from mvray.api import load_job
from mvray.cluster.session import Cluster
from mvray.errors import StorageFailed
from mvray.experiment.overrides import replaced
from mvray.experiment.steps import Train
from mvray.pipeline import plan
from mvray.pipeline.run import execute, selected_steps
from mvray.reports import search_table
from mvray.reports.mlflow_runs import RunLog
from mvray.reports.results import collect
from mvray.storage.storage import Storage
from mvray.tracking.terminal import Progress
from mvray.tracking.tracker import Tracker
from mvray.tuning.study import FAILED, FINISHED, STOPPED, Study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # Ray Data and Ray Tune use deprecated settings of their own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

JOB = Path(__file__).parents[1] / "searched.py"
MVRAY = Path(sys.executable).parent / "mvray"


class Lines(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.shown: set[str] = set()

    def say(self, line: str) -> None:
        self.said.append(line)

    def show(self, key: str, text: str | None) -> None:
        self.shown.add(text or "")


@pytest.fixture(scope="module")
def place(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "runs"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="module")
def cluster(place: Path) -> Any:
    cluster = Cluster(Storage(str(place)))
    cluster.start(load_job(JOB, False, None))
    cluster.ready()
    yield cluster
    cluster.stop()


def job_of(drawings: Path, **search: Any) -> Job:
    return replaced(load_job(JOB, False, str(drawings)), {f"search.{name}": value for name, value in search.items()})


def searched(
    job: Job, place: Path, cluster: Cluster, wanted: int, concurrent: int | None = None
) -> tuple[Study, Lines]:
    """The search of ``job``, as the command does it."""
    from mvray.tuning import tune

    storage, lines = Storage(str(place)), Lines()
    made = plan.make(job, storage)
    base = made.of(next(step for step in job.steps), 0)
    study = Study(job, base)
    tracker = Tracker(f"sqlite:///{place}/mlflow.db", job.name, place / ".spool")
    log = RunLog(tracker, made, {}, search=study.about())
    before = plan.Plan(job, storage, tuple(p for p in selected_steps(made, base.name) if p is not base))
    try:
        execute(before, cluster, log, lines)
        tune.tune_study(study, cluster, log, lines, wanted, concurrent)
    finally:
        assert log.close("FINISHED") == ""
    return study, lines


@pytest.fixture(scope="module")
def whole(drawings: Path, place: Path, cluster: Cluster) -> tuple[Study, Lines]:
    """Six trials, two at a time."""
    return searched(job_of(drawings), place, cluster, 6)


def trials_of(place: Path) -> list[dict[str, Any]]:
    (file,) = place.glob("study-second-*/trials.json")
    read: list[dict[str, Any]] = json.loads(file.read_text())
    return read


def test_trials_are_steps_and_phase_1_runs_once(whole: tuple[Study, Lines], place: Path, drawings: Path) -> None:
    study, lines = whole
    assert [trial["number"] for trial in trials_of(place)] == list(range(6))
    states = Counter(trial.state for trial in study.trials)
    assert states[FINISHED] >= 1
    assert states[STOPPED] >= 1
    assert states[FINISHED] + states[STOPPED] == 6
    assert len(list(place.glob("first-*/step.json"))) == 1
    assert sum(line.startswith("first") for line in lines.said) == 1
    for trial in study.trials:
        settings = {f"second.{name}": value for name, value in trial.settings.items()}
        job = replaced(job_of(drawings), settings)
        same = plan.make(job, Storage(str(place))).of(job.steps[0], 0)
        assert (same.id, same.path) == (trial.id, trial.path)
        assert same.finished == (trial.state == FINISHED)
        if trial.state == FINISHED:
            assert same.metrics()["validation/loss"] == trial.value
            assert len(trial.values) == 6
        else:
            # It ended where it was stopped, with a checkpoint there: epochs of 5 steps.
            assert len(trial.values) in (1, 2, 4)
            newest = max(int(entry.path.rpartition("/")[2]) for entry in same.folder.list("checkpoints"))
            assert newest == 5 * len(trial.values)
    assert any("2 (" in text and "running" in text for text in lines.shown)
    where = rf"  trial 2: epoch \d/6, step \d/5, [\d.]+ steps/s, at most .* left, 2 workers on {socket.gethostname()}"
    assert any(re.fullmatch(where, text) for text in lines.shown), lines.shown


def test_nothing_is_held_once_trials_are_stopped(whole: tuple[Study, Lines], cluster: Cluster) -> None:
    import ray
    from ray.util import placement_group_table

    def alive() -> Counter[str]:
        found = (a["ActorClassName"] for a in ray._private.state.actors().values() if a["State"] == "ALIVE")
        return Counter(name for name in found if name != "TaskQueue")  # holds no CPU; goes with its group

    while cluster.groups._idle:
        cluster.groups._idle.pop().free()
    end = time.monotonic() + 60
    while (set(alive()) or ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]) and (
        time.monotonic() < end
    ):
        time.sleep(0.2)
    assert alive() == Counter()
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]
    assert {table["state"] for table in placement_group_table().values()} <= {"REMOVED"}


def test_mlflow_has_the_study_and_its_trials(whole: tuple[Study, Lines], place: Path) -> None:
    from mlflow.tracking import MlflowClient

    study, _ = whole
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("searched").experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("mvray.kind") == "Search"]
    assert parent.data.params["search.space.optim.lr"] == "1e-05 to 0.1, logarithmic"
    assert parent.data.tags["mvray.study"] == study.id
    nested = [run for run in runs if run.data.tags.get("mvray.kind") == "Trial"]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}
    assert sorted(int(run.data.tags["mvray.trial"]) for run in nested) == list(range(6))
    best = study.best()
    assert best is not None
    assert parent.data.metrics["best/validation/loss"] == best.value
    for run in nested:
        trial = study.trials[int(run.data.tags["mvray.trial"])]
        assert run.info.status == ("FINISHED" if trial.state == FINISHED else "KILLED")
        assert float(run.data.params["optim.lr"]) == trial.settings["optim.lr"]
        history = client.get_metric_history(run.info.run_id, "validation/loss")
        assert len(history) == len(trial.values)
        if trial.state == STOPPED:
            assert run.data.tags["mvray.stopped"] == f"early, after epoch {len(trial.values)}"


def test_more_trials_are_added_and_a_finished_search_trains_nothing(
    whole: tuple[Study, Lines], drawings: Path, place: Path, cluster: Cluster
) -> None:
    before = {file: file.stat().st_mtime_ns for file in place.glob("*/checkpoints/*/*")}
    settings = [trial.settings for trial in whole[0].trials]
    again, lines = searched(job_of(drawings), place, cluster, 6)
    assert [line for line in lines.said if line.startswith("trial")] == []
    assert {file: file.stat().st_mtime_ns for file in place.glob("*/checkpoints/*/*")} == before
    more, lines = searched(job_of(drawings), place, cluster, 7)
    assert [trial.settings for trial in more.trials[:6]] == settings
    assert [line.partition(":")[0] for line in lines.said] == ["trial 6"]
    assert len(again.trials) == 6


def test_the_same_settings_in_another_study_are_shown_and_cost_nothing(
    whole: tuple[Study, Lines], drawings: Path, place: Path, cluster: Cluster
) -> None:
    """Another scheduler makes it another study; what is drawn at random is the same."""
    from mlflow.tracking import MlflowClient

    before = [trial.number for trial in whole[0].trials if trial.state == FINISHED]
    study, _ = searched(job_of(drawings, scheduler="none"), place, cluster, before[0] + 1)
    assert [trial.id for trial in study.trials] == [trial.id for trial in whole[0].trials[: before[0] + 1]]
    assert study.id != whole[0].id
    assert before[0] not in study.trained
    trial = study.trials[before[0]]
    assert trial.values == whole[0].trials[before[0]].values
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("searched").experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("mvray.study") == study.id]
    nested = next(
        run for run in runs if run.data.tags.get("mvray.reused") and run.data.tags.get("mvray.kind") == "Trial"
    )
    assert nested.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert nested.info.status == "FINISHED"
    assert nested.data.metrics["result/validation/loss"] == trial.value
    assert len(client.get_metric_history(nested.info.run_id, "validation/loss")) == 6


def test_a_trial_whose_end_cannot_be_stored_ends_the_search(
    whole: tuple[Study, Lines], drawings: Path, place: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StorageFailed("s3://b does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(Study, "end", away)
        with pytest.raises(StorageFailed, match="does not answer"):
            searched(job_of(drawings, scheduler="none", seed=7), place, cluster, 1)
    cluster.aborted.clear()
    study, _ = searched(job_of(drawings, scheduler="none", seed=7), place, cluster, 1)
    assert [trial.state for trial in study.trials] == [FINISHED]
    assert study.trained == set()  # it was trained, and could not be noted


def test_a_population_goes_on_from_its_best(drawings: Path, place: Path, cluster: Cluster) -> None:
    job = job_of(drawings, scheduler="pbt", grace=3, trials=4, seed=5)
    study, _ = searched(job, place, cluster, 4)
    assert len(study.trials) == 8  # two generations of four
    assert {trial.state for trial in study.trials} == {FINISHED}
    assert all(len(trial.values) == 3 for trial in study.trials)
    late = study.trials[4:]
    ranked = sorted(study.trials[:4], key=lambda trial: trial.value)
    worst = next(trial for trial in late if trial.number - 4 == ranked[-1].number)
    assert worst.parent == ranked[0].number
    assert [trial.parent for trial in late if trial is not worst] == [t.number - 4 for t in late if t is not worst]
    step = json.loads((place / worst.path / "step.json").read_text())
    assert step["inputs"] == {"second": study.trials[ranked[0].number].id}
    first = json.loads((place / study.trials[0].path / "step.json").read_text())
    assert set(first["inputs"]) == {"first"}
    assert "after 2 generations" in search_table.verdict(study.collected())
    again, lines = searched(job, place, cluster, 4)
    assert [trial.id for trial in again.trials] == [trial.id for trial in study.trials]
    assert [line for line in lines.said if line.startswith("trial")] == []


def test_bad_settings_fail_alone(drawings: Path, place: Path, cluster: Cluster) -> None:
    from mvray.experiment.search_space import Choice, Search

    job = job_of(drawings)
    # A batch of one cannot be shared out over two workers.
    search = Search("second", (("optim.batch_size", Choice((1, 8))),), "validation/accuracy", sampler="grid")
    study, lines = searched(replace(job, search=search), place, cluster, 9)
    assert {trial.settings["optim.batch_size"]: trial.state for trial in study.trials} == {1: FAILED, 8: FINISHED}
    assert "cannot be shared by 2 workers" in study.trials[0].reason
    assert any(line.startswith("All 2 settings") for line in lines.said)
    assert "failed: Step 'second': a batch of 1 samples" in search_table.as_text(study.collected(), 140)


# -- killed --------------------------------------------------------------------------------------


def command(drawings: Path, place: Path) -> list[str]:
    return [str(part) for part in (MVRAY, "tune", JOB, "--data", drawings, "--storage", place)]


@pytest.mark.drill
def test_a_killed_search_ends_with_the_same_trials(whole: tuple[Study, Lines], drawings: Path, tmp_path: Path) -> None:
    place, log = tmp_path / "runs", tmp_path / "log"
    with log.open("wb") as out:
        killed = subprocess.Popen(command(drawings, place), stdout=out, stderr=out, start_new_session=True)
    end = time.monotonic() + 240
    while time.monotonic() < end and killed.poll() is None:
        files = list(place.glob("study-second-*/trials.json"))
        if files and sum(t["state"] != "running" for t in json.loads(files[0].read_text())) >= 2:
            break
        time.sleep(0.05)
    assert killed.poll() is None, log.read_text()
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    half = [trial for trial in trials_of(place) if trial["state"] != "running"]
    assert 2 <= len(half) < 6
    made = {file: file.stat().st_mtime_ns for file in place.glob("first-*/*") if file.is_file()}
    ended = {t["path"]: {f: f.stat().st_mtime_ns for f in (place / t["path"]).rglob("*") if f.is_file()} for t in half}

    again = subprocess.run(command(drawings, place), capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in again.stderr
    assert f"{len(half)} ended before. 0 of the 1 steps that it reads are to do first." in again.stderr
    study, _ = whole
    assert [(t["settings"], t["id"]) for t in trials_of(place)] == [(t.settings, t.id) for t in study.trials[:6]]
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert all({f: f.stat().st_mtime_ns for f in files} == files for files in ended.values())
    assert "Use it:   mvray run" in again.stdout

    job = job_of(drawings)
    found = collect(plan.make(job, Storage(str(place))))["search"]
    assert found["trials"][0]["settings"] == study.trials[0].settings
    best = Study(job, plan.make(job, Storage(str(place))).of(job.steps[0], 0)).best()
    assert best is not None
    words = again.stdout.split("Use it:   mvray run ")[1].splitlines()[0].split()
    shown = subprocess.run([str(MVRAY), "report", *words, "--json"], capture_output=True, text=True, timeout=60)
    (state,) = [step for step in json.loads(shown.stdout)["steps"] if step["name"] == "second"]
    assert (state["state"], state["id"]) == ("finished", best.id)  # a run with the best settings does nothing

    nowhere = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}  # with nothing left to train no cluster is asked for
    third = subprocess.run(command(drawings, place), env=nowhere, capture_output=True, text=True, timeout=100)
    assert (third.returncode, third.stdout) == (0, again.stdout), third.stderr

    (file,) = place.glob("study-second-*/trials.json")
    row = json.loads(file.read_text())[0]
    for content in (file.read_text()[:100], json.dumps([row | {"values": 3}])):
        file.write_text(content)
        refused = subprocess.run(command(drawings, place), capture_output=True, text=True, timeout=60)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"mvray: {file} is not as mvray has written it (")
        assert refused.stderr.count("\n") == 1


def test_mistakes_are_refused_at_once(tmp_path: Path, drawings: Path) -> None:
    for more, message in (
        (["--trials", "0"], "--trials 0: expected 1 or more."),
        (["--workers", "0"], "--workers 0: expected 1 or more: a search needs Ray."),
        (["--set", "search.step=third"], "search.step is 'third'; expected a Train step of 'searched': first, second."),
        (["--set", "search.metric=validation/f1"], "search.metric is 'validation/f1'"),
    ):
        refused = mvray(*command(drawings, tmp_path)[1:], *more)
        assert refused.code == 2
        assert refused.err.startswith("mvray: ")
        assert message in refused.err
        assert refused.err.count("\n") == 1
        assert not list(tmp_path.iterdir())


def test_the_searched_job_is_what_this_file_takes_it_for() -> None:
    job = load_job(JOB, False, None)
    assert isinstance(job.steps[0], Train)
    assert job.steps[0].optim.epochs == 6
