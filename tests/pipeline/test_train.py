"""Train steps on real Ray: one Ray for the whole file, a toy method, tiny pictures."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from mvray import Job
from mvray.cluster.session import Cluster
from mvray.data.readers.folder import Folder
from mvray.errors import Interrupted, NonFiniteLoss, StepFailed
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Data, Optim, Scale, Train
from mvray.methods import classifier
from mvray.pipeline import train
from mvray.pipeline.plan import make
from mvray.pipeline.run import _write_inputs
from mvray.storage.storage import Storage
from mvray.training.checkpoint import Checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # Ray Data sets its own deprecated settings when Ray Train copies its context.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

SCALE = Scale(workers=2, loader_workers=0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("train") / "pictures"
    draw = np.random.default_rng(0)
    for number in range(60):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (64, 48), dtype=np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(Storage(str(tmp_path_factory.mktemp("scratch"))))
    cluster.start(Job("one", (_step(Path("/nowhere")),)))
    cluster.ready()
    yield cluster
    cluster.stop()


def _step(root, name="one", **optim):
    data = Data(Folder(root=str(root)), Pictures(height=64, width=48, channels=1))
    config = classifier.Config(network="alexnet-small")
    return Train(name, config, data, Optim(**{"batch_size": 8, "epochs": 1, **optim}), scale=SCALE)


def _planned(step, storage):
    (planned,) = make(Job("job", (step,)), Storage(str(storage))).steps
    _write_inputs(planned)
    return planned


def _command_of(process):
    """Its command line; "" when it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _processes(name):
    return [p for p in psutil.Process().children(recursive=True) if name in _command_of(p)]


def test_the_next_step_is_taken_by_the_same_workers(cluster, pictures, tmp_path):
    train.run(_planned(_step(pictures), tmp_path), cluster)
    before = {process.pid for process in _processes("RayTrainWorker")}
    metrics = train.run(_planned(_step(pictures, lr=0.02), tmp_path), cluster)
    assert metrics["epochs"] == 1
    assert {process.pid for process in _processes("RayTrainWorker")} == before
    assert len(before) == 2


def test_the_same_step_comes_out_the_same_on_used_workers(cluster, pictures, tmp_path):
    weights = []
    for place in ("first", "second"):
        planned = _planned(_step(pictures), tmp_path / place)
        train.run(planned, cluster)
        weights.append(planned.folder.read("weights.safetensors"))
    assert weights[0] == weights[1]


def test_a_step_that_is_ended_early_has_a_checkpoint_and_its_workers_stay(cluster, pictures, tmp_path):
    whole = _planned(_step(pictures, epochs=15), tmp_path / "whole")
    train.run(whole, cluster)
    before = {process.pid for process in _processes("RayTrainWorker")}
    planned, stop = _planned(_step(pictures, epochs=15), tmp_path / "ended"), threading.Event()
    threading.Thread(target=lambda: (_wait_for(planned.folder, "progress.json"), stop.set())).start()
    with pytest.raises(Interrupted):
        train.run(planned, cluster, stop)
    assert not planned.folder.exists("metrics.json")
    assert Checkpoints(planned.folder).names()
    train.run(planned, cluster)
    assert {process.pid for process in _processes("RayTrainWorker")} == before
    assert planned.folder.read("weights.safetensors") == whole.folder.read("weights.safetensors")


def _wait_for(folder, name):
    until = time.monotonic() + 60
    while not folder.exists(name) and time.monotonic() < until:
        time.sleep(0.05)


@pytest.mark.parametrize("who", ["RayTrainWorker", "Controller", "TaskQueue"])
def test_a_lost_process_is_made_good(cluster, pictures, tmp_path, who):
    planned = _planned(_step(pictures), tmp_path)
    train.run(planned, cluster)  # now a worker group waits
    for process in _processes(f"ray::{who}"):
        process.kill()
    again = _planned(_step(pictures, epochs=2), tmp_path)
    assert train.run(again, cluster)["epochs"] == 2


def test_the_methods_own_error_comes_through_at_once(cluster, pictures, tmp_path):
    with pytest.raises(NonFiniteLoss, match="lr"):
        train.run(_planned(_step(pictures, lr=1e30, epochs=3), tmp_path), cluster)
    assert train.run(_planned(_step(pictures), tmp_path), cluster)["epochs"] == 1


def test_a_damaged_checkpoint_is_said_at_once_where_there_is_no_other(cluster, pictures, tmp_path):
    planned = _planned(_step(pictures, epochs=3), tmp_path)
    train.run(planned, cluster)
    last = Checkpoints(planned.folder).names()[-1]
    for file in (
        "metrics.json",
        *(f"checkpoints/{name}" for name in Checkpoints(planned.folder).names() if name != last),
    ):
        planned.folder.delete(file)
    planned.folder.write(f"checkpoints/{last}/model.safetensors", b"damaged")
    with pytest.raises(StepFailed, match=r"model.safetensors is damaged .* there is no other checkpoint"):
        train.run(planned, cluster)
    planned.folder.delete("checkpoints")
    assert train.run(planned, cluster)["epochs"] == 3


def test_a_mistake_in_a_method_is_not_tried_again(cluster, pictures, tmp_path):
    class Mistaken(classifier.Config):
        def build(self, facts):
            def forward(batch, phase):
                raise KeyError("there is no such thing")

            made = classifier.Config.build(self, facts)
            made.forward = forward
            return made

    step = replace(_step(pictures), method=Mistaken(network="alexnet-small"))
    planned = _planned(step, tmp_path)
    with pytest.raises(StepFailed, match=r"Step 'one' ended with KeyError: 'there is no such thing'\. The traceback"):
        train.run(planned, cluster)
    assert 'raise KeyError("there is no such thing")' in planned.folder.read("error.txt").decode()


def test_room_is_made_by_sending_a_waiting_crew_home(cluster, pictures, tmp_path):
    import ray

    train.run(_planned(_step(pictures), tmp_path), cluster)
    everything = ray.cluster_resources()["CPU"]
    assert ray.available_resources()["CPU"] < everything
    cluster.groups.make_room(everything, 0)
    assert ray.available_resources()["CPU"] == everything


@pytest.mark.drill
def test_a_command_that_is_ended_leaves_no_worker(pictures, tmp_path):
    job = tmp_path / "long.py"
    job.write_text(
        "from mvray.data.readers.folder import Folder\n"
        "from mvray import Data, Job, Optim, Pictures, Scale, Train\n"
        "from mvray.methods import classifier\n"
        "def job(tiny=False):\n"
        "    data = Data(Folder(), Pictures(height=64, width=48, channels=1))\n"
        "    step = Train('long', classifier.Config(network='alexnet-small'), data,\n"
        "                 Optim(batch_size=8, epochs=100000), scale=Scale(workers=2, loader_workers=0))\n"
        "    return Job('long', (step,))\n"
    )
    mvray = Path(sys.executable).parent / "mvray"
    command = [mvray, "run", job, "--data", pictures, "--storage", tmp_path / "runs"]
    for sent, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            until = time.monotonic() + 120
            while not _is_training(process, tmp_path / "runs"):
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.2)
            # After kill -9 Ray's two agents look for their dead server for a minute; they hold nothing.
            children = [child for child in _children(process) if "Agent" not in _command_of(child)]
            process.send_signal(sent)
            assert process.wait(timeout=120) == code
        finally:
            process.kill()
        gone, alive = psutil.wait_procs(children, timeout=90)
        assert not alive, [_command_of(child) for child in alive]
        assert len(gone) > 4


def _children(process):
    return psutil.Process(process.pid).children(recursive=True)


def _is_training(process, storage):
    workers = [child for child in _children(process) if "RayTrainWorker" in _command_of(child)]
    return len(workers) == 2 and any(storage.glob("long-*/progress.json"))
