"""Samples of every kind: whole or not at all, and never in the place of something else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mvray.cli import main
from mvray.data.synthetic import actions, comics, faces, segments
from mvray.errors import DataError, SettingError

pytestmark = pytest.mark.slow  # drawn samples, some seconds each


class Kind(NamedTuple):
    compose: Callable[..., None]
    settings: dict[str, int]
    suffix: str
    files: int


KINDS = {
    "comics": Kind(comics.compose, {"titles": 2, "pages": 2}, ".jpg", 6),
    "actions": Kind(actions.compose, {"classes": 2, "videos": 3}, ".avi", 6),
    "faces": Kind(faces.compose, {"characters": 2, "pictures": 2}, ".png", 3),
    "segments": Kind(segments.compose, {"pictures": 10, "size": 64}, ".jpg", 10),
}
every_kind = pytest.mark.parametrize("name", KINDS)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("samples")
    for name, kind in KINDS.items():
        kind.compose(root / name, **kind.settings, seed=5, processes=2 if name == "comics" else 1)
    return root


@every_kind
def test_a_whole_sample_is_left_and_a_harmed_one_mended(name: str, samples: Path, tmp_path: Path) -> None:
    kind, out = KINDS[name], tmp_path / name
    shutil.copytree(samples / name, out)
    reports: list[tuple[int, int]] = []
    settings: dict[str, Any] = {**kind.settings, "seed": 5, "processes": 1}
    kind.compose(out, **settings, progress=lambda *so_far: reports.append(so_far))
    assert reports == [], "composed again although nothing was missing"
    next(out.rglob(f"*{kind.suffix}")).write_bytes(b"harmed")
    kind.compose(out, **settings, progress=lambda *so_far: reports.append(so_far))
    assert contents(out) == contents(samples / name), "other bytes than before (of comics: by one process than by two)"
    assert len(list(out.rglob(f"*{kind.suffix}"))) == kind.files == reports[-1][1]
    assert reports[-1][0] == reports[-1][1]
    assert sorted(reports) == reports
    assert list(tmp_path.iterdir()) == [out]


@every_kind
def test_interrupted_composing_leaves_nothing_and_keeps_what_was_there(
    name: str, samples: Path, tmp_path: Path
) -> None:
    kind, out = KINDS[name], tmp_path / name

    def interrupt(done: int, total: int) -> None:
        assert 0 < done <= total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kind.compose(out, **kind.settings, processes=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(samples / name, out)
    with pytest.raises(KeyboardInterrupt):
        kind.compose(out, **kind.settings, processes=1, progress=interrupt)
    assert contents(out) == contents(samples / name)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["comics", "actions"])
def test_killed_composing_leaves_no_sample_no_worker_and_no_obstacle(name: str, tmp_path: Path) -> None:
    kind, out = KINDS[name], tmp_path / name
    code = (
        f"import pathlib; from mvray.data.synthetic import {name} as c; "
        f"c.compose(pathlib.Path({str(out)!r}), processes=2)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob(f"*{kind.suffix}")):
        assert child.poll() is None, "it ended before it drew anything"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.kill()
    child.wait()
    assert not out.exists()
    deadline = time.monotonic() + 120
    while _alive(child.pid):
        assert time.monotonic() < deadline, "a worker lives on without its parent"
        time.sleep(0.05)
    kind.compose(out, **kind.settings, processes=1)
    assert len(list(out.rglob(f"*{kind.suffix}"))) == kind.files
    assert list(tmp_path.iterdir()) == [out]


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@every_kind
def test_refuses_a_place_where_something_else_is(name: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sample.json").write_text(json.dumps({"sample": "thesis"}))
    before = contents(tmp_path)
    for place in ("full", "file", "other"):
        with pytest.raises(DataError, match=f"expected a new or empty folder, or sample {name} to replace"):
            KINDS[name].compose(tmp_path / place, **KINDS[name].settings)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("comics", {"pages": 7}, "pages is 7; expected an even number"),
        ("comics", {"pages": 0}, "pages is 0"),
        ("comics", {"titles": 1}, "titles is 1; expected 2 or more"),
        ("comics", {"titles": 500}, "500 titles; the art is enough for"),
        ("actions", {"classes": 13}, "classes is 13; expected 2 to 12, the number of motions"),
        ("actions", {"classes": 1}, "classes is 1; expected 2 to 12"),
        ("actions", {"videos": 2}, "videos is 2; expected 3 to 300 of each class"),
        ("actions", {"videos": 301}, "videos is 301; expected 3 to 300"),
        ("faces", {"characters": 1}, "characters is 1; expected 2 to 1000"),
        ("faces", {"characters": 1001}, "characters is 1001"),
        ("faces", {"pictures": 1}, "pictures is 1; expected 2 to"),
        ("segments", {"pictures": 9}, "pictures is 9; expected 10 to"),
        ("segments", {"size": 63}, "size is 63; expected 64 to 512"),
        *((name, {"seed": -1}, "seed is -1") for name in KINDS),
        *((name, {"processes": 0}, "processes is 0") for name in KINDS),
    ],
)
def test_refuses_numbers_that_do_not_fit(name: str, settings: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=message):
        KINDS[name].compose(tmp_path / name, **settings)
    assert list(tmp_path.iterdir()) == []


def test_the_command_composes_and_says_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "faces"
    assert main(["sample", "faces", str(out), "--characters", "2", "--pictures", "2", "--seed", "1"]) == 0
    assert "faces of 2 characters" in capsys.readouterr().out
    assert len(list((out / "thumb").iterdir())) == 2
    assert main(["sample", "actions", str(tmp_path / "actions"), "--classes", "40"]) == 2
    assert "classes is 40; expected 2 to 12" in capsys.readouterr().err
