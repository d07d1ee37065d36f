"""All of it at once, as a lab has it: three nodes, S3, MLflow with users, a job and a search submitted.

Meanwhile a node is switched off and another one comes, the S3 server answers 503 and then not at all until that is
told, and MLflow's server is killed and comes back when that is over. What is there in the end is what an undisturbed
run on one machine makes, bit by bit, and MLflow's pages show all of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import git
from nodes import Net, net_of_nodes
from PIL import Image
from s3_proxy import SLOW_DOWN, S3Proxy
from servers import Browser, MlflowServer, client_of

from mvray.storage.storage import Storage

ROOT = Path(__file__).parent.parent
MVRAY = Path(sys.executable).parent / "mvray"
JOB = "jobs/gradcam_masking.py"
EPOCHS = 60
SMALL = ("pictures.height=48", "pictures.width=32", f"phase1.optim.epochs={EPOCHS}", f"phase1.optim.patience={EPOCHS}")
SMALL += ("scale.checkpoint_steps=10",)
SMALL += tuple(f"{step}.optim.epochs={EPOCHS}" for step in ("plain", "erasing", "masked"))
TRIALS = 12

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]


@dataclass
class Lab:
    """The cluster, the servers, and the repository from which jobs are sent."""

    net: Net
    s3: S3Proxy
    mlflow: MlflowServer
    repository: Path
    data: str
    storage: str

    def mvray(self, *words: object, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [str(word) for word in (MVRAY, *words)]
        given = {"capture_output": True, "text": True, "timeout": 400, "cwd": self.repository}
        ended = subprocess.run(command, env={**os.environ, **environ}, check=False, **given)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended

    def submit(self, *more: object) -> str:
        return self.mvray("submit", JOB, *options(self.data, self.storage), *more).stdout.strip()

    def wait_for(self, id_: str, there: Callable[[], object]) -> None:
        until, looks = time.monotonic() + 300, 0
        while not there():
            time.sleep(0.2)
            looks += 1
            if looks % 50 == 0:
                (line,) = [line for line in self.mvray("jobs").stdout.splitlines() if line.startswith(id_)]
                assert line.split()[1] in ("PENDING", "RUNNING"), self.log(id_)
            assert time.monotonic() < until, self.log(id_)

    def ended(self, id_: str) -> str:
        """Follow the job to its end; its log."""
        said = self.mvray("logs", id_, "--follow").stdout
        assert "Traceback" not in said
        return said

    def log(self, id_: str) -> str:
        return self.mvray("logs", id_).stdout

    def folders(self, name: str) -> list[str]:
        return [entry.path for entry in Storage(self.storage).list() if entry.path.startswith(f"{name}-")]

    def files(self, name: str, below: str) -> list[str]:
        return [e.path for folder in self.folders(name) for e in Storage(self.storage).list(f"{folder}/{below}")]


def options(data: str, storage: object) -> list[object]:
    sets = [part for setting in SMALL for part in ("--set", setting)]
    return ["--tiny", "--data", data, "--storage", storage, *sets]


@pytest.fixture(scope="module")
def lab(
    s3_server: Any, mlflow_server: MlflowServer, sample_comics: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    place = tmp_path_factory.mktemp("lab")
    repository = place / "repository"
    (repository / "jobs").mkdir(parents=True)
    shutil.copy(ROOT / JOB, repository / "jobs")
    shutil.copy(ROOT / "requirements.lock", repository)
    git(repository, "init", "--quiet")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "jobs")
    proxy = S3Proxy(s3_server.endpoint)
    environ = {**s3_server.environ, "AWS_ENDPOINT_URL": proxy.endpoint, **mlflow_server.environ}
    root = f"s3://mvray-tests/{uuid.uuid4().hex}"
    with contextlib.closing(proxy), net_of_nodes(cpus=2, dashboard=True, **environ) as net:
        for file in sample_comics.rglob("*"):
            if file.is_file():
                Storage(f"{root}/comics").write(str(file.relative_to(sample_comics)), file.read_bytes())
        for number in (1, 2, 3):
            net.start(number)
        yield Lab(net, proxy, mlflow_server, repository, f"{root}/comics", f"{root}/runs")


@pytest.fixture(scope="module")
def undisturbed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Weights by the path of their step, of the same job on this machine alone."""
    place = tmp_path_factory.mktemp("undisturbed") / "runs"
    environ = {"RAY_API_SERVER_ADDRESS": "", "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1"}
    lab.mvray("run", JOB, *options(lab.data, place), "--only", "masked", **environ)
    return {file.parent.name: file.read_bytes() for file in place.glob("*/weights.safetensors")}


@pytest.mark.short_drill
def test_a_job_among_faults(lab: Lab, undisturbed: dict[str, bytes]) -> None:
    id_ = lab.submit("--only", "masked")
    lab.wait_for(id_, lambda: lab.files("phase1", "checkpoints"))
    lab.net.kill(lab.net.hosts("ray::RayTrainWorker")[0])
    lab.net.start(4)
    lab.wait_for(id_, lambda: lab.files("masked", "checkpoints"))
    lab.s3.answer = lambda method, path: SLOW_DOWN
    lab.mlflow.kill()
    time.sleep(5)
    lab.s3.answer = lambda method, path: None
    lab.s3.gone()
    lab.wait_for(id_, lambda: "does not answer" in lab.log(id_))  # said after 20 s
    lab.mlflow.start()
    lab.s3.back()  # last: without it the job cannot end, however long MLflow takes to start
    said = lab.ended(id_)
    assert lab.s3.refused
    assert "s3://mvray-tests answers again" in said
    assert "phase1: workers were lost" in said
    assert f"MLflow:   {lab.mlflow.address}" in said
    assert "Not delivered" not in said
    storage = Storage(lab.storage)
    assert set(undisturbed) == set(lab.folders("phase1") + lab.folders("masked"))
    for path, weights in undisturbed.items():
        assert storage.read(f"{path}/weights.safetensors") == weights


def test_a_search_among_faults(lab: Lab) -> None:
    """After the job: it shares all steps before the searched one with it."""
    before = {
        file: Storage(lab.storage).read(f"{file}/step.json") for file in lab.folders("phase1") + lab.folders("cams")
    }
    assert len(before) == 2
    id_ = lab.submit("--tune", "--trials", TRIALS, "--concurrent", 2)

    def ended() -> int:
        trials = [trial for path in lab.folders("study-masked") for trial in trials_of(lab, path)]
        return sum(trial["state"] != "running" for trial in trials)

    lab.wait_for(id_, lambda: ended() >= 3)
    lab.net.kill(lab.net.hosts("ray::RayTrainWorker")[0])
    lab.net.start(5)
    lab.wait_for(id_, lambda: ended() >= 6)
    lab.mlflow.kill()
    lab.mlflow.start()
    said = lab.ended(id_)
    lab.mvray("deliver", "--storage", lab.storage)  # the search may have ended while MLflow still started
    assert "0 of the 2 steps that it reads are to do first." in said
    (study,) = lab.folders("study-masked")
    trials = trials_of(lab, study)
    assert [trial["number"] for trial in trials] == list(range(TRIALS))
    assert {trial["state"] for trial in trials} <= {"finished", "stopped"}
    after = {
        file: Storage(lab.storage).read(f"{file}/step.json") for file in lab.folders("phase1") + lab.folders("cams")
    }
    assert after == before  # once for all trials, and for the job


def test_mlflow_shows_all_of_it(lab: Lab, tmp_path: Path) -> None:
    """What a person opens: the runs, the study's pictures, a step's curves."""
    client = client_of(lab.mlflow)
    experiment = client.get_experiment_by_name("gradcam_masking").experiment_id
    runs = client.search_runs([experiment])
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}  # killed: trials that were stopped early
    (made,) = (run for run in runs if run.info.run_name.startswith("phase1") and "mvray.reused" not in run.data.tags)
    losses = client.get_metric_history(made.info.run_id, "validation/loss")
    assert sorted(point.step for point in losses) == list(range(EPOCHS))
    (study,) = (run for run in runs if run.data.tags.get("mvray.kind") == "Search")
    trials = [run for run in runs if run.data.tags.get("mvray.kind") == "Trial"]
    assert sorted(run.info.run_name for run in trials) == sorted(f"trial {number}" for number in range(TRIALS))
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {study.info.run_id}
    assert study.data.tags["mvray.best"].startswith("--set masked.method.")
    pictures = {Path(file.path).stem: file.path for file in client.list_artifacts(study.info.run_id, "search")}
    assert set(pictures) == {"parallel-coordinates", "importance", "learning-curves", "best-so-far"}
    if shutil.which("chromium") is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(lab.mlflow.address.replace("://", f"://admin:{lab.mlflow.password}@"))
        browser.wait_for("document.body && document.body.innerText.includes('Experiments')")
        for name, seen in looked_at(browser, f"{lab.mlflow.address}/#/experiments/{experiment}", study, made, pictures):
            (tmp_path / f"{name}.png").write_bytes(seen)
            assert len(np.unique(np.asarray(Image.open(io.BytesIO(seen)).convert("L")))) > 50, f"{name} is empty"
    finally:
        browser.end()


def looked_at(
    browser: Browser, pages: str, study: Any, step: Any, pictures: dict[str, str]
) -> Iterator[tuple[str, bytes]]:
    """The names and looks of the pages."""
    kind = "?workflowType=machine_learning"
    browser.open(f"{pages}{kind}")
    browser.wait_for(f"[...document.links].some(link => link.innerText.trim() == {study.info.run_name!r})")
    browser.run("document.querySelectorAll('[data-component-id*=runnamecellrenderer]').forEach(plus => plus.click())")
    browser.wait_for(f"[...document.links].some(link => link.innerText.trim() == 'trial {TRIALS - 1}')")
    yield "runs", browser.picture()
    for name, path in pictures.items():
        browser.open("about:blank")  # MLflow keeps showing the picture that was chosen first
        browser.open(f"{pages}/runs/{study.info.run_id}/artifacts/{path}{kind}")
        browser.wait_for(f"[...document.images].some(i => i.alt == {path!r} && i.naturalWidth > 300)")
        yield name, browser.picture()
    browser.open("about:blank")
    browser.open(f"{pages}/runs/{step.info.run_id}/model-metrics{kind}")
    heading = "[...document.querySelectorAll('div')].find(e => !e.children.length && e.innerText == 'validation')"
    browser.wait_for(f"{heading} != null")
    browser.run(f"{heading}.scrollIntoView()")  # charts are drawn once they are in view
    browser.wait_for(
        "document.querySelector('.js-plotly-plot .scatterlayer path, .js-plotly-plot .lines path') != null"
    )
    yield "curves", browser.picture()


def trials_of(lab: Lab, study: str) -> list[dict[str, Any]]:
    storage = Storage(f"{lab.storage}/{study}")
    if not storage.exists("trials.json"):
        return []
    read: list[dict[str, Any]] = json.loads(storage.read("trials.json"))
    return read
