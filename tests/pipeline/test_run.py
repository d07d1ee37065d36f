"""A whole job on a real Ray cluster, with its data and its results on a real S3 server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mvray.storage.storage import Storage

JOB = Path(__file__).parents[2] / "jobs" / "gradcam_masking.py"
MVRAY = Path(sys.executable).parent / "mvray"
SMALL = ("pictures.height=48", "pictures.width=32", "phase1.optim.epochs=1", "data.max_bad_fraction=0.1")
SMALL += tuple(f"{step}.optim.epochs=2" for step in ("plain", "erasing", "masked"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.drill
def test_a_job_lives_on_s3(sample_comics: Path, s3: str, tmp_path: Path) -> None:
    data, storage = f"{s3}/comics", f"{s3}/runs"
    for file in sample_comics.rglob("*"):
        if file.is_file():
            Storage(data).write(str(file.relative_to(sample_comics)), file.read_bytes())
    bad = next(file for file in sorted(sample_comics.rglob("*.jpg")) if "shifted" not in str(file))
    Storage(data).write(str(bad.relative_to(sample_comics)), b"no picture")

    def mvray(command: str, *more: object, root: object = data, place: object = storage) -> str:
        options = ["--tiny", "--data", root, "--storage", place]
        options += [part for setting in SMALL for part in ("--set", setting)]
        words = [str(word) for word in (MVRAY, command, JOB, *options, *more)]
        ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout if command == "report" else ended.stderr

    said = mvray("run")
    assert f"left out: {bad.relative_to(sample_comics)}: not a picture" in said
    first = json.loads(mvray("report", "--json", "--html", "page.html"))
    assert {step["state"] for step in first["steps"]} == {"finished"}
    assert all(step["path"].startswith(storage) for step in first["steps"])
    assert all(0 <= row["values"]["test/accuracy"][0] <= 1 for row in first["table"]["rows"])
    assert (tmp_path / "page.html").read_text().count("data:image/png") >= 2
    assert ", 0 to do." in mvray("run")
    assert json.loads(mvray("report", "--json")) == first
    assert (tmp_path / "runs" / "mlflow.db").exists()
    assert not list((tmp_path / "runs").glob("phase1-*"))
