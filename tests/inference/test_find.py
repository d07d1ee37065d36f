"""`mvray find`: the pictures that are most like an example, as table and contact sheet."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from books import CAST, Embedded, book, faces, finished
from commands import Said, mvray
from test_group import content

from mvray.inference.model import Model

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 12


@pytest.fixture(name="shelf", scope="module")
def _shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return book(tmp_path_factory.mktemp("book") / "faces", CAST[:4], COUNT)


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory, shelf: Path) -> Path:
    return finished(tmp_path_factory.mktemp("runs"), shelf)


def lines(said: Said) -> list[list[str]]:
    """Distance and file of each line of the table."""
    assert said.code == 0, said.err
    head, *rest = said.out.splitlines()
    assert head == "distance  picture"
    return [line.split(maxsplit=1) for line in rest if not line.startswith("Wrote")]


def test_the_same_character_comes_first(model: Path, shelf: Path, tmp_path: Path) -> None:
    (example,) = faces(tmp_path / "example", "whale", 1, seed=7)
    found = lines(mvray("find", model, example, shelf))
    assert len(found) == 20
    assert sorted(file for _, file in found[:COUNT]) == [f"whale/face_{number:03d}.png" for number in range(COUNT)]
    distances = [float(distance) for distance, _ in found]
    assert distances == sorted(distances)
    looked = Model(str(model)).look([example, *(shelf / file for _, file in found)])
    expected = np.linalg.norm(looked.vectors[1:] - looked.vectors[0], axis=1)  # as scikit-learn's NearestNeighbors
    np.testing.assert_allclose(distances, expected, atol=1e-4)


def test_an_example_that_lies_in_the_folder_is_not_found_itself(model: Path, shelf: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shelf, tmp_path / "faces")
    example = folder / "pizza" / "face_000.png"
    shutil.copy(example, folder / "copy.png")
    found = lines(mvray("find", model, example, folder, "--most", 3))
    assert found[0] == ["0.0000", "copy.png"]
    assert example.relative_to(folder).as_posix() not in [file for _, file in found]


def test_several_examples_find_what_is_near_to_any(model: Path, shelf: Path) -> None:
    examples = [shelf / subject / "face_000.png" for subject in ("pizza", "whale")]
    found = lines(mvray("find", model, *examples, shelf, "--most", 2 * (COUNT - 1)))
    assert {file.partition("/")[0] for _, file in found} == {"pizza", "whale"}
    alone = dict(reversed(each) for each in lines(mvray("find", model, examples[0], shelf, "--most", 100)))
    assert all(float(distance) <= float(alone.get(file, 2)) + 1e-4 for distance, file in found)


def test_most_and_within(model: Path, shelf: Path) -> None:
    example = shelf / "pizza" / "face_000.png"
    every = lines(mvray("find", model, example, shelf, "--within", 2))
    assert len(every) == 4 * COUNT - 1
    limit = (float(every[4][0]) + float(every[5][0])) / 2
    assert lines(mvray("find", model, example, shelf, "--within", limit)) == every[:5]
    assert lines(mvray("find", model, example, shelf, "--within", limit, "--most", 2)) == every[:2]
    nothing = mvray("find", model, example, shelf, "--within", 0.0001)
    assert (nothing.code, nothing.out) == (0, "None of 47 pictures is within 0.0001.\n")


def test_the_steps_own_threshold_parts_what_is_found(shelf: Path, tmp_path: Path) -> None:
    plain = finished(tmp_path / "runs", shelf, Embedded())
    every = lines(mvray("find", plain, shelf / "whale" / "face_000.png", shelf, "--most", 30))
    limit = (float(every[6][0]) + float(every[7][0])) / 2
    model = finished(tmp_path / "runs", shelf, Embedded(), {"validation/threshold": limit})
    out = tmp_path / "out"
    found = lines(mvray("find", model, shelf / "whale" / "face_000.png", shelf, "--most", 30, "--out", out))
    assert found[:7] + found[8:] == every
    assert found[7] == [f"{limit:.4f}", "---- the step's own threshold: up to here the same character ----"]
    page = (out / "index.html").read_text()
    near, _, far = page.partition("Beyond it")
    assert f"Up to the step&#x27;s own threshold, {limit:.3f}" in near
    assert (near.count("<img"), far.count("<img")) == (1 + 7, 23)


def test_the_table_and_the_page(model: Path, shelf: Path, tmp_path: Path) -> None:
    example, out = shelf / "pizza" / "face_000.png", tmp_path / "out"
    said = mvray("find", model, example, shelf, "--out", out, "--most", 9)
    assert said.out.endswith(f"Wrote {out}/index.html.\n")
    with (out / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [[row["distance"], row["file"]] for row in rows] == lines(said)
    page = (out / "index.html").read_text()
    assert page.count("<img") == 1 + 9
    assert page.index("<h3>Example ") < page.index("<h3>Most like it ")
    assert f"<figcaption>{float(rows[0]['distance']):.3f}</figcaption>" in page
    first = content(out)
    (out / "notes.txt").write_text("mine")
    assert mvray("find", model, example, shelf, "--out", out, "--most", 9).code == 0
    assert content(out) == first | {"notes.txt": b"mine"}


def test_a_folder_with_the_example_alone(model: Path, tmp_path: Path) -> None:
    (example,) = faces(tmp_path / "one", "pizza", 1)
    said = mvray("find", model, example, tmp_path / "one", "--out", tmp_path / "out")
    assert said.code == 0
    assert said.out.startswith(f"{tmp_path}/one has no other picture that can be read.\n")


WRONG = {
    "too long a name": (["MODEL", "x" * 300, "FACES"], "x cannot be read (File name too long)."),
    "no example": (["MODEL", "nowhere.png", "FACES"], "nowhere.png: there is no such file or folder."),
    "bad example": (
        ["MODEL", "BAD/a.png", "FACES"],
        "No example can be read; expected a picture:\n  BAD/a.png: not a p",
    ),
    "empty folder of examples": (["MODEL", "EMPTY", "FACES"], "No example can be read; expected a picture: EMPTY"),
    "most": (["MODEL", "FACES/pizza/face_000.png", "FACES", "--most", "0"], "--most 0: expected 1 or more"),
    "within": (["MODEL", "FACES/pizza/face_000.png", "FACES", "--within", "-1"], "--within -1.0: expected a distance"),
    "not a number": (["MODEL", "FACES/pizza/face_000.png", "FACES", "--within", "nan"], "--within nan: expected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_message_and_exit_code_2(
    name: str, model: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("EMPTY", "BAD"):
        Path(folder).mkdir()
    Path("BAD", "a.png").write_bytes(b"no picture")
    words, message = WRONG[name]
    said = mvray("find", *(w.replace("MODEL", str(model)).replace("FACES", str(shelf)) for w in words), "--out", "out")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("mvray: ")
    assert message in said.err
    assert not Path("out", "index.html").exists()
