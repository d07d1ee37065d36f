"""What an autoscaler may bring counts as room, on a cluster of real `ray start` processes that has no worker yet."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import yaml
from nodes import Net, net_of_nodes
from toys import Logged, Means, step_of

from mvray import Job
from mvray.cluster import placement
from mvray.cluster.session import Cluster
from mvray.data.readers.folder import Folder
from mvray.errors import ClusterError, DataError, Interrupted, SettingError, StepFailed
from mvray.experiment import Metric
from mvray.experiment.steps import Data, Generate, Measure, Scale, Step
from mvray.pipeline import cost as costs
from mvray.pipeline import generate, plan, run
from mvray.storage.storage import Storage
from mvray.tracking.terminal import Progress
from mvray.tuning import tune

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
    # A step that is interrupted leaves Ray Data's thread, which complains when the cluster is left.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

TYPES = {
    "head": {"resources": {"CPU": 0}, "max_workers": 0},
    "spot": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 8},
    "on-demand": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 4},
    "cpu": {"resources": {"CPU": 16}, "max_workers": 4},
}


def test_the_limit_of_all_nodes_binds_too() -> None:
    assert placement.allowed(TYPES, 16) == {"CPU": 4 * 16 + 12 * 8, "GPU": 12}
    assert placement.allowed(TYPES, 6) == {"CPU": 4 * 16 + 2 * 8, "GPU": 6}
    assert placement.allowed({"any": {"resources": {"GPU": 2}}}, 3) == {"GPU": 6}, "a type without a limit of its own"
    assert placement.allowed({}, 3) == {}


def test_what_is_said_by_hand() -> None:
    assert placement.parse_amounts("GPU=8,CPU=116") == {"GPU": 8, "CPU": 116}
    assert placement.parse_amounts("") == {}
    for text in ("8", "GPU=8;CPU=1", "GPU=8,", "GPU=-1", "GPU=many"):
        with pytest.raises(SettingError, match="expected resources of the whole cluster as in GPU=8,CPU=116"):
            placement.parse_amounts(text)


def test_the_cluster_of_this_repository() -> None:
    config = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
    assert placement.allowed(config["available_node_types"], config["max_workers"])["GPU"] == 12


@pytest.fixture(scope="module")
def net() -> Any:
    """A head without CPUs, and node 2 with two; this process's environment leads to it."""
    with net_of_nodes(cpus=2) as net:
        net.start(1)
        yield net


@pytest.fixture(scope="module")
def cluster(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Any:
    cluster = Cluster(Storage(str(tmp_path_factory.mktemp("scratch"))))
    cluster.start(Job("room", (step_of(Path("/nowhere"), Logged()),)))
    cluster.ready()
    yield cluster
    cluster.stop()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `ray up` leaves on the head, in a home of its own."""
    monkeypatch.setattr(placement, "CONFIG", tmp_path / "ray_bootstrap_config.yaml")
    placement.CONFIG.write_text(json.dumps({"available_node_types": TYPES, "max_workers": 16}))
    return placement.CONFIG


def _planned(drawings: Path, place: Path, name: str = "toy") -> plan.Planned:
    step = step_of(drawings, Logged(), name, workers=4, cpus_per_worker=2)
    return plan.make(Job("room", (step,)), Storage(str(place))).steps[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_that_may_come_are_room(net: Net, cluster: Cluster, config: Path, drawings: Path, tmp_path: Path) -> None:
    config.rename(tmp_path / "aside")
    planned = _planned(drawings, tmp_path)
    assert cluster.room() == (0, 0)
    assert tune.room(planned, cluster) == 1
    (tmp_path / "aside").rename(config)
    assert cluster.room() == (160, 12)
    assert tune.room(planned, cluster) == 3  # 12 GPUs, 4 for each trial
    steps = {name: _planned(drawings, tmp_path, name) for name in "abcd"}
    assert len(list(run._startable(steps, [], cluster))) == 3
    assert cluster.gpus() == 12
    config.write_text("not JSON")
    assert cluster.room() == (0, 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_too_few_gpus_are_refused_in_words(cluster: Cluster) -> None:
    step = step_of(Path("/nowhere"), Logged(), workers=4)
    for gpus, have in ((1, "is 1 GPU"), (3, "are 3 GPUs")):
        with pytest.raises(ClusterError, match=rf"4 workers, but there {have}\. Use --workers {gpus}\."):
            cluster.groups.take(step.scale, gpus, "toy", "job-toy", lambda: True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_an_autoscaler_tells_ray_counts_and_no_limit_is_a_number(
    net: Net, cluster: Cluster, drawings: Path, tmp_path: Path
) -> None:
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

    told = ClusterConfig()
    group = told.node_group_configs.add(name="gpu", max_count=5)
    group.resources.update({"CPU": 8, "GPU": 1})
    client = GcsClient(address=net.address)
    client.report_cluster_config(told.SerializeToString())
    assert cluster.room() == (40, 5)
    assert tune.room(_planned(drawings, tmp_path), cluster) == 1
    group.max_count = -1
    client.report_cluster_config(told.SerializeToString())
    assert cluster.room() == (placement.NO_LIMIT, placement.NO_LIMIT)
    assert tune.room(_planned(drawings, tmp_path), cluster) == tune.MOST_AT_ONCE
    client.report_cluster_config(ClusterConfig().SerializeToString())
    assert cluster.room() == (0, 0)


# -- with a node -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node(net: Net, cluster: Cluster) -> None:
    """Node 2 has come."""
    import ray

    net.start(2)
    until = time.monotonic() + 60
    while not ray.cluster_resources().get("CPU") and time.monotonic() < until:
        time.sleep(0.1)


class Lines(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []

    def say(self, line: str) -> None:
        self.shown.append(line)

    def show(self, key: str, text: str | None) -> None:
        self.shown.append(text or "")


class NoLog:
    """MLflow's place is taken by nobody."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: ""


def _done(step: Step, place: Path, cluster: Cluster) -> tuple[plan.Planned, list[str]]:
    """The step, done as a job does it, and all that was said."""
    log: Any = NoLog()
    lines = Lines()
    planned = plan.make(Job("room", (step,)), Storage(str(place))).steps[-1]
    run.run_step(planned, cluster, log, lines)
    return planned, lines.shown


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("node")
def test_an_actor_that_waits_for_room_is_not_charged(
    cluster: Cluster, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(line: str) -> None:
        if "waits for 1 more worker's room on the cluster" in line:
            threading.Timer(6.0, cluster.aborted.set).start()

    monkeypatch.setattr(cluster, "say", told)
    monkeypatch.setattr(cluster, "aborted", threading.Event())
    cluster._most_gpus = 0  # not what the autoscalers of the tests before have promised
    monkeypatch.setattr(cluster, "_most_gpus", 1)  # a GPU that the autoscaler promised, and that never comes
    step = Generate("means", Means(str(tmp_path)), step_of(drawings, Logged()).data, Scale(loader_workers=0))
    with pytest.raises(Interrupted):
        _done(step, tmp_path / "runs", cluster)
    # A thread that still asks Ray for something when it is left ends the process, or speaks up long after.
    assert [t.name for t in threading.enumerate() if t.name.startswith(("generate", "StreamingExecutor"))] == []
    cost = costs.total(plan.make(Job("room", (step,)), Storage(str(tmp_path / "runs"))).steps[0].folder)
    assert cost.seconds > 5
    assert cost.cpu_hours == cost.gpu_hours == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("node")
def test_actors_are_charged_from_when_they_are_there(cluster: Cluster, drawings: Path, tmp_path: Path) -> None:
    """One shard, so one actor, whatever ``workers`` says; it is charged while it makes its first shard, too."""
    (tmp_path / "slow").touch()
    data = step_of(drawings, Logged()).data
    step = Generate("means", Means(str(tmp_path), 6.0), data, Scale(workers=4, loader_workers=0))
    planned, said = _done(step, tmp_path / "runs", cluster)
    host = socket.gethostname()
    assert f"means (seed 0): 0/1 shards, 1 worker on {host}" in said
    cost = costs.total(planned.folder)
    assert 6 < cost.cpu_hours * 3600 <= cost.seconds + 1e-6  # hours and back: the last bit
    assert cost.gpu_hours == 0


@dataclass(frozen=True)
class Where(Metric):
    """Says in which process it ran. Files in ``folder`` tell it to wait (``slow``) and to raise (``bad``, ``odd``)."""

    folder: str

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> dict[str, float]:
        place = Path(self.folder)
        (place / f"began-{os.getpid()}").touch()
        while (place / "slow").exists():
            time.sleep(0.1)
        if (place / "bad").exists():
            raise DataError("These columns are of no use.")
        if (place / "odd").exists():
            raise KeyError("odd")
        return {"process": float(os.getpid())}


def _measure(drawings: Path, folder: Path) -> Measure:
    return Measure("score", Data(Folder(root=str(drawings))).test, (Where(str(folder)),))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("node")
def test_numbers_are_computed_on_a_node_and_again_where_that_is_lost(
    net: Net, cluster: Cluster, drawings: Path, tmp_path: Path
) -> None:
    (tmp_path / "slow").touch()

    def lose() -> None:
        until = time.monotonic() + 200
        while not (begun := list(tmp_path.glob("began-*"))) and time.monotonic() < until:
            time.sleep(0.1)
        os.kill(int(begun[0].name.partition("-")[2]), signal.SIGKILL)
        (tmp_path / "slow").unlink()

    losing = threading.Thread(target=lose)
    losing.start()
    planned, said = _done(_measure(drawings, tmp_path), tmp_path / "runs", cluster)
    losing.join()
    assert len(list(tmp_path.glob("began-*"))) == 2
    assert planned.metrics()["test/process"] != os.getpid()
    assert f"score (seed 0): on {socket.gethostname()}" in said
    cost = costs.total(planned.folder)
    assert 0 < cost.cpu_hours * 3600 <= cost.seconds


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("node")
def test_what_a_task_raises_is_said_as_in_this_process(cluster: Cluster, drawings: Path, tmp_path: Path) -> None:
    step = _measure(drawings, tmp_path)
    for name, error, message in (
        ("bad", DataError, r"^These columns are of no use\.$"),
        ("odd", StepFailed, r"^Step 'score' ended with KeyError: 'odd'\. The traceback is in .*/error.txt"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(error, match=message):
            _done(step, tmp_path / "runs", cluster)
        (tmp_path / name).unlink()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("node")
def test_ctrl_c_ends_the_task(
    cluster: Cluster, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "aborted", threading.Event())
    (tmp_path / "slow").touch()

    def stop() -> None:
        while not list(tmp_path.glob("began-*")):
            time.sleep(0.1)
        cluster.aborted.set()

    threading.Thread(target=stop).start()
    with pytest.raises(Interrupted):
        _done(_measure(drawings, tmp_path), tmp_path / "runs", cluster)
    (began,) = tmp_path.glob("began-*")
    until = time.monotonic() + 30
    while psutil.pid_exists(int(began.name.partition("-")[2])) and time.monotonic() < until:
        time.sleep(0.1)
    assert not psutil.pid_exists(int(began.name.partition("-")[2]))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("node")
def test_the_head_is_spared_where_another_node_will_do(cluster: Cluster) -> None:
    import ray

    (head,) = [node["NodeID"] for node in ray.nodes() if placement.HEAD in node["Resources"]]
    assert placement.heads_to_spare({"CPU": 2.0}) == set(), "it has no CPU"
    assert placement.heads_to_spare({}) == {head}
    assert placement.heads_to_spare({"CPU": 3.0}) == set(), "nor has another node so many"
    room = placement.reserve({"CPU": 1.0}, 1, 1, lambda _: None, lambda: False, {head})
    assert room is not None
    assert room.size == 1
    assert head not in placement.nodes_of(room.group)
    room.release()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_generate_step_needs_no_more_than_its_actors_have(
    node: None, cluster: Cluster, drawings: Path, tmp_path: Path
) -> None:
    """An actor that holds every CPU there is; what hands it its shards must not wait for another."""
    step = Generate("means", Means(), step_of(drawings, Logged()).data, Scale(cpus_per_worker=2, loader_workers=0))
    planned = plan.make(Job("room", (step,)), Storage(str(tmp_path))).steps[0]
    run._write_inputs(planned)
    assert generate.run(planned, cluster)["rows"] == 60
