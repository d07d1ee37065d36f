"""A job file and a method beside it, loaded here, taken elsewhere, and found again."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvray.errors import DataError, SettingError
from mvray.experiment import Job, job_file
from mvray.experiment.job_file import Packed, about, changes, codes_of, load, restore

METHOD = """
from __future__ import annotations
from dataclasses import dataclass
from mvray.experiment import MethodConfig
import {helper}

@dataclass(frozen=True)
class Config(MethodConfig):
    width: int = 3

    def build(self, facts):
        return {helper}.WORD
"""
JOB = """
from {method} import Config
from mvray import Data, Job, Measure, Train
from mvray.data.readers import Folder

def share(table, names):
    return {{}}

def job(tiny=False):
    step = Train("one", Config(), Data(Folder()))
    return Job("own", (step, Measure("score", Data(Folder()), (share,))))
"""


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Other tests' jobs stay loaded otherwise."""
    path, loaded = list(sys.path), dict(job_file._loaded)
    yield
    forget()
    sys.path[:] = path
    job_file._loaded.update(loaded)


def forget() -> None:
    """As in a process that has not loaded a job."""
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]
    job_file._loaded.clear()


def own(folder: Path, word: str = "here") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own_helper.py").write_text(f"WORD = {word!r}\n")
    (folder / "own_method.py").write_text(METHOD.format(helper="own_helper"))
    (folder / "own_job.py").write_text(JOB.format(method="own_method"))
    return folder / "own_job.py"


def word_of(job: Job) -> object:
    return next(iter(job.walk())).method.build(None)  # type: ignore[attr-defined]


def test_two_folders_with_the_same_names(tmp_path: Path) -> None:
    assert word_of(load(own(tmp_path / "a", "a"))) == "a"
    assert word_of(load(own(tmp_path / "b", "b"))) == "b"
    assert word_of(load(tmp_path / "a" / "own_job.py")) == "a"
    assert str(tmp_path / "b") not in sys.path


def test_what_others_have_put_on_the_path_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python does with the folder of a script, which may have a job too."""
    monkeypatch.syspath_prepend(tmp_path / "a")
    load(own(tmp_path / "a", "a"))
    load(own(tmp_path / "b", "b"))
    assert str(tmp_path / "a") in sys.path


def test_work_is_opened_by_a_process_that_knows_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = load(own(tmp_path / "a", "packed"))
    packed = Packed.of(job)
    assert [code.job for code in packed.codes] == ["own_job.py"]
    (tmp_path / "packed").write_bytes(pickle.dumps(packed))
    (tmp_path / "a" / "own_helper.py").unlink()  # as on another machine
    code = (
        "import pickle, sys; from pathlib import Path; job = pickle.loads(Path(sys.argv[1]).read_bytes()).open(); "
        "print(next(iter(job.walk())).method.build(None), job.steps[1].metrics[0].function.__name__)"
    )
    words = [sys.executable, "-c", code, tmp_path / "packed"]
    env = {"HOME": str(tmp_path / "home"), "PATH": ""}
    done = subprocess.run(words, cwd="/", env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["packed", "share"]
    monkeypatch.setenv("HOME", env["HOME"])
    forget()
    assert word_of(packed.open()) == "packed"  # found where the first process has unpacked it


def test_only_ones_own_code_is_packed(tmp_path: Path) -> None:
    assert codes_of(Job("none", ())) == ()
    job = load(own(tmp_path / "a"))
    (tmp_path / "a" / "notes.txt").write_text("not code")
    assert set(codes_of(job)[0].files) == {"own_job.py", "own_method.py", "own_helper.py"}


def test_files_beside_a_job_that_it_does_not_import_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = own(tmp_path / "a")
    (tmp_path / "a" / "draft.py").write_bytes(b"def half(:\n\xff")
    noted = about(next(iter(load(job).walk())))
    assert set(noted[0]["files"]) == {"own_job.py", "own_method.py", "own_helper.py"}
    (tmp_path / "a" / "draft.py").write_text("WORD = 1\n")
    forget()
    monkeypatch.chdir(tmp_path)
    restore(noted)
    (tmp_path / "a" / "own_helper.py").write_text("def half(:\n")
    forget()
    with pytest.raises(DataError, match=r"own_helper.py in .* changed"):
        restore(noted)


def test_code_is_found_again_below_the_current_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = next(iter(load(own(tmp_path / "a")).walk()))
    noted = about(step)
    forget()
    monkeypatch.chdir(tmp_path)
    restore(noted)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    forget()
    with pytest.raises(SettingError, match=r"made with code of your own, .*own_job.py. Give .* --job FILE"):
        restore(noted)


def test_changed_code_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = next(iter(load(own(tmp_path / "a")).walk()))
    noted = about(step)
    monkeypatch.chdir(tmp_path)
    method = tmp_path / "a" / "own_method.py"
    method.write_text(method.read_text() + "\n# a comment\n")
    forget()
    restore(noted)
    again = next(iter(load(tmp_path / "a" / "own_job.py").walk()))
    assert changes(noted, again) == []
    method.write_text(method.read_text() + "\nNEW = 1\n")
    assert changes(noted, next(iter(load(tmp_path / "a" / "own_job.py").walk()))) == ["own_method.py"]
    forget()
    with pytest.raises(DataError, match=r"own_method.py in .* changed since this step was made"):
        restore(noted)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("json.py", "", "a module cannot be named 'json' beside Python"),
        ("a.b.py", "", "a module cannot be named 'a.b'; expected a name of its own"),
        ("own_none.py", "", r"has no function job\(tiny=False\) -> Job"),
        ("own_syntax.py", "def job(:\n", "line 1: invalid syntax"),
        (
            "own_error.py",
            "def job(tiny):\n    return 1 / 0\n",
            r"line 2 \(return 1 / 0\): ZeroDivisionError",
        ),
        ("own_import.py", "import own_gone\n", "line 1 .*No module named 'own_gone'"),
        ("own_other.py", "def job(tiny):\n    return 3\n", "returned int; expected a Job"),
        ("own_text.txt", "", "is not a Python file"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingError, match=message):
        load(tmp_path / name)
    with pytest.raises(SettingError, match="There is no job file"):
        load(tmp_path / "gone.py")
