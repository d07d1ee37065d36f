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

from mvray.samples.comics import compose

ROOT = Path(__file__).parent.parent
MVRAY = Path(sys.executable).parent / "mvray"
EPOCHS, CHECKPOINT_STEPS, BATCH = 6, 3, 8

STARTED: list[subprocess.Popen] = []

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    out = tmp_path_factory.mktemp("faults") / "comics"
    compose(out, titles=3, pages=40, seed=3)
    return out


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
def uninterrupted(pages, tmp_path_factory):
    storage = tmp_path_factory.mktemp("whole") / "runs"
    log = storage.parent / "log"
    _finish(_start(_command(pages, storage), log), log)
    return storage


def test_a_killed_worker_changes_nothing(pages, uninterrupted, tmp_path):
    storage, log = tmp_path / "runs", tmp_path / "log"
    process = _start(_command(pages, storage), log)
    _wait_for_checkpoint(storage, 2 * CHECKPOINT_STEPS, process, log)
    workers = _train_workers(process)
    assert len(workers) == 2, [_command_of(w) for w in workers]
    workers[1].kill()
    _finish(process, log)
    assert "workers were lost" in log.read_text()
    assert _weights(storage) == _weights(uninterrupted)
    assert _history(storage) == _history(uninterrupted)


def test_a_killed_command_goes_on_where_it_stopped(pages, uninterrupted, tmp_path):
    storage, log = tmp_path / "runs", tmp_path / "log"
    process = _start(_command(pages, storage), log)
    _wait_for_checkpoint(storage, 4 * CHECKPOINT_STEPS, process, log)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (_folder(storage) / "step.json").exists()
    before = _newest_checkpoint(storage)
    again = _start(_command(pages, storage), log)
    _finish(again, log)
    assert before >= 4 * CHECKPOINT_STEPS
    assert _weights(storage) == _weights(uninterrupted)
    assert _history(storage) == _history(uninterrupted)
    assert (_folder(storage) / "step.json").exists()


@pytest.mark.parametrize(("workers", "sent"), [(2, signal.SIGTERM), (0, signal.SIGINT)])
def test_interrupting_writes_a_checkpoint_and_says_how_to_go_on(pages, tmp_path, workers, sent):
    storage, log = tmp_path / "runs", tmp_path / "log"
    rarely = ("--set", "scale.checkpoint_steps=none", "--set", "phase1.optim.epochs=1000")
    process = _start(_command(pages, storage, "--workers", str(workers), *rarely), log)
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
def trained(tmp_path_factory):
    """Many small pictures, and a storage where the step that is looked through is finished."""
    place = tmp_path_factory.mktemp("generate")
    draw = np.random.default_rng(0)
    for name in ("ada", "ben"):
        (place / "data" / name).mkdir(parents=True)
        for number in range(PICTURES // 2):
            pixels = draw.integers(0, 256, (48, 32)).astype(np.uint8)
            Image.fromarray(pixels).save(place / "data" / name / f"{number:04d}.png")
    log = place / "log"
    _finish(_start(_looking(place / "data", place / "runs", "phase1"), log), log)
    return place


def _looking(data, storage, only):
    settings = {"source": "folder", "source.train": 0.9, "source.validation": 0.01, "source.test": 0.01}
    settings |= {"pictures.height": 48, "pictures.width": 32, "phase1.optim.epochs": 1, "cams.scale.loader_workers": 1}
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    job = str(ROOT / "jobs/gradcam_masking.py")
    return [str(MVRAY), "run", job, "--tiny", "--data", str(data), "--storage", str(storage), "--only", only, *given]


def _shards(storage):
    return {path.name: path for path in sorted(Path(storage).glob("cams-*/columns/*.parquet"))}


def _wait_for_shards(storage, count, process, log):
    end = time.monotonic() + 180
    while len(_shards(storage)) < count and time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    assert len(_shards(storage)) >= count, log.read_text()


@pytest.fixture(scope="module")
def uninterrupted_maps(trained):
    storage = trained / "whole"
    shutil.copytree(trained / "runs", storage)
    _finish(_start(_looking(trained / "data", storage, "cams"), trained / "log"), trained / "log")
    made = _shards(storage)
    assert len(made) == -(-PICTURES * 9 // 10 // 256)
    return {name: path.read_bytes() for name, path in made.items()}


def test_a_mistake_that_an_actor_finds_is_one_message(trained, tmp_path):
    storage, log = tmp_path / "runs", tmp_path / "log"
    shutil.copytree(trained / "runs", storage)
    process = _start([*_looking(trained / "data", storage, "cams"), "--set", "cams.generator.layer=nonsense"], log)
    assert process.wait(timeout=120) == 2
    assert log.read_text().splitlines()[-1].startswith("mvray: There is no layer 'nonsense'; expected one of network")
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("victim", ["actor", "command"])
def test_maps_that_are_there_are_not_made_again(trained, uninterrupted_maps, tmp_path, victim):
    storage, log = tmp_path / "runs", tmp_path / "log"
    shutil.copytree(trained / "runs", storage)
    process = _start(_looking(trained / "data", storage, "cams"), log)
    _wait_for_shards(storage, 2, process, log)
    before = {name: path.stat().st_mtime_ns for name, path in _shards(storage).items()}
    if victim == "actor":
        children = psutil.Process(process.pid).children(recursive=True)
        makers = [child for child in children if "Maker" in _command_of(child)]
        assert makers
        makers[0].kill()
    else:
        process.kill()
        process.wait()
        before = {name: path.stat().st_mtime_ns for name, path in _shards(storage).items()}
        assert not list(storage.glob("cams-*/step.json"))
        process = _start(_looking(trained / "data", storage, "cams"), log)
    _finish(process, log)
    after = _shards(storage)
    assert 2 <= len(before) < len(after)
    assert {name: after[name].stat().st_mtime_ns for name in before} == before
    assert {name: path.read_bytes() for name, path in after.items()} == uninterrupted_maps


# -- masks of videos -----------------------------------------------------------------------------

VIDEOS, FRAMES, SHARD_FRAMES = 60, 80, 256


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


def _mask_shards(storage):
    return {path.name: path for path in sorted(Path(storage).glob("masks-*/columns/*.parquet"))}


@pytest.fixture(scope="module")
def uninterrupted_masks(footage, tmp_path_factory):
    storage = tmp_path_factory.mktemp("whole-masks")
    _finish(_start(_segmenting(footage, storage), storage / "log"), storage / "log")
    made = _mask_shards(storage)
    assert len(made) == -(-VIDEOS * FRAMES // SHARD_FRAMES)
    return {name: path.read_bytes() for name, path in made.items()}


@pytest.mark.parametrize("victim", ["actor", "command"])
def test_masks_that_are_there_are_not_made_again(footage, uninterrupted_masks, tmp_path, victim):
    storage, log = tmp_path / "runs", tmp_path / "log"
    process = _start(_segmenting(footage, storage), log)
    end = time.monotonic() + 180
    while len(_mask_shards(storage)) < 2 and time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    if victim == "actor":
        makers = [c for c in psutil.Process(process.pid).children(recursive=True) if "Maker" in _command_of(c)]
        assert makers
        before = {name: path.stat().st_mtime_ns for name, path in _mask_shards(storage).items()}
        makers[0].kill()
    else:
        process.kill()
        process.wait()
        before = {name: path.stat().st_mtime_ns for name, path in _mask_shards(storage).items()}
        process = _start(_segmenting(footage, storage), log)
    _finish(process, log)
    after = _mask_shards(storage)
    assert 2 <= len(before) < len(after)
    assert {name: after[name].stat().st_mtime_ns for name in before} == before
    assert {name: path.read_bytes() for name, path in after.items()} == uninterrupted_masks
