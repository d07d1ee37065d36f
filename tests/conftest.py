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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from nodes import free_ports
from PIL import Image
from servers import MlflowServer

BUCKET = "mvray-tests"
if "PYTEST_XDIST_WORKER" in os.environ:  # torch is not imported yet: as many processes as cores, so a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

COCO_WARNS = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # as in pyproject.toml


def pytest_sessionstart() -> None:
    """Ctrl-C must work in the commands that tests start, also where a shell started pytest in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


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


@dataclass(frozen=True)
class S3Server:
    """A running S3 server: its endpoint, and the environment with which AWS's own clients find it."""

    endpoint: str
    environ: dict[str, str]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS with one bucket, ``mvray-tests``, and one pair of keys."""
    folder = tmp_path_factory.mktemp("weed")
    keys = {"accessKey": "tester", "secretKey": "tests-only"}
    identity = {"name": "tests", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = [f"-{name}.port{kind}" for name in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    settings: dict[str, object] = dict(zip(names, free_ports(len(names)), strict=True))
    endpoint = f"http://127.0.0.1:{settings['-s3.port']}"
    settings |= {"-dir": folder, "-ip": "127.0.0.1", "-ip.bind": "127.0.0.1", "-s3.config": folder / "s3.json"}
    settings |= {"-s3.autoCreateBucket": "false", "-s3.port.iceberg": 0, "-s3.port.lance": 0}
    settings |= {"-master.telemetry": "false", "-master.volumeSizeLimitMB": 64, "-volume.max": 200}
    environ = {"AWS_ACCESS_KEY_ID": keys["accessKey"], "AWS_SECRET_ACCESS_KEY": keys["secretKey"]}
    server = S3Server(endpoint, {**environ, "AWS_ENDPOINT_URL": endpoint})
    arguments = [f"{name}={value}" for name, value in settings.items()]
    with (folder / "log").open("wb") as log:
        weed = subprocess.Popen(
            [Path(sys.executable).parent / "weed", "server", "-s3", *arguments], stdout=log, stderr=log
        )
    try:
        _wait(server, weed, folder / "log")
        yield server
    finally:
        weed.kill()  # its data goes too; ending in order takes it half a minute
        weed.wait()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty place on the S3 server; this process's environment leads there."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the bucket could be made."""
    import pyarrow.fs

    client = pyarrow.fs.S3FileSystem(
        access_key=server.environ["AWS_ACCESS_KEY_ID"],
        secret_key=server.environ["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=server.endpoint,
        allow_bucket_creation=True,
    )
    until, last = time.monotonic() + 90, OSError("it ended")
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
        try:
            socket.create_connection(("127.0.0.1", int(server.endpoint.rpartition(":")[2])), timeout=5).close()
            client.create_dir(BUCKET)
            return
        except OSError as error:
            last = error
    raise RuntimeError(f"SeaweedFS did not start ({last}): {log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="session")
def mlflow_server() -> Iterator[MlflowServer]:
    """MLflow with users over PostgreSQL and S3, started as users do; tests that kill it start it again."""
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
        assert Tracker(f"sqlite:///{root}/mlflow.db", "Default", root / "spool").close() == ""

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
