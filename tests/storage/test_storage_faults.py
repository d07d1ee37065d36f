"""A storage that is busy, slow, away or full while a step trains: real servers, a real disk, the real command."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from s3_proxy import SLOW_DOWN, S3Proxy

from mvray.storage.storage import Storage

if TYPE_CHECKING:
    from seaweed import SeaweedFS

ROOT = Path(__file__).parents[2]
EPOCHS = 16
QUICK = {"OMP_NUM_THREADS": "1"}  # so little work: threads would mostly wait for one another
DISK_BYTES = 64 << 20

pytestmark = [pytest.mark.drill, pytest.mark.timeout(600)]


@pytest.fixture
def proxy(s3_server: SeaweedFS) -> Iterator[S3Proxy]:
    made = S3Proxy(s3_server.endpoint)
    yield made
    made.close()


def command(data: str, storage: str, *more: str) -> list[str]:
    settings = {"source": "folder", "pictures.height": 48, "pictures.width": 32, "phase1.optim.epochs": EPOCHS}
    settings |= {"phase1.optim.patience": "none", "phase1.optim.batch_size": 8, "scale.checkpoint_steps": 3}
    settings |= {"data.max_bad_fraction": 0}
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    job = str(ROOT / "jobs/gradcam_masking.py")
    options = ["--tiny", "--data", data, "--storage", storage, "--only", "phase1", "--workers", "0"]
    return [str(Path(sys.executable).parent / "mvray"), "run", job, *options, *given, *more]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """``start(command, environ)`` starts it in a folder of its own; its output goes to tmp_path/log."""
    started: list[subprocess.Popen[bytes]] = []

    def make(line: list[str], environ: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                line, stdout=log, stderr=log, cwd=tmp_path, env={**os.environ, **QUICK, **(environ or {})}
            )
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()
        process.wait()


def step_in(storage: Storage) -> Storage | None:
    found = [entry.path for entry in storage.list() if entry.path.startswith("phase1-")]
    return storage.child(found[0]) if found else None


def newest(storage: Storage) -> int:
    """Of the checkpoints that count."""
    folder = step_in(storage)
    done = (
        [e.path for e in folder.list("checkpoints", recursive=True) if e.path.endswith("complete.json")]
        if folder
        else []
    )
    return max((int(path.split("/")[1]) for path in done), default=-1)


def wait_for(storage: Storage, steps: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 180
    while newest(storage) < steps:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)


def result(storage: Storage) -> tuple[bytes, object]:
    folder = step_in(storage)
    assert folder is not None
    assert folder.exists("step.json")
    rows = json.loads(folder.read("history.json"))
    return folder.read("weights.safetensors"), [{k: v for k, v in row.items() if "_per_s" not in k} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, object]:
    place = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(
        command(str(drawings), str(place / "runs")),
        check=True,
        cwd=place,
        capture_output=True,
        env={**os.environ, **QUICK},
    )
    return result(Storage(str(place / "runs")))


def test_s3_that_is_busy_slow_and_away(s3, proxy, drawings, undisturbed, start, tmp_path) -> None:
    data, storage, log = Storage(f"{s3}/data"), Storage(f"{s3}/runs"), tmp_path / "log"
    for file in drawings.rglob("*.png"):
        data.write(file.relative_to(drawings).as_posix(), file.read_bytes())
    process = start(command(data.uri, storage.uri), {"AWS_ENDPOINT_URL": proxy.endpoint})
    wait_for(storage, 20, process, log)
    proxy.answer = lambda method, path: SLOW_DOWN
    time.sleep(5)
    proxy.answer, proxy.delay_s = lambda method, path: None, 1.0
    time.sleep(5)
    proxy.delay_s = 0
    proxy.gone()
    time.sleep(1)  # what had passed it arrives
    before, end = newest(storage), time.monotonic() + 120
    while "s3://mvray-tests does not answer for" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    assert newest(storage) == before
    proxy.back()
    assert process.wait(timeout=200) == 0, log.read_text()
    said = log.read_text()
    assert proxy.refused > 0
    assert 20 <= before < EPOCHS * 5
    assert said.count("s3://mvray-tests does not answer for") == 1, said
    assert said.count("s3://mvray-tests answers again") == 1, said
    assert "Traceback" not in said
    assert result(storage) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", place], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a small disk here: {mount.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def _fill(disk: Path, left: int = 100_000) -> None:
    """Leave no room for a model, but for a few lines, although checkpoints come and go meanwhile."""
    until = time.monotonic() + 1
    with (disk / "filler").open("ab", buffering=0) as filler:
        while time.monotonic() < until:
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            if free > 2 * left:
                until = time.monotonic() + 1
                with contextlib.suppress(OSError):
                    filler.write(bytes(free - left))
            time.sleep(0.02)


def test_a_full_disk_costs_checkpoints_not_the_run(small_disk, drawings, undisturbed, start, tmp_path) -> None:
    storage, log = Storage(str(small_disk / "runs")), tmp_path / "log"
    process = start(command(str(drawings), storage.uri))
    wait_for(storage, 20, process, log)
    _fill(small_disk)
    before = newest(storage)
    end = time.monotonic() + 60
    while "No checkpoint could be stored" not in log.read_text() and time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    assert newest(storage) == before  # the last one stays, and no other is there
    (small_disk / "filler").unlink()
    assert process.wait(timeout=200) == 0, log.read_text()
    said = log.read_text()
    assert said.count("No checkpoint could be stored; training goes on") == 1, said
    assert "Free some space" in said
    assert "Traceback" not in said
    assert result(storage) == undisturbed
