"""What cluster/local_ray.py leans on inside Ray, and what it leaves out: these fail when a new Ray has changed it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from mvray import Job
from mvray.cluster.fork_server import ForkServer
from mvray.cluster.session import Cluster
from mvray.storage.storage import Storage

PREPARED = """
import sys
import ray.train
from mvray.cluster import local_ray

trainer = local_ray.trainer(print, None, None, scaling_config=ray.train.ScalingConfig(num_workers=1))
names = [type(callback).__name__ for callback in trainer._create_default_callbacks()]
assert "torch" not in sys.modules, "the driver has imported torch"
print(*names)
"""


@pytest.mark.slow
def test_the_trainer_is_made_without_torch_and_without_the_processes_it_leaves_out():
    made = subprocess.run([sys.executable, "-c", PREPARED], capture_output=True, text=True, check=True)
    names = made.stdout.split()
    assert {"BackendSetupCallback", "AcceleratorSetupCallback", "NoDatasets"} <= set(names)
    assert not {"DatasetsCallback", "PlacementGroupCleanerCallback"} & set(names)


def command_of(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline())


def about_worker() -> dict[str, object]:
    """What a worker says of itself."""
    import torch

    from mvray.training.environment import use_given_threads

    use_given_threads()
    parent, ids = psutil.Process().parent(), {ray.WorkerID.from_random().hex(), uuid.uuid4().hex}
    by = "" if parent is None else " ".join(parent.cmdline())
    own = {"threads": torch.get_num_threads(), "variable": os.environ.get("MINE")}
    chance = (random.random(), float(np.random.random()))
    oom = Path("/proc/self/oom_score_adj").read_text().strip()
    return {"pid": os.getpid(), "by": by, "ids": ids, "chance": chance, "oom": oom, **own}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ray of ours. Workers that are asked here import this file's functions by value."""
    made = Cluster(Storage(str(tmp_path_factory.mktemp("one"))))
    made.start(Job("empty", ()))
    made.ready()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield made
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    made.stop()


LISTENING = """
import sys
import psutil
from mvray import Job
from mvray.cluster import Cluster
from mvray.storage.storage import Storage

cluster = Cluster(Storage(sys.argv[1]))
cluster.start(Job("alone", ()))
cluster.ready()
import ray

ray.get(ray.remote(lambda: None).remote())
here = psutil.Process()
for process in (here, *here.children(recursive=True)):
    for connection in process.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            print(process.name(), connection.laddr.ip.removeprefix("::ffff:"))
cluster.stop()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_listens_on_this_machine_alone(tmp_path: Path) -> None:
    """Ray's own `ray.init()` listens on every interface. In a process of its own: Ray's core decides that once."""
    made = subprocess.run([sys.executable, "-c", LISTENING, tmp_path], capture_output=True, text=True, check=True)
    listening = [line.rsplit(" ", 1) for line in made.stdout.splitlines()]
    assert {name for name, _ in listening} >= {"gcs_server", "raylet"}
    assert {ip for _, ip in listening} == {"127.0.0.1"}


def asked(actors: int, **options: object) -> list[dict[str, object]]:
    """What that many workers say that live at the same time."""

    class Asked:
        def about(self) -> dict[str, object]:
            return about_worker()

    made = [ray.remote(Asked).options(num_cpus=1, **options).remote() for _ in range(actors)]
    said = ray.get([actor.about.remote() for actor in made])
    for actor in made:
        ray.kill(actor)
    return said


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_only_the_processes_that_are_needed_are_started(cluster: Cluster) -> None:
    running = [command_of(child.pid) for child in psutil.Process().children(recursive=True)]
    for left_out in ("dashboard.py", "monitor.py"):
        assert not any(left_out in command for command in running), running
    for needed in ("gcs_server", "raylet", "mvray.cluster.fork_server"):
        assert any(needed in command for command in running)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_workers_are_forked_and_share_no_chance(cluster: Cluster) -> None:
    """More than Ray starts ahead, so those that it starts for a job too."""
    said = asked(4) + asked(4)
    assert len({each["pid"] for each in said}) == 8
    assert all("mvray.cluster.fork_server" in str(each["by"]) for each in said)
    assert len(set().union(*(each["ids"] for each in said))) == 16
    assert all(len({each["chance"][i] for each in said}) == 8 for i in (0, 1))
    assert {each["oom"] for each in said} == {"1000"}
    assert {each["threads"] for each in said} == {1}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_worker_with_an_environment_of_its_own_starts_the_usual_way(cluster: Cluster) -> None:
    (said,) = asked(1, runtime_env={"env_vars": {"MINE": "yes"}})
    assert said["variable"] == "yes"
    assert "mvray.cluster.fork_server" not in str(said["by"])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_workers_start_without_the_process_that_forks_them(cluster: Cluster) -> None:
    """The last of these tests: it takes that process away."""
    (fork_server,) = [
        child for child in psutil.Process().children() if "mvray.cluster.fork_server" in command_of(child.pid)
    ]
    fork_server.kill()
    fork_server.wait()
    said = asked(2) + asked(2)
    assert any("mvray.cluster.fork_server" not in str(each["by"]) for each in said)
    assert len({each["pid"] for each in said}) == 4


LIVING = """
import time
from mvray.cluster.fork_server import ForkServer
print(ForkServer().address, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_the_process_that_forks_ends_with_its_command(tmp_path: Path) -> None:
    """However that ends; nothing is left of it."""
    first = subprocess.Popen(
        [sys.executable, "-c", LIVING], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert first.stdout is not None
    address = Path(first.stdout.readline().strip())
    assert address.is_socket()
    assert address.parent.parent == tmp_path
    assert address.parent.stat().st_mode & 0o77 == 0
    (fork_server,) = psutil.Process(first.pid).children()
    first.kill()
    first.communicate()
    fork_server.wait(timeout=60)
    assert not address.parent.exists()


def test_stopping_leaves_nothing() -> None:
    fork_server = ForkServer()
    assert fork_server.address.is_socket()
    fork_server.stop()
    assert not fork_server.address.parent.exists()
