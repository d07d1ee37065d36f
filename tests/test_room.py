"""What an autoscaler may bring counts as room, on a cluster of real `ray start` processes that has no worker yet."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from nodes import Net, environ_of_nodes, free_ports
from toys import Logged, step_of

from mvray import plan, room, run, tune
from mvray.cluster import Cluster
from mvray.errors import ClusterError
from mvray.job import Job
from mvray.storage import Storage

TYPES = {
    "head": {"resources": {"CPU": 0}, "max_workers": 0},
    "spot": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 8},
    "on-demand": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 4},
    "cpu": {"resources": {"CPU": 16}, "max_workers": 4},
}


def test_the_limit_of_all_nodes_binds_too() -> None:
    assert room.allowed(TYPES, 16) == {"CPU": 4 * 16 + 12 * 8, "GPU": 12}
    assert room.allowed(TYPES, 6) == {"CPU": 4 * 16 + 2 * 8, "GPU": 6}
    assert room.allowed({"any": {"resources": {"GPU": 2}}}, 3) == {"GPU": 6}, "a type without a limit of its own"
    assert room.allowed({}, 3) == {}


def test_the_cluster_of_this_repository() -> None:
    config = yaml.safe_load((Path(__file__).parent.parent / "cluster.yaml").read_text())
    assert room.allowed(config["available_node_types"], config["max_workers"])["GPU"] == 12


@pytest.fixture(scope="module")
def net() -> Any:
    """A head without CPUs, and node 2 with two; this process's environment leads to it."""
    from ray._private.authentication import authentication_token_setup as tokens

    before = dict(os.environ)
    tokens.enable_token_auth_by_default()
    tokens.ensure_token_if_auth_enabled(create_token_if_missing=True)
    short = Path(tempfile.mkdtemp(prefix="mv"))  # Ray's sockets have paths of 107 letters at most
    net = Net(short / "r", environ_of_nodes(), free_ports(1)[0], cpus=2)
    try:
        net.start(1)
        os.environ["RAY_ADDRESS"] = net.address
        yield net
    finally:
        net.stop()
        shutil.rmtree(short, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


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
    monkeypatch.setattr(room, "CONFIG", tmp_path / "ray_bootstrap_config.yaml")
    room.CONFIG.write_text(json.dumps({"available_node_types": TYPES, "max_workers": 16}))
    return room.CONFIG


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
            cluster.crews.take(step.scale, gpus, "toy", lambda: True)


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
    assert cluster.room() == (room.NO_LIMIT, room.NO_LIMIT)
    assert tune.room(_planned(drawings, tmp_path), cluster) == tune.MOST_AT_ONCE
    client.report_cluster_config(ClusterConfig().SerializeToString())
    assert cluster.room() == (0, 0)
