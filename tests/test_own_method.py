"""What `mvray init` writes, used as its README says: a method and a job outside of mvray, on Ray, in any folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import mvray
from PIL import Image

MVRAY = Path(sys.executable).with_name("mvray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with own/ as `mvray init own` writes it, and pictures/."""
    folder = tmp_path_factory.mktemp("place")
    pixels = np.random.default_rng(0)
    for name, light in (("dark", 0), ("light", 120)):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(24):
            picture = pixels.integers(light, light + 90, (40, 40, 3), np.uint8)
            Image.fromarray(picture).save(folder / "pictures" / name / f"{number}.png")
    assert mvray("init", folder / "own").code == 0
    (folder / "runs").mkdir()
    shutil.copy(empty_store, folder / "runs" / "mlflow.db")
    return folder


def said(folder: Path, *words: object, **environ: str) -> str:
    """What the command prints, given in ``folder`` without a PYTHONPATH."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environ
    command = [str(word) for word in (MVRAY, *words)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


JOB = ("own/job.py", "--tiny", "--data", "pictures")
FEW = ("--set", "train.optim.epochs=2")


def test_its_own_test_passes(place: Path) -> None:
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "own"], cwd=place, check=True)


def test_it_runs_on_ray_and_is_looked_through_and_searched(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By Ray's public API alone, as on a cluster that is joined; the search below uses the lean Ray.
    assert "3 of 3 steps finished" in said(place, "run", *JOB, *FEW, "--workers", 2, MVRAY_PLAIN_RAY="1")
    (step,) = place.glob("runs/train-*/weights.safetensors")
    manifest = json.loads(step.with_name("step.json").read_text())
    assert set(manifest["code"][0]["files"]) == {"method.py", "job.py"}

    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    look = ("look", step.parent, "../pictures/dark", "--out", "looked")
    refused = mvray(*look)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "made with code of your own" in refused.err
    assert "sheet.png" in mvray(*look, "--job", "../own/job.py").out
    monkeypatch.chdir(place)
    assert "index.html" in mvray("group", step.parent, "pictures", "--out", "grouped").out
    assert "dark" in mvray("find", step.parent, "pictures/dark/0.png", "pictures", "--most", 2).out

    assert "Search of train: 1 trial" in said(place, "tune", *JOB, *FEW, "--trials", 1, "--workers", 1)

    method = place / "own" / "method.py"
    method.write_text(method.read_text().replace("stride=2, padding=1", "stride=1, padding=1"))
    again = mvray("run", *JOB, *FEW).err
    assert "3 steps, 3 finished before, 0 to do" in again
    assert "train (seed 0) is finished, with method.py as before" in again


def test_an_existing_folder_is_left_alone(place: Path) -> None:
    assert "has method.py, job.py" in mvray("init", place / "own").err
