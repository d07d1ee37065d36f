"""Servers, samples and cluster pieces that tests of more than one file use; each is made once per test run."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from nodes import free_ports
from PIL import Image
from seaweed import BUCKET, SeaweedFS
from servers import MlflowServer

from mvray.storage import retry

if "PYTEST_XDIST_WORKER" in os.environ:  # torch is not imported yet: as many processes as cores, so a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

COCO_WARNS = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # as in pyproject.toml


def pytest_sessionstart() -> None:
    """Ctrl-C must work in the commands that tests start, also where a shell started pytest in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    retry.begin()  # a test before this one may have interrupted a run in this process
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


LONG = (
    "test_rehearsal.py",
    "test_cluster_faults.py",
    "test_job_client.py",
    "test_own_method.py",
    "test_tune.py",
    "test_cli.py",
    "test_contract.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: else one core is left alone with them in the end."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that ``make`` writes, made by the first of pytest-xdist's workers that asks for it."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / name).exists():
            make(shared / f"{name}.part")
            (shared / f"{name}.part").rename(shared / name)
    return shared / name


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """SeaweedFS with one bucket, ``mvray-tests``, and one pair of keys."""
    server = SeaweedFS(tmp_path_factory.mktemp("weed"))
    service = server.start()
    yield server
    service.end(timeout_s=0)  # its data goes too; ending in order takes it half a minute


@pytest.fixture
def s3(s3_server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty place on the S3 server; this process's environment leads there."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def mlflow_server() -> Iterator[MlflowServer]:
    """MLflow with users, started as users do; tests that kill it start it again."""
    server = MlflowServer()
    try:
        server.start()
        yield server
    finally:
        server.end()


@pytest.fixture
def mlflow_user(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    """The same, with this process's environment leading there as admin."""
    for name, value in mlflow_server.environ.items():
        monkeypatch.setenv(name, value)
    return mlflow_server


@pytest.fixture(scope="session")
def sample_comics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of three small sample comics, 24 pages, with shifted pages, in Manga109's layout."""
    from mvray.data.synthetic.comics import compose

    return once(tmp_path_factory, "comics", lambda root: compose(root, titles=3, pages=8, processes=1))


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 grey pictures of 12 x 8 pixels in a folder per class: 42 train, 6 validation, 12 test."""
    root = tmp_path_factory.mktemp("drawings")
    draw = np.random.default_rng(0)
    for shade, name in enumerate(("ada", "ben", "cleo")):
        (root / name).mkdir()
        for number in range(20):
            pixels = draw.integers(0, 100, (12, 8)) + 60 * shade + 20 * (np.arange(8) % (shade + 2) == 0)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 videos of 8 frames of 64 x 48 pixels in a folder per class: 16 or 17 train, 2 or 3 validation, 5 test."""
    import av

    root = tmp_path_factory.mktemp("videos")
    draw = np.random.default_rng(0)
    for shade, name in enumerate(("ada", "ben", "cleo")):
        (root / name).mkdir()
        for number in range(8):
            with av.open(str(root / name / f"{number:02d}.avi"), "w") as out:
                stream = out.add_stream("mpeg4", rate=25, options={"threads": "1"})
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
                for _ in range(8):
                    pixels = (draw.integers(0, 100, (6, 8, 3)) + 60 * shade).astype(np.uint8)
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels.repeat(8, 0).repeat(8, 1), "rgb24")))
                out.mux(stream.encode())
    return root


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file of MLflow's without a run, to be copied: MLflow takes seconds to make one."""
    from mvray.tracking.tracker import Tracker

    def make(root: Path) -> None:
        assert Tracker(f"sqlite:///{root}/mlflow.db", "Default", root / "outbox").close() == ""

    return once(tmp_path_factory, "store", make) / "mlflow.db"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time.monotonic says, in seconds; tests let it pass."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: with little work in each call, threads mostly wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Callable[..., list[str]]]:
    """Train a Task on two processes with gloo, as torchrun starts them: ``two_ranks(task, stop_at=0)``.

    Returns what each says: "done", or the message of its MvrayError.
    The pair stays for the whole test run, because its start costs the seconds that torch takes to import.
    """
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    common |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ours, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
    numbers = [each.fileno() for each in theirs]
    pair = subprocess.Popen(
        [sys.executable, "-W", "error", "-W", COCO_WARNS, Path(__file__).with_name("rank.py"), *map(str, numbers)],
        env={**os.environ, **common},
        pass_fds=numbers,
        start_new_session=True,  # so that both are one group
    )
    for each in theirs:
        each.close()
    ranks = [each.makefile("rw") for each in ours]

    def train(task: object, stop_at: int = 0) -> list[str]:
        line = json.dumps({"task": base64.b64encode(pickle.dumps(task)).decode(), "stop_at": stop_at})
        for rank in ranks:
            print(line, file=rank, flush=True)
        return [rank.readline().rstrip() for rank in ranks]

    yield train
    os.killpg(pair.pid, signal.SIGKILL)
    pair.wait()
    for each in (*ranks, *ours):
        each.close()
