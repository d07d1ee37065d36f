"""What happens when processes are killed, with real ones: the command as a user types it, on real Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image
from pycocotools import mask as coco

ROOT = Path(__file__).parents[2]
MVRAY = Path(sys.executable).parent / "mvray"
EPOCHS, CHECKPOINT_STEPS, BATCH = 8, 3, 2

STARTED: list[subprocess.Popen] = []

pytestmark = [pytest.mark.drill, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def _tracking(empty_store, tmp_path_factory):
    """A store that is there already: MLflow takes seconds to make one, in every command with a new storage."""
    store = shutil.copy(empty_store, tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
        yield


def _command(pages, storage, *more):
    settings = {
        "phase1.optim.epochs": EPOCHS,
        "phase1.optim.patience": "none",
        "phase1.optim.batch_size": BATCH,
        "scale.checkpoint_steps": CHECKPOINT_STEPS,
        "pictures.height": 97,
        "pictures.width": 69,
    }
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    job = str(ROOT / "jobs/gradcam_masking.py")
    return [
        str(MVRAY),
        "run",
        job,
        "--tiny",
        "--data",
        str(pages),
        "--storage",
        str(storage),
        "--only",
        "phase1",
        *given,
        *more,
    ]


def _start(command, log):
    with log.open("ab") as out:
        environ = {**os.environ, "PYTHONFAULTHANDLER": "1"}  # a crash must leave its traceback in the log
        started = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=environ)
    STARTED.append(started)
    return started


@pytest.fixture(autouse=True)
def _none_lives_on():
    """A test that failed must not keep the machine busy."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def _folder(storage):
    found = [path for path in Path(storage).glob("phase1-*") if path.is_dir()]
    return found[0] if found else None


def _newest_checkpoint(storage):
    folder = _folder(storage)
    done = sorted(folder.glob("checkpoints/*/complete.json")) if folder else []
    return int(done[-1].parent.name) if done else -1


def _wait_for_checkpoint(storage, step, process, log, timeout_s=180):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if _newest_checkpoint(storage) >= step:
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint at step {step}: {log.read_text()}")


def _finish(process, log):
    assert process.wait(timeout=300) == 0, log.read_text()


def _weights(storage):
    return (_folder(storage) / "weights.safetensors").read_bytes()


def _history(storage):
    rows = json.loads((_folder(storage) / "history.json").read_text())
    return [{k: v for k, v in row.items() if not k.endswith("_per_s")} for row in rows]


def _command_of(process):
    """Its command line; "" when it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _train_workers(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in _command_of(child)]


@pytest.fixture(scope="module")
def uninterrupted(sample_comics, tmp_path_factory):
    storage = tmp_path_factory.mktemp("whole") / "runs"
    log = storage.parent / "log"
    _finish(_start(_command(sample_comics, storage), log), log)
    return storage


def test_a_killed_worker_and_a_killed_command_change_nothing(sample_comics, uninterrupted, tmp_path):
    """The command goes on by itself without the worker; it goes on where it stopped when it is called again."""
    storage, log = tmp_path / "runs", tmp_path / "log"
    process = _start(_command(sample_comics, storage), log)
    _wait_for_checkpoint(storage, 2 * CHECKPOINT_STEPS, process, log)
    workers = _train_workers(process)
    assert len(workers) == 2, [_command_of(w) for w in workers]
    workers[1].kill()
    lost = _newest_checkpoint(storage)
    _wait_for_checkpoint(storage, lost + 2 * CHECKPOINT_STEPS, process, log)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert "workers were lost" in log.read_text()
    assert not (_folder(storage) / "step.json").exists()
    before = _newest_checkpoint(storage)
    again = _start(_command(sample_comics, storage), log)
    _finish(again, log)
    assert before > lost
    assert _weights(storage) == _weights(uninterrupted)
    assert _history(storage) == _history(uninterrupted)
    assert (_folder(storage) / "step.json").exists()


@pytest.mark.parametrize(("workers", "sent"), [(2, signal.SIGTERM), (0, signal.SIGINT)])
def test_interrupting_writes_a_checkpoint_and_says_how_to_go_on(sample_comics, tmp_path, workers, sent):
    storage, log = tmp_path / "runs", tmp_path / "log"
    rarely = ("--set", "scale.checkpoint_steps=none", "--set", "phase1.optim.epochs=1000")
    process = _start(_command(sample_comics, storage, "--workers", str(workers), *rarely), log)
    _wait_for_checkpoint(storage, 1, process, log)
    before = _newest_checkpoint(storage)
    os.kill(process.pid, sent)
    code, said = process.wait(timeout=120), log.read_text()
    assert code == 130, said
    assert _newest_checkpoint(storage) > before
    assert "goes on where it stopped" in said
    assert "Traceback" not in said


# -- Generate ------------------------------------------------------------------------------------

PICTURES = 2600


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Many small pictures, and a storage where they were looked through without interruption."""
    place = tmp_path_factory.mktemp("generate")
    draw = np.random.default_rng(0)
    for name in ("ada", "ben"):
        (place / "data" / name).mkdir(parents=True)
        for number in range(PICTURES // 2):
            pixels = draw.integers(0, 256, (48, 32)).astype(np.uint8)
            Image.fromarray(pixels).save(place / "data" / name / f"{number:04d}.png")
    log = place / "log"
    _finish(_start(_looking(place / "data", place / "runs"), log), log)
    assert len(_shards(place / "runs", "cams")) == -(-PICTURES * 9 // 10 // 256)
    return place


def _trained(whole, storage):
    """A storage where only the step that is looked through is finished."""
    shutil.copytree(whole / "runs", storage, ignore=shutil.ignore_patterns("cams-*"))
    return storage


def _looking(data, storage):
    settings = {"source": "folder", "source.train": 0.9, "source.validation": 0.01, "source.test": 0.01}
    settings |= {"pictures.height": 48, "pictures.width": 32, "phase1.optim.epochs": 1, "cams.scale.loader_workers": 1}
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    job = str(ROOT / "jobs/gradcam_masking.py")
    return [str(MVRAY), "run", job, "--tiny", "--data", str(data), "--storage", str(storage), "--only", "cams", *given]


def _shards(storage, step):
    return {path.name: path for path in sorted(Path(storage).glob(f"{step}-*/columns/*.parquet"))}


def _wait_for_shards(storage, step, count, process, log):
    end = time.monotonic() + 180
    while len(_shards(storage, step)) < count and time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    assert len(_shards(storage, step)) >= count, log.read_text()


def _written(storage, step):
    return {name: path.stat().st_mtime_ns for name, path in _shards(storage, step).items()}


def _content(storage, step):
    return {name: path.read_bytes() for name, path in _shards(storage, step).items()}


def _kill_actor_and_command(command, storage, step, log):
    """Run ``command`` to its end over a killed actor and a killed command; no shard may be made twice."""
    process = _start(command, log)
    _wait_for_shards(storage, step, 2, process, log)
    makers = [c for c in psutil.Process(process.pid).children(recursive=True) if "MapWorker" in _command_of(c)]
    assert makers
    first = _written(storage, step)
    makers[0].kill()
    _wait_for_shards(storage, step, len(first) + 2, process, log)
    process.kill()
    process.wait()
    assert not list(storage.glob(f"{step}-*/step.json"))
    second = _written(storage, step)
    assert first.items() <= second.items()
    _finish(_start(command, log), log)
    after = _written(storage, step)
    assert len(second) < len(after)
    assert second.items() <= after.items()


def test_a_mistake_that_an_actor_finds_is_one_message(whole, tmp_path):
    storage, log = _trained(whole, tmp_path / "runs"), tmp_path / "log"
    process = _start([*_looking(whole / "data", storage), "--set", "cams.generator.layer=nonsense"], log)
    assert process.wait(timeout=120) == 2
    assert log.read_text().splitlines()[-1].startswith("mvray: There is no layer 'nonsense'; expected one of network")
    assert "Traceback" not in log.read_text()


def test_maps_that_are_there_are_not_made_again(whole, tmp_path):
    storage = _trained(whole, tmp_path / "runs")
    _kill_actor_and_command(_looking(whole / "data", storage), storage, "cams", tmp_path / "log")
    assert _content(storage, "cams") == _content(whole / "runs", "cams")


# -- masks of videos -----------------------------------------------------------------------------

VIDEOS, FRAMES, SHARD_FRAMES = 40, 80, 256


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Videos in UCF101's layout (copies of a few films), with two instances in each frame."""
    place = tmp_path_factory.mktemp("masks")
    film = place / "film.avi"
    draw = np.random.default_rng(0)
    with av.open(str(film), "w") as out:
        stream = out.add_stream("mpeg4", rate=25, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for _ in range(FRAMES):
            pixels = draw.integers(0, 256, (12, 16, 3)).astype(np.uint8).repeat(10, 0).repeat(10, 1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        out.mux(stream.encode())
    names = [f"Walk/v_Walk_g{number + 1:02d}_c01.avi" for number in range(VIDEOS)]
    root = place / "data"
    (root / "UCF-101/Walk").mkdir(parents=True)
    (root / "ucfTrainTestlist").mkdir()
    for name in names:
        shutil.copy(film, root / "UCF-101" / name)
    half = VIDEOS // 2
    lists = {
        "classInd": ["1 Walk"],
        "trainlist01": [f"{name} 1" for name in names[:half]],
        "testlist01": names[half:],
    }
    for name, lines in lists.items():
        (root / f"ucfTrainTestlist/{name}.txt").write_text("\n".join(lines) + "\n")
    masks = np.zeros((2, 120, 160), np.uint8)
    masks[0, 20:80, 5:40], masks[1, 50:100, 90:150] = 1, 1
    encoded = [coco.encode(np.asfortranarray(mask)) for mask in masks]
    runs = [[{"size": run["size"], "counts": run["counts"].decode()}] for run in encoded]
    annotations = [
        {"id": 2 * i + j, "video_id": i, "category_id": 1, "segmentations": runs[j] * FRAMES}
        for i in range(VIDEOS)
        for j in range(2)
    ]
    told = {
        "videos": [
            {"id": i, "width": 160, "height": 120, "file_names": [f"{name}/{t:05d}" for t in range(FRAMES)]}
            for i, name in enumerate(names)
        ],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": annotations,
    }
    (root / "instances.json").write_text(json.dumps(told))
    return root


def _segmenting(data, storage):
    job = str(ROOT / "jobs/object_abn.py")
    given = ["--set", "masks.scale.loader_workers=1"]
    return [str(MVRAY), "run", job, "--tiny", "--data", str(data), "--storage", str(storage), "--only", "masks", *given]


def test_masks_that_are_there_are_not_made_again(footage, tmp_path):
    whole, storage = tmp_path / "whole", tmp_path / "runs"
    _finish(_start(_segmenting(footage, whole), tmp_path / "log"), tmp_path / "log")
    assert len(_shards(whole, "masks")) == -(-VIDEOS * FRAMES // SHARD_FRAMES)
    _kill_actor_and_command(_segmenting(footage, storage), storage, "masks", tmp_path / "log")
    assert _content(storage, "masks") == _content(whole, "masks")
