"""The jobs that group, whole and in this process, on small samples: tables, pictures, and nothing to do again."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

from mvray.cli import main

JOBS = Path(__file__).parent.parent / "jobs"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def _store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow takes seconds to make one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}")


SHARES = ("source.train=0.6", "source.validation=0.2")


def mvray(*words: object) -> tuple[str, str]:
    """What a command prints on both streams; it must go well."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    assert code == 0, err.getvalue()
    return out.getvalue(), err.getvalue()


def options(data: Path, storage: Path, *settings: str) -> list[object]:
    changed = [part for setting in settings for part in ("--set", setting)]
    return ["--tiny", "--data", data, "--storage", storage, *changed]


def pictures(page: Path) -> int:
    return page.read_text().count("data:image/png")


def test_deepcluster_from_pages_to_groups(sample_comics: Path, tmp_path: Path) -> None:
    settings = ["source.unseen=0.34", "source.min_faces=3", "pictures.height=32", "pictures.width=32"]
    settings += [f"{step}.optim.epochs=1" for step in ("ft", "dc", "ft-dc")]
    settings += [f"{step}.method.{what}" for step in ("dc", "ft-dc") for what in ("clusters=8", "components=6")]
    given = [JOBS / "deepcluster.py", *options(sample_comics, tmp_path / "runs", *settings)]
    mvray("run", *given, "--workers", 0)
    assert ", 0 to do." in mvray("run", *given, "--workers", 0)[1]
    report = json.loads(mvray("report", *given, "--json", "--html", tmp_path / "page.html")[0])
    assert {step["state"] for step in report["steps"]} == {"finished"}
    rows = report["table"]["rows"]
    assert [row["paper"].get("unseen/fc1_ami") for row in rows] == [0.418, 0.362, 0.427, None]
    for row in rows[:3]:
        assert all(-1 <= row["values"][f"unseen/{layer}_ami"][0] <= 1 for layer in ("conv1", "conv5", "fc1", "fc2"))
    assert -1 <= rows[3]["values"]["unseen/pixels_ami"][0] <= 1
    assert pictures(tmp_path / "page.html") >= 7  # bars, and a map and a sheet for each model


def test_arcface_from_faces_to_matches_and_to_anyones_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mvray.data.synthetic.faces import compose

    compose(tmp_path / "faces", characters=10, pictures=10, processes=1)
    settings = ["pictures.height=32", "pictures.width=32", "arcface.optim.epochs=2", "arcface.method.per_class=4"]
    given = [JOBS / "arcface.py", *options(tmp_path / "faces", tmp_path / "runs", *settings, *SHARES)]
    mvray("run", *given, "--workers", 0)
    report = json.loads(mvray("report", *given, "--json", "--html", tmp_path / "page.html")[0])
    values = report["table"]["rows"][0]["values"]
    assert all(0 <= values[f"{split}/{what}"][0] <= 1 for split in ("test", "unseen") for what in ("f1", "roc_auc"))
    assert pictures(tmp_path / "page.html") >= 4  # matches and curves of both splits
    model = next((tmp_path / "runs").glob("arcface-*"))
    books = tmp_path / "faces" / "thumb"
    mvray("group", model, books, "--out", tmp_path / "groups", "--min-size", 3)
    assert (tmp_path / "groups" / "groups.csv").read_text().count(".png") >= 80
    # With the default share each character has one picture there: told before anything is trained.
    few = options(tmp_path / "faces", tmp_path / "few", *settings)
    assert main([str(word) for word in ("run", JOBS / "arcface.py", *few, "--workers", 0)]) == 2
    assert "no two pictures of the same class" in capsys.readouterr().err
    assert not list((tmp_path / "few").glob("arcface-*"))
    example = next(books.rglob("*.png"))
    said, _ = mvray("find", model, example, books, "--most", 5)
    assert said.count(".png") >= 5
