"""What happens to runs on a cluster of many nodes when parts of it are lost, go, come back, or are wanted by others.

One cluster of real `ray start` processes for the whole file, whose tests take nodes from it and give it new ones.
Steps are tiny.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from nodes import environ_of_nodes, net_of_nodes
from toys import Logged, Means, rows_of_epochs, step_of

from mvray import Job
from mvray.cluster.session import Cluster
from mvray.experiment.steps import Generate, Scale
from mvray.pipeline import generate, train
from mvray.pipeline import shards as shard_files
from mvray.pipeline.plan import make
from mvray.pipeline.run import _write_inputs
from mvray.storage.storage import Storage
from mvray.training.checkpoint import Checkpoints, weights_from_bytes

pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

MVRAY = Path(sys.executable).parent / "mvray"
EPOCHS, BATCHES, BATCH = 8, 5, 8
ROWS = EPOCHS * BATCHES
"""Of `drawings` 42 train, so two are left out of each epoch."""
GRACE_S = 60
"""Between the notice that a node is given and its end."""


@pytest.fixture(scope="module")
def net():
    """The head and two nodes, with a CPU each; tests ask for what they need. This process's environment leads to it."""
    with net_of_nodes() as net:
        net.start(1)
        net.workers(2)
        yield net


SAID = []


@pytest.fixture(scope="module")
def said():
    return SAID


@pytest.fixture(scope="module")
def cluster(net, said, tmp_path_factory):
    cluster = Cluster(Storage(str(tmp_path_factory.mktemp("scratch"))), say=said.append, grow_after_s=2.0)
    assert not cluster.is_local
    cluster.start(Job("faults", (step_of(Path("/nowhere"), Logged()),)))
    cluster.ready()
    yield cluster
    cluster.stop()


def _planned(drawings, place, name="toy", workers=2, pause_s=0.3, **scale):
    (place / "logs").mkdir(parents=True, exist_ok=True)
    (place / "logs/slow").touch()
    method = Logged(folder=str(place / "logs"), pause_s=pause_s)
    step = step_of(drawings, method, name, epochs=EPOCHS, workers=workers, checkpoint_steps=2, **scale)
    (planned,) = make(Job("faults", (step,)), Storage(str(place / "runs"))).steps
    _write_inputs(planned)
    return planned


class Running:
    """A step that trains in a thread."""

    def __init__(self, planned, cluster):
        self.planned, self.logs = planned, Path(planned.step.method.folder)
        self._error = None
        self._thread = threading.Thread(target=self._run, args=(cluster,))
        self._thread.start()

    def _run(self, cluster):
        try:
            train.run(self.planned, cluster)
        except BaseException as error:
            self._error = error

    def checkpoint(self, after=0):
        """Wait for a checkpoint of a later step than ``after``; the number of its step."""
        return _wait(lambda: next((int(n) for n in Checkpoints(self.planned.folder).names()[-1:] if int(n) > after), 0))

    def finish(self):
        """Without further pauses; the weights."""
        (self.logs / "slow").unlink(missing_ok=True)
        self._thread.join(240)
        assert not self._thread.is_alive(), "the step goes on and on"
        if self._error:
            raise self._error
        return self.planned.folder.read("weights.safetensors")

    def check_rows(self):
        """Every row of an epoch once, but the last two, whatever was done again."""
        epochs = rows_of_epochs(self.logs, BATCHES)
        assert sorted(epochs) == list(range(EPOCHS))
        for rows in epochs.values():
            assert len(rows) == len(set(rows)) == BATCHES * BATCH


def _wait(what, timeout_s=180):
    until = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < until, f"waited in vain; {SAID}"
        time.sleep(0.05)
    return found


def _said(said, text):
    return [line for line in said if text in line]


@pytest.fixture(scope="module")
def undisturbed(cluster, drawings, tmp_path_factory):
    running = Running(_planned(drawings, tmp_path_factory.mktemp("undisturbed")), cluster)
    weights = running.finish()
    running.check_rows()
    return weights


@pytest.mark.parametrize("who", ["RayTrainWorker", "TrainController", "TaskQueue", "RayTrainWorker, asked to end"])
def test_a_killed_process_changes_nothing(net, cluster, said, undisturbed, drawings, tmp_path, who):
    said.clear()
    net.workers(2)
    running = Running(_planned(drawings, tmp_path), cluster)
    done = running.checkpoint()
    gently = who.endswith("end")
    found = net.processes(f"ray::{who.partition(',')[0]}")
    for process in found[:1] if who.startswith("RayTrain") else found:
        process.send_signal(signal.SIGTERM if gently else signal.SIGKILL)
    if gently:
        _wait(lambda: len(list(running.logs.glob("*.log"))) > 2)  # the next two workers
        assert Checkpoints(running.planned.folder).names()[-1] > f"{done:09d}"
    assert running.finish() == undisturbed
    assert bool(_said(said, "workers were lost")) != gently
    running.check_rows()


def test_training_leaves_a_node_that_is_given_notice(net, cluster, said, undisturbed, drawings, tmp_path):
    from ray.core.generated import autoscaler_pb2

    said.clear()
    going = net.workers(3)[1]
    running = Running(_planned(drawings, tmp_path), cluster)
    before = running.checkpoint()
    drained = next(node for node in _nodes() if node["NodeManagerAddress"] == f"127.0.0.{going}")
    told_at = time.monotonic()
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    _gcs(net).drain_node(drained["NodeID"], reason, "spot", int((time.time() + GRACE_S) * 1000))
    _wait(lambda: _said(said, "a node is about to be taken away"))
    written_s = time.monotonic() - told_at
    assert Checkpoints(running.planned.folder).names()[-1] > f"{before:09d}"
    assert written_s < GRACE_S
    print(f"checkpoint {written_s:.1f} s after the notice")
    assert running.finish() == undisturbed
    assert not _said(said, "lost")
    running.check_rows()
    net.kill(going)


def test_training_leaves_a_node_that_is_shut_down_and_waits_for_another(
    net, cluster, said, undisturbed, drawings, tmp_path
):
    said.clear()
    going = net.workers(2)[1]
    running = Running(_planned(drawings, tmp_path), cluster)
    running.checkpoint()
    net.nodes[going].send_signal(signal.SIGTERM)
    _wait(lambda: _said(said, "a node is about to be taken away"))
    _wait(lambda: _said(said, "toy: waits for 1 more worker's room on the cluster"))
    assert not running.planned.folder.exists("progress.json")  # by which it would be charged
    net.one_more()
    assert running.finish() == undisturbed
    assert not _said(said, "lost")
    running.check_rows()


def test_fewer_workers_go_on_when_a_node_is_lost_and_more_when_one_comes(
    net, cluster, said, undisturbed, drawings, tmp_path
):
    said.clear()
    lost = net.workers(2)[1]
    # Slowly: a node takes its time to start, and there must be something left to do by then.
    running = Running(_planned(drawings, tmp_path, min_workers=1, pause_s=2.0), cluster)
    done = running.checkpoint()
    net.kill(lost)
    _wait(lambda: _said(said, "toy: 1 of 2 workers"))
    done = running.checkpoint(after=done)
    net.one_more()
    _wait(lambda: _said(said, "toy: there is room for 2 workers"))
    found = weights_from_bytes(running.finish())
    running.check_rows()
    expected = weights_from_bytes(undisturbed)
    # Sums over one rank and over two differ in the last bits.
    assert all(np.allclose(found[name], expected[name], rtol=1e-4, atol=1e-6) for name in expected)


def test_a_step_leaves_its_room_to_others_and_the_next_one_waits_for_them(
    net, cluster, said, undisturbed, drawings, tmp_path
):
    import ray.util

    said.clear()
    net.workers(2)
    others = ray.util.placement_group([{"CPU": 1}])
    assert others.wait(120)
    running = Running(_planned(drawings, tmp_path), cluster)
    _wait(lambda: _said(said, "toy: waits for 1 more worker's room on the cluster"))
    ray.util.remove_placement_group(others)
    assert running.finish() == undisturbed


def test_clocks_that_differ_by_an_hour_change_nothing(net, cluster, said, undisturbed, drawings, tmp_path):
    """Of the node's Python processes: libfaketime makes Python's own sleep fail, so Ray does not start under it."""
    said.clear()
    ahead = tmp_path / "ahead"
    ahead.mkdir()
    (ahead / "sitecustomize.py").write_text(
        "import time\n"
        "now, now_ns = time.time, time.time_ns\n"
        "time.time, time.time_ns = lambda: now() + 3600, lambda: now_ns() + 3600 * 10**9\n"
    )
    net.workers(1)
    net.one_more(PYTHONPATH=f"{ahead}:{net.environ['PYTHONPATH']}")
    running = Running(_planned(drawings, tmp_path), cluster)
    running.checkpoint()
    began_s = sorted(int(file.name.partition("-")[0]) / 1e9 for file in running.logs.glob("*.log"))
    assert began_s[-1] - began_s[0] > 3000  # two workers, on nodes that disagree
    net.processes("ray::RayTrainWorker")[0].kill()
    assert running.finish() == undisturbed


def test_generated_columns_survive_a_lost_node(net, cluster, drawings, tmp_path, monkeypatch):
    """Two actors on two nodes, of which one is switched off; shards that were there are left alone."""
    monkeypatch.setattr(shard_files, "SHARD_ROWS", 5)
    (tmp_path / "slow").touch()
    lost = net.workers(2)[0]

    def planned_at(place):
        step = Generate(
            "means", Means(str(tmp_path)), step_of(drawings, Logged()).data, Scale(workers=2, loader_workers=0)
        )
        (planned,) = make(Job("faults", (step,)), Storage(str(tmp_path / place))).steps
        _write_inputs(planned)
        return planned

    def shards(planned):
        return {entry.path: planned.folder.local(entry.path) for entry in planned.folder.list("columns")}

    planned, errors = planned_at("runs"), []

    def run():
        try:
            generate.run(planned, cluster)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    _wait(lambda: len(net.processes("ray::MapWorker")) == 2)
    _wait(lambda: len(shards(planned)) >= 3)
    before = {path: file.stat().st_mtime_ns for path, file in shards(planned).items()}
    net.kill(lost)
    net.one_more()
    (tmp_path / "slow").unlink()
    thread.join(240)
    assert not thread.is_alive()
    assert not errors
    alone = planned_at("alone")
    generate.run(alone, Cluster(alone.storage, workers=0))
    assert len(shards(alone)) == 12
    assert len(before) < 12
    assert {n: f.read_bytes() for n, f in shards(planned).items()} == {
        n: f.read_bytes() for n, f in shards(alone).items()
    }
    assert {path: file.stat().st_mtime_ns for path, file in shards(planned).items() if path in before} == before


def test_a_command_survives_interruption_killing_and_a_new_head(net, cluster, undisturbed, drawings, tmp_path):
    cluster.stop()
    net.workers(2)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/slow").touch()
    job = tmp_path / "job.py"
    job.write_text(
        "from pathlib import Path\n"
        "from toys import Logged, step_of\n"
        "from mvray import Job\n"
        "def job(tiny=False):\n"
        f"    method = Logged(folder={str(tmp_path / 'logs')!r})\n"
        f"    step = step_of(Path({str(drawings)!r}), method, epochs={EPOCHS}, workers=2, checkpoint_steps=2)\n"
        "    return Job('faults', (step,))\n"
    )
    storage = Storage(str(tmp_path / "runs"))

    def start():
        command = [MVRAY, "run", job, "--storage", storage.uri]
        environ = {**environ_of_nodes(), "RAY_ADDRESS": net.address}
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environ, start_new_session=True)

    def newest():
        folders = [entry.path for entry in storage.list() if entry.path.startswith("toy-")]
        names = Checkpoints(storage.child(folders[0])).names() if folders else []
        return int(names[-1]) if names else 0

    def checkpoint(process, after):
        def found():
            assert process.poll() is None, (tmp_path / "log").read_text()
            return newest() > after

        _wait(found)
        return newest()

    process, done = start(), 0
    done = checkpoint(process, done)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    _wait(lambda: not net.processes("ray::RayTrainWorker"))
    process = start()
    done = checkpoint(process, newest())
    children = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(children, timeout=90)
    assert gone
    assert not alive
    _wait(lambda: not net.processes("ray::RayTrainWorker"))
    process = start()
    done = checkpoint(process, newest())
    for number in list(net.nodes):
        net.kill(number)
    net.start(1)
    net.workers(2)
    (tmp_path / "logs/slow").unlink()
    assert process.wait(300) == 0, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_text()
    assert "the cluster was lost" in text
    assert "Traceback" not in text
    (folder,) = [entry.path for entry in storage.list() if entry.path.startswith("toy-")]
    assert storage.read(f"{folder}/weights.safetensors") == undisturbed


def _nodes():
    import ray

    return ray.nodes()


def _gcs(net):
    from ray._raylet import GcsClient

    return GcsClient(address=net.address)
