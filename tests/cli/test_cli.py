"""The command line: a whole job in this process, and what a user's mistake looks like."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import Said, mvray
from PIL import Image

from mvray.cli.jobs import where_runs_are
from mvray.cli.options import same_job
from mvray.errors import StorageFailed

FILE = Path(__file__).parents[2] / "jobs" / "gradcam_masking.py"
HALF = f"""
'''The comparison of {FILE.name} with two of its three variants and one small sheet.'''
import runpy
from dataclasses import replace


def job(tiny=False):
    made = runpy.run_path({str(FILE)!r})["job"](tiny=tiny)
    plain, _, masked = made.steps
    rows = tuple(row for row in made.table.rows if row.measure in (plain, masked))
    sheet = replace(made.sheets[0], maps=made.sheets[0].maps[::2], samples=2)
    return replace(made, steps=(plain, masked), table=replace(made.table, rows=rows), sheets=(sheet,))
"""
TOYS = """
from toys import Linear, step_of
from mvray import Job


def job(tiny=False):
    names = ("one", "two")
    return Job("toys", tuple(step_of("", Linear(dropout=0.2), name=name, epochs=1) for name in names))
"""

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Experiment:
    """A job file, its options, and the outputs of commands that ran one after the other."""

    options: tuple[object, ...]
    runs: Path
    said: dict[str, Said]

    def report(self, name: str) -> dict[str, Any]:
        return json.loads(self.said[name].out)

    def states(self, name: str) -> dict[str, str]:
        return {step["name"]: step["state"] for step in self.report(name)["steps"]}


@pytest.fixture(scope="module")
def experiment(
    sample_comics: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Experiment]:
    place = tmp_path_factory.mktemp("cli")
    (place / "runs").mkdir()
    shutil.copy(empty_store, place / "runs" / "mlflow.db")
    (place / "half.py").write_text(HALF)
    small = ("pictures.height=48", "pictures.width=32", "phase1.optim.epochs=1")
    small += ("plain.optim.epochs=3", "masked.optim.epochs=3")
    sets = [option for setting in small for option in ("--set", setting)]
    options = (place / "half.py", "--tiny", "--data", sample_comics, "--storage", place / "runs", *sets)
    again = ("--set", "masked.method.probability=0.3")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        patched.chdir(place)
        said = {
            "nothing": mvray("report", *options, "--json"),
            "cams": mvray("run", *options, "--workers", 0, "--only", "cams"),
            "after cams": mvray("report", *options, "--json"),
            "all": mvray("run", *options, "--workers", 0),
            "after all": mvray("report", *options, "--json"),
            "all again": mvray("run", *options, "--workers", 0),
            "after all again": mvray("report", *options, "--json"),
            "before other": mvray("report", *options, *again, "--json"),
            "other": mvray("run", *options, *again, "--workers", 0),
            "after other": mvray("report", *options, *again, "--json"),
        }
        yield Experiment(options, place / "runs", said)


STEPS = ["phase1", "plain", "look-plain", "score-plain", "cams", "masked", "look-masked", "score-masked"]
DEPENDENT = {"masked", "look-masked", "score-masked"}


@pytest.mark.slow
def test_every_command_of_the_experiment_went_well(experiment: Experiment) -> None:
    for name, said in experiment.said.items():
        assert said.code == 0, f"{name}: {said.err}"
        assert "Traceback" not in said.err


@pytest.mark.slow
def test_the_report_has_the_form_that_is_promised(experiment: Experiment) -> None:
    report = experiment.report("after all")
    assert list(report) == ["job", "steps", "table", "search"]
    assert report["search"] is None  # nothing was searched yet
    assert report["job"] == "gradcam_masking"
    assert [step["name"] for step in report["steps"]] == STEPS
    for step in report["steps"]:
        assert list(step) == ["name", "seed", "id", "path", "state", "seconds", "metrics"]
        assert (step["seed"], step["state"]) == (0, "finished")
        assert step["path"] == f"{experiment.runs}/{step['name']}-{step['id']}"
        assert json.loads((Path(step["path"]) / "step.json").read_text())["seconds"] == step["seconds"] > 0
        assert json.loads((Path(step["path"]) / "metrics.json").read_text()) == step["metrics"]
    assert list(report["table"]) == ["rows"]
    assert [row["name"] for row in report["table"]["rows"]] == ["A  AlexNet", "proposed: Grad-CAM masking"]
    for row, paper in zip(report["table"]["rows"], (0.852, 0.878), strict=True):
        assert list(row) == ["name", "values", "mean", "interval95", "paper"]
        assert row["paper"] == {"test/accuracy": paper}
        assert {len(values) for values in row["values"].values()} == {1}
        for metric in ("test/accuracy", "shifted/accuracy", "test/attention_in_body", "test/attention_in_face"):
            assert 0 <= row["values"][metric][0] == row["mean"][metric] <= 1
            assert row["interval95"][metric] is None  # one seed


@pytest.mark.slow
def test_every_variant_is_trained_for_as_many_epochs(experiment: Experiment) -> None:
    metrics = {step["name"]: step["metrics"] for step in experiment.report("after all")["steps"]}
    assert {name: metrics[name]["epochs"] for name in ("phase1", "plain", "masked")} == {
        "phase1": 1,
        "plain": 2,
        "masked": 2,
    }


@pytest.mark.slow
def test_only_does_a_step_and_what_it_reads(experiment: Experiment) -> None:
    assert set(experiment.states("nothing").values()) == {"missing"}
    assert "gradcam_masking: 2 steps, 0 finished before, 2 to do." in experiment.said["cams"].err
    states = experiment.states("after cams")
    assert {name for name, state in states.items() if state == "finished"} == {"phase1", "cams"}
    assert {state for name, state in states.items() if name not in ("phase1", "cams")} == {"missing"}
    values = [row["values"]["test/accuracy"] for row in experiment.report("after cams")["table"]["rows"]]
    assert values == [[None], [None]]


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(experiment: Experiment) -> None:
    assert "8 steps, 2 finished before, 6 to do." in experiment.said["all"].err
    again = experiment.said["all again"]
    assert again.err == "gradcam_masking: 8 steps, 8 finished before, 0 to do.\n"
    assert again.out == experiment.said["all"].out
    assert experiment.said["after all again"].out == experiment.said["after all"].out


@pytest.mark.slow
def test_a_changed_setting_reruns_what_depends_on_it(experiment: Experiment) -> None:
    before, after = experiment.states("before other"), experiment.states("after other")
    assert {name for name, state in before.items() if state == "missing"} == DEPENDENT
    assert set(after.values()) == {"finished"}
    assert "8 steps, 5 finished before, 3 to do." in experiment.said["other"].err
    ids = [{s["name"]: s["id"] for s in experiment.report(name)["steps"]} for name in ("after all", "after other")]
    assert {name for name in STEPS if ids[0][name] != ids[1][name]} == DEPENDENT
    times = [
        {s["name"]: s["seconds"] for s in experiment.report(name)["steps"]} for name in ("after all", "after other")
    ]
    assert all(times[0][name] == times[1][name] for name in set(STEPS) - DEPENDENT)


@pytest.mark.slow
def test_the_end_says_what_to_do_next(experiment: Experiment) -> None:
    *_, results, pictures, tracked = experiment.said["other"].out.splitlines()
    assert results == f"Results:  {experiment.runs}"
    assert pictures.startswith(f"Pictures: mvray report {experiment.options[0]} --tiny --data ")
    assert pictures.endswith("--set masked.method.probability=0.3 --html report.html")
    assert tracked == f"MLflow:   mvray ui --storage {experiment.runs}"


@pytest.mark.slow
def test_the_page_stands_alone(experiment: Experiment, tmp_path: Path) -> None:
    said = mvray("report", *experiment.options, "--html", tmp_path / "report.html")
    assert (said.code, said.out) == (0, "")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2  # the comparison and a sheet
    assert "proposed: Grad-CAM masking" in page


@pytest.mark.slow
def test_look_at_anyones_pictures(experiment: Experiment, drawings: Path, tmp_path: Path) -> None:
    steps = {step["name"]: step["path"] for step in experiment.report("after all")["steps"]}
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "some").mkdir()
    for number in range(2):
        shutil.copy(drawings / "ben" / f"{number:02d}.png", tmp_path / "some")
    pictures = (drawings / "ada" / "00.png", tmp_path / "broken.png", tmp_path / "some")
    said = mvray("look", steps["masked"], *pictures, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert "left out" in said.out
    overlays = sorted(path.name for path in (tmp_path / "out").glob("0*.png"))
    assert overlays == ["0000-00.png", "0001-00.png", "0002-01.png"]
    with Image.open(tmp_path / "out" / overlays[0]) as overlay:
        assert (overlay.size, overlay.mode) == ((32, 48), "RGB")
    assert (tmp_path / "out" / "sheet.png").stat().st_size > 1000
    wrong = mvray("look", steps["cams"], drawings, "--out", tmp_path / "out")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "is a Generate step; expected a Train step" in wrong.err


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_look_at_anyones_videos(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a network for clips that was trained on a folder per class."""
    monkeypatch.chdir(tmp_path)
    small = (
        "source=videos",
        "pictures.frames=2",
        "pictures.every=2",
        "abn.optim.epochs=1",
        "abn.optim.warmup_epochs=0",
    )
    sets = [option for setting in small for option in ("--set", setting)]
    job = FILE.with_name("object_abn.py")
    clips = shutil.copytree(videos, tmp_path / "clips")
    (clips / "instances.json").write_text("{}")  # of a step that does not run
    said = mvray("run", job, "--tiny", "--data", clips, *sets, "--workers", 0, "--only", "abn")
    assert said.code == 0, said.err
    (trained,) = (tmp_path / "runs").glob("abn-*")
    folder = next(path for path in sorted(videos.iterdir()) if path.is_dir())
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    said = mvray("look", trained, folder, tmp_path / "broken.mp4", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert "left out" in said.out
    assert "broken.mp4" in said.out
    shown = sorted((tmp_path / "out").glob("0*.gif"))
    assert [path.name[5:-4] for path in shown] == sorted(path.stem for path in folder.iterdir())
    with Image.open(shown[0]) as moving:
        assert moving.n_frames == 2
    assert (tmp_path / "out" / "sheet.png").stat().st_size > 1000
    nothing = mvray("look", trained, tmp_path / "broken.mp4", "--out", tmp_path / "out")
    assert (nothing.code, nothing.err.count("\n")) == (2, 1)
    assert "is a video that can be read" in nothing.err


@pytest.mark.slow
def test_a_folder_per_artist_goes_through_the_same_job(experiment: Experiment, drawings: Path) -> None:
    """With --data and --set alone. Other data are other steps."""
    job, tiny, _, _, *rest = experiment.options
    options = (job, tiny, "--data", drawings, *rest, "--set", "source=folder")
    said = mvray("run", *options, "--workers", 0, "--only", "score-plain")
    assert said.code == 0, said.err
    assert "4 steps, 0 finished before, 4 to do." in said.err
    plain, masked = json.loads(mvray("report", *options, "--json").out)["table"]["rows"]
    assert 0 <= plain["values"]["test/accuracy"][0] <= 1
    assert plain["values"]["shifted/accuracy"] == plain["values"]["test/attention_in_body"] == [None]
    assert masked["values"]["test/accuracy"] == [None]


# -- other jobs ----------------------------------------------------------------------------------


@pytest.fixture
def toys(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of two small steps. MLflow takes seconds to make a store, so it uses the experiment's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{experiment.runs}/mlflow.db")
    (tmp_path / "toys_job.py").write_text(TOYS)
    return tmp_path / "toys_job.py"


def numbers(said: Said) -> list[tuple[Any, ...]]:
    """Everything in a report that is not a time or a place."""
    steps = json.loads(said.out)["steps"]
    for step in steps:
        step["metrics"].pop("samples_per_s", None)
    return [(step["name"], step["seed"], step["id"], step["state"], step["metrics"]) for step in steps]


@pytest.mark.slow
def test_the_same_seeds_give_the_same_numbers(toys: Path, drawings: Path, tmp_path: Path) -> None:
    """Also two steps that differ in nothing but their names: both are done. A bad picture is named, and left out."""
    root = Path(shutil.copytree(drawings, tmp_path / "some"))
    (root / "ada" / "20.png").write_text("hello")
    found, patient = [], ("--set", "data.max_bad_fraction=0.03")
    for data, seeds in ((drawings, "3,4"), (root, "4")):
        options = (toys, "--data", data, "--storage", tmp_path / f"runs{seeds}", "--set", f"seeds={seeds}", *patient)
        said = mvray("run", *options, "--workers", 0)
        assert said.code == 0, said.err
        assert ("left out: ada/20.png: not a picture: text that starts with 'hello'" in said.err) == (data == root)
        found.append(numbers(mvray("report", *options, "--json")))
    assert [row[:2] for row in found[0]] == [("one", 3), ("two", 3), ("one", 4), ("two", 4)]
    assert found[0][2:] == found[1]
    assert {row[3] for row in found[0]} == {"finished"}
    assert found[0][0][4] == found[0][1][4] != found[0][2][4]


@pytest.mark.slow
def test_a_step_that_fails_ends_with_its_reason(toys: Path, drawings: Path, tmp_path: Path) -> None:
    options = (toys, "--data", drawings, "--storage", tmp_path / "runs", "--set", "two.method.nan_at=2")
    said = mvray("run", *options, "--workers", 0)
    assert said.code == 1
    assert said.err.splitlines()[-1].startswith("mvray: The loss became NaN or infinite at step 2 (epoch 0; ")
    assert "Traceback" not in said.err
    assert [row[3] for row in numbers(mvray("report", *options, "--json"))] == ["finished", "partial"]
    mended = mvray("run", *options[:-2], "--workers", 0)
    assert mended.code == 0
    assert "2 steps, 1 finished before, 1 to do" in mended.err


# -- the end of a run ----------------------------------------------------------------------------


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An MLflow store of its own."""
    store = Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return store


def ended(store: Path) -> dict[str, str]:
    """MLflow's runs by name, and how they ended."""
    with contextlib.closing(sqlite3.connect(store)) as opened:
        return dict(opened.execute("select name, status from runs"))


def away(*_: object) -> None:
    raise StorageFailed("The storage is away.")


@pytest.mark.slow
def test_a_storage_that_is_away_does_not_hide_what_ended_a_run(
    store: Path, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvray.pipeline.cost.as_text", away)
    (tmp_path / "toys_job.py").write_text(TOYS)
    options = (tmp_path / "toys_job.py", "--data", drawings, "--storage", tmp_path / "runs", "--workers", 0)
    said = mvray("run", *options, "--set", "two.method.nan_at=2")
    assert said.code == 1
    assert "What this run has cost or found is not shown in full: The storage is away." in said.err
    assert said.err.splitlines()[-1].startswith("mvray: The loss became NaN or infinite at step 2")
    assert ended(store)["toys"] == "FAILED"


@pytest.mark.slow
def test_a_storage_that_is_away_does_not_hide_what_ended_a_search(
    store: Path, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise StorageFailed("This ended the search.")

    monkeypatch.setattr("mvray.api.execute", fails)
    monkeypatch.setattr("mvray.api._say_costs", away)
    monkeypatch.setattr("mvray.api._log_search", away)
    job = Path(__file__).parents[1] / "searched.py"
    said = mvray("tune", job, "--data", drawings, "--storage", tmp_path / "runs")
    assert said.code == 1
    assert said.err.count("The storage is away.") == 2
    assert said.err.splitlines()[-1] == "mvray: This ended the search."
    assert ended(store) == {"searched: search of second": "FAILED"}


def test_commands_to_go_on_with_can_be_pasted() -> None:
    given = argparse.Namespace(
        job=Path("my jobs/it's.py"), tiny=True, data="My Manga", storage="/s/my runs", set=["a.b=x y", "a.c=1"]
    )
    line = same_job("run", given)
    words = ["mvray", "run", "my jobs/it's.py", "--tiny", "--data", "My Manga", "--storage", "/s/my runs"]
    assert shlex.split(line) == [*words, "--set", "a.b=x y", "--set", "a.c=1"]
    given.job = Path("jobs/a.py")
    options = "--tiny --data 'My Manga' --storage '/s/my runs' --set 'a.b=x y' --set a.c=1"
    assert same_job("report", given) == f"mvray report jobs/a.py {options}"


def test_the_command_that_shows_runs_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert where_runs_are("my runs") == "mvray ui --storage 'my runs'"


# -- mistakes ------------------------------------------------------------------------------------

# Job files, settings, readers and searches have tests of their messages; here is one of each, and what options say.
MISTAKES: dict[str, tuple[list[str], str]] = {
    "no job file": (["run", "nowhere.py"], "There is no job file nowhere.py"),
    "no such network": (
        ["run", "JOB", "--tiny", "--data", "COMICS", "--set", "phase1.method.network=resnet19"],
        "There is no network 'resnet19'; expected alexnet-small, vgg-small, resnet-small or one of torchvision's, "
        "such as resnet1",
    ),
    "no such weights": (
        ["run", "JOB", "--tiny", "--data", "COMICS", "--set", "phase1.method.weights=none.pth"],
        "none.pth cannot be read (No such file or directory); expected the file that a setting names.",
    ),
    "unknown step": (["run", "JOB", "--set", "maskd.method.x=1"], "is named 'maskd' (did you mean 'masked'?)"),
    "no value": (["run", "JOB", "--set", "seeds"], "--set seeds: expected NAME=VALUE"),
    "no such data": (["run", "JOB", "--data", "nowhere"], "--data nowhere: there is no such folder."),
    "not Manga109": (
        ["run", "JOB", "--data", "DRAWINGS"],
        "is not Manga109: found ada/, ben/, cleo/; expected images/",
    ),
    "too bad": (["run", "JOB", "--data", "BAD", "--set", "source=folder"], "Found 3 of 60 files unreadable (5.0%)"),
    "no samples": (
        ["run", "JOB", "--tiny", "--data", "DRAWINGS", "--set", "source=folder", "--set", "source.test=0"],
        "there are no samples for step 'look-plain', which reads the splits test, shifted.",
    ),
    "workers": (["run", "JOB", "--data", "COMICS", "--workers", "-1"], "--workers -1: expected 0 (no Ray) or more"),
    "only": (
        ["run", "JOB", "--tiny", "--data", "COMICS", "--only", "mask"],
        "has no such step; it has cams, erasing, look-",
    ),
    "storage": (["run", "JOB", "--tiny", "--data", "COMICS", "--storage", "job.txt/runs"], "cannot be written"),
    "odd storage": (
        ["report", "JOB", "--tiny", "--data", "COMICS", "--storage", "ftp://x"],
        "expected a local folder or s3://",
    ),
    "no such searched step in a report": (
        ["report", "JOB", "--tiny", "--data", "COMICS", "--set", "search.step=nosuch"],
        "search.step is 'nosuch'; expected a Train step of 'gradcam_masking': ",
    ),
    "no folder for a page": (
        ["report", "JOB", "--tiny", "--data", "COMICS", "--html", "out/report.html"],
        "--html out/report.html: there is no folder out; expected one. Make it first.",
    ),
    "a folder as a page": (
        ["report", "JOB", "--tiny", "--data", "COMICS", "--html", "."],
        "--html . is a folder; expected a file in it, as report.html.",
    ),
    "a page's name": (
        ["report", "JOB", "--tiny", "--data", "COMICS", "--html", "x" * 300],
        "cannot be written (File name too long); expected a file that can. Name another one.",
    ),
    "not a step": (["look", "DRAWINGS", "DRAWINGS", "--out", "out"], "is not the folder of a finished step"),
    "odd pages": (["sample", "comics", "out", "--pages", "3"], "pages is 3; expected an even number from 2 to 2000"),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two works of Manga109's layout, each with 20 blank pages and 20 shifted ones."""
    root = tmp_path_factory.mktemp("pages")
    for title in ("Ada", "Ben"):
        for folder in (root / "images" / title, root / "shifted" / "images" / title):
            folder.mkdir(parents=True)
            for number in range(10):
                Image.new("L", (64, 48)).save(folder / f"{number:03d}.jpg")
    return root


@pytest.fixture
def place(tmp_path: Path, drawings: Path, pages: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A folder to work in, with nothing but a file job.txt and bad pictures."""
    (tmp_path / "job.txt").touch()
    bad = shutil.copytree(drawings, tmp_path / "bad")
    for number in range(3):
        (Path(bad) / "ada" / f"{number:02d}.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return {"JOB": str(FILE), "DRAWINGS": str(drawings), "COMICS": str(pages), "BAD": str(bad)}


def command(name: str, place: dict[str, str]) -> list[str]:
    said = MISTAKES[name][0]
    for short, whole in place.items():
        said = [part.replace(short, whole) if part.startswith(short) else part for part in said]
    return said


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(name: str, place: dict[str, str]) -> None:
    said = mvray(*command(name, place))
    assert said.code == 2, said.err
    assert said.err.startswith("mvray: ")
    assert MISTAKES[name][1] in said.err
    assert said.err.count("mvray: ") == 1
    assert said.out == ""
    assert not Path("runs").exists()  # nothing was started


def test_a_page_that_cannot_be_written_is_one_message(drawings: Path, tmp_path: Path) -> None:
    (tmp_path / "toys_job.py").write_text(TOYS)
    options = (tmp_path / "toys_job.py", "--data", drawings, "--storage", tmp_path / "runs")
    said = mvray("report", *options, "--html", "/dev/full")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("mvray: --html /dev/full cannot be written (No space left on device); expected")
    assert said.err.count("\n") == 1


@pytest.mark.slow
def test_a_mistake_in_a_program_of_its_own(place: dict[str, str]) -> None:
    """Without a traceback, without what this process has imported, and without Ray's and MLflow's start."""
    heavy = "sys.exit([name for name in ('ray', 'mlflow', 'matplotlib') if name in sys.modules] or code)"
    code = f"import sys; from mvray.cli import main; code = main(sys.argv[1:]); {heavy}"
    words = [sys.executable, "-c", code, *command("not Manga109", place)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("mvray: ")
    assert MISTAKES["not Manga109"][1] in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("runs").exists()


COMMANDS = (
    *(["submit"], ["jobs"], ["logs"], ["stop"]),
    *(["run"], ["report"], ["look"], ["group"], ["find"], ["ui"], ["doctor"]),
    *(["sample"], ["sample", "comics"], ["sample", "actions"], ["sample", "faces"]),
)


@pytest.mark.parametrize("words", [[], *COMMANDS], ids=lambda words: " ".join(words) or "mvray")
def test_help(words: list[str]) -> None:
    said = mvray(*words, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(" ".join(["usage: mvray", *words]))
    if not words:
        assert all(command[0] in said.out for command in COMMANDS)


def test_version_and_unknown_options() -> None:
    assert mvray("--version").out.startswith("mvray ")
    assert mvray().code == mvray("train").code == mvray("run").code == mvray("run", FILE, "--gpus", "4").code == 2
