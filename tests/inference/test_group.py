"""`mvray group`: what comes out of a folder of faces, and out of folders that are hardly one."""

from __future__ import annotations

import csv
import os
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from books import CAST, Embedded, book, faces, finished
from commands import mvray
from PIL import Image

from mvray.experiment.inputs import Clips
from mvray.inference.group import find_groups, least_size
from mvray.inference.model import Model
from mvray.methods import deepcluster

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # UMAP is compiled
CHARACTERS, COUNT = 4, 15


def table(out: Path) -> list[dict[str, str]]:
    with (out / "groups.csv").open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(name="faces_of_a_book", scope="module")
def _faces_of_a_book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return book(tmp_path_factory.mktemp("book") / "faces", CAST[:CHARACTERS], COUNT)


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory, faces_of_a_book: Path) -> Path:
    return finished(tmp_path_factory.mktemp("runs"), faces_of_a_book)


@pytest.mark.slow
def test_characters_become_groups(model: Path, faces_of_a_book: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = mvray("group", model, faces_of_a_book, "--out", out)
    assert (said.code, said.err) == (0, "")
    assert said.out == f"60 pictures: 4 groups, 0 alone.\nWrote {out}/index.html.\n"
    rows = table(out)
    assert [row["file"] for row in rows] == sorted(
        f"{subject}/face_{number:03d}.png" for subject in CAST[:CHARACTERS] for number in range(COUNT)
    )
    groups = defaultdict(set)
    for row in rows:
        groups[row["group"]].add(row["file"].partition("/")[0])
        assert 0 < float(row["distance"]) < 2
    assert sorted(groups) == ["01", "02", "03", "04"]
    assert all(len(characters) == 1 for characters in groups.values())
    for name in groups:
        linked = sorted(path.resolve() for path in (out / "groups" / name).iterdir())
        assert linked == [faces_of_a_book / row["file"] for row in rows if row["group"] == name]
        assert (out / "groups" / name / f"{next(iter(groups[name]))}__face_000.png").is_symlink()
    page = (out / "index.html").read_text()
    assert page.count("<img") == 60 + 4
    assert [page.index(f"Group 0{at} ") for at in range(1, 5)] == sorted(
        page.index(f"Group 0{at} ") for at in range(1, 5)
    )
    assert "Step small, layer fc1" in page


def test_again_is_the_same_and_foreign_files_stay(model: Path, faces_of_a_book: Path, tmp_path: Path) -> None:
    """Also where the folder for the results lies among the pictures."""
    folder = shutil.copytree(faces_of_a_book, tmp_path / "faces")
    out = folder / "out"
    assert mvray("group", model, folder, "--out", out).code == 0
    first = content(out)
    (out / "notes.txt").write_text("mine")
    (out / "groups" / "01" / "mine.txt").write_text("mine")
    assert mvray("group", model, folder, "--out", out).code == 0
    assert content(out) == first | {"notes.txt": b"mine", "groups/01/mine.txt": b"mine"}
    assert mvray("group", model, folder, "--out", folder).code == 0  # into the folder itself
    shutil.rmtree(out)
    assert mvray("group", model, folder, "--out", folder).code == 0
    assert len(table(folder)) == 60
    (out / "groups").mkdir(parents=True)
    said = mvray("group", model, folder, "--out", out)
    assert said.code == 2
    assert "has groups, which `mvray group` did not write" in said.err


def test_each_folder_by_itself(model: Path, tmp_path: Path) -> None:
    """The groups of a book do not depend on the other books; pictures beside them are a book too."""
    folder = tmp_path / "shelf"
    for subject in CAST[:3]:
        faces(folder / "one" / "chapter", subject, 12)
        for path in (folder / "one" / "chapter").glob("face_*"):
            path.rename(path.with_name(f"{subject}-{path.name}"))
    book(folder / "two", CAST[2:5], 12)
    shutil.copytree(folder / "two", tmp_path / "alone" / "two")
    (beside,) = faces(folder, "anchor", 1)
    said = mvray("group", model, folder, "--out", tmp_path / "out", "--per-folder")
    assert said.out.startswith("73 pictures: 6 groups, 1 alone."), said.out
    rows = {row["file"]: row["group"] for row in table(tmp_path / "out")}
    assert rows[beside.name] == "alone"
    assert set(rows.values()) == {"alone", *(f"{work}/0{at}" for work in ("one", "two") for at in (1, 2, 3))}
    assert {work.partition("/")[0] for file, work in rows.items() if file.startswith("one/")} == {"one"}
    assert mvray("group", model, tmp_path / "alone", "--out", tmp_path / "other", "--per-folder").code == 0
    other = {row["file"]: row["group"] for row in table(tmp_path / "other")}
    assert other == {file: work for file, work in rows.items() if file.startswith("two/")}
    assert (tmp_path / "out" / "groups" / "one" / "01").is_dir()
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.index("<h2>one</h2>") < page.index("<h2>two</h2>")


def test_bad_files_are_named_and_left_out(model: Path, faces_of_a_book: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(faces_of_a_book, tmp_path / "faces")
    good = next(folder.rglob("*.png")).read_bytes()
    bad = {
        "empty.png": b"",
        "text.jpg": b"no picture",
        "truncated.png": good[:200],
        os.fsdecode(b"caf\xe9.jpg"): b"no picture either",
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "notes.txt").write_text("not asked for")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.png").write_bytes(good)
    (folder / os.fsdecode(b"gr\xfcn.PNG")).write_bytes(good)
    said = mvray("group", model, folder, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert said.out.count("left out: ") == len(bad)
    assert f"left out: {folder}/empty.png: " in said.out
    assert f"left out: {folder}/caf\ufffd.jpg: not a picture: text that starts with" in said.out
    assert "61 pictures: " in said.out
    assert "4 files could not be read." in said.out
    files = [row["file"] for row in table(tmp_path / "out")]
    assert len(files) == 61
    assert all((folder / file).is_file() for file in files)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_closed_folder_is_named_and_left_out(model: Path, faces_of_a_book: Path, tmp_path: Path) -> None:
    """Also one whose files are seen but may not be looked at."""
    folder = shutil.copytree(faces_of_a_book, tmp_path / "faces")
    closed = {CAST[0]: 0o000, CAST[1]: 0o444}
    for name, mode in closed.items():
        (folder / name).chmod(mode)
    said = mvray("group", model, folder, "--out", tmp_path / "out")
    for name in closed:
        (folder / name).chmod(0o755)
    assert said.code == 0, said.err
    assert f"left out: {folder / CAST[0]}: Permission denied" in said.out
    assert f"left out: {folder / CAST[1]}/face_000.png: Permission denied" in said.out
    assert f"{COUNT * (CHARACTERS - 2)} pictures: " in said.out


def test_names_do_not_steer_the_terminal(model: Path, faces_of_a_book: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(faces_of_a_book, tmp_path / "faces")
    (folder / "two\nlines\x1b[31m\u3000é.png").write_bytes(b"no picture")
    said = mvray("group", model, folder, "--out", tmp_path / "out")
    assert f"left out: {folder}/two\\nlines\\x1b[31m\u3000é.png: not a picture" in said.out
    assert "1 file could not be read." in said.out


def test_files_of_the_same_name_and_of_long_names(model: Path, faces_of_a_book: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(faces_of_a_book, tmp_path / "faces")
    deep = folder / ("d" * 150) / ("e" * 150)
    deep.mkdir(parents=True)
    for subject in CAST[:CHARACTERS]:  # a__b.png is what b.png in the folder a is called
        shutil.copy(folder / subject / "face_000.png", folder / f"{subject}__face_000.png")
        shutil.copy(folder / subject / "face_000.png", deep / "face_000.png")
    assert mvray("group", model, folder, "--out", tmp_path / "out").code == 0
    rows = table(tmp_path / "out")
    linked = [path.resolve() for path in (tmp_path / "out" / "groups").rglob("*.png")]
    assert sorted(linked) == sorted(folder / row["file"] for row in rows)
    assert len(rows) == 60 + CHARACTERS + 1


def test_few_pictures(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    faces(folder / "one", "pizza", 1)
    one = mvray("group", model, folder, "--out", tmp_path / "out")
    assert (one.code, one.out) == (2, "")
    assert one.err == f"mvray: {folder} has one picture; expected at least two to group.\n"
    faces(folder / "two", "whale", 1)
    two = mvray("group", model, folder, "--out", tmp_path / "out")
    assert two.code == 0
    assert "2 pictures: 0 groups, 2 alone.\n2 pictures are too few to tell groups apart; 4 or more may do." in two.out
    assert [row["group"] for row in table(tmp_path / "out")] == ["alone", "alone"]
    assert "<h3>Alone " in (tmp_path / "out" / "index.html").read_text()
    for count in range(2, 8):
        faces(folder / "one", "pizza", count)
        said = mvray("group", model, folder, "--out", tmp_path / "out")
        assert (said.code, said.err) == (0, "")
        assert len(table(tmp_path / "out")) == count + 1


@pytest.mark.parametrize("count", [2, 3, 40])
def test_pictures_that_are_all_the_same(model: Path, tmp_path: Path, count: int) -> None:
    (face,) = faces(tmp_path / "faces", "pizza", 1)
    for number in range(1, count):
        shutil.copy(face, face.with_name(f"copy-{number}.png"))
    said = mvray("group", model, tmp_path / "faces", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert f"{count} pictures: 1 group, 0 alone.\nAll pictures are the same to this network." in said.out
    assert {(row["group"], row["distance"]) for row in table(tmp_path / "out")} == {("01", "0.0000")}


def test_grey_huge_and_odd_pictures_go_through_the_same_network(model: Path, faces_of_a_book: Path) -> None:
    """The vector is that of the picture as training reads it."""
    made = Model(str(model))
    (first, *_) = sorted(faces_of_a_book.rglob("*.png"))
    with Image.open(first) as image:
        variants = {
            "grey.png": image.convert("L"),
            "palette.gif": image.convert("P"),
            "large.jpg": image.resize((1500, 1500), Image.Resampling.BICUBIC),
            "wide.webp": image.resize((400, 100)),
        }
        folder = model / "odd"
        folder.mkdir()
        for name, variant in variants.items():
            variant.save(folder / name)
    looked = made.look([first, *(folder / name for name in variants)])
    assert not looked.left_out
    np.testing.assert_allclose(np.linalg.norm(looked.vectors, axis=1), 1, rtol=1e-5)
    closeness = looked.vectors @ looked.vectors[0]
    assert closeness[3] > 0.99  # the large one
    assert [(small.width, small.height) for small in looked.thumbnails] == [*[(64, 64)] * 3, (112, 112), (224, 56)]


def test_the_embedding_is_taken_where_there_is_one(faces_of_a_book: Path, tmp_path: Path) -> None:
    embedded = finished(tmp_path / "runs", faces_of_a_book, Embedded())
    assert Model(str(embedded)).layer == "embedding"
    assert Model(str(embedded), "conv3").layer == "conv3"
    assert mvray("group", embedded, faces_of_a_book, "--out", tmp_path / "out").code == 0
    assert "layer embedding" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.slow
def test_what_a_method_keeps_while_it_predicts_is_not_mixed_up(faces_of_a_book: Path, tmp_path: Path) -> None:
    """Batches are looked at side by side, and DeepCluster hooks on to its network in each of them."""
    trained = finished(
        tmp_path / "runs", faces_of_a_book, deepcluster.Config(network="vgg-small", clusters=4, components=8)
    )
    made = Model(str(trained), "feature")
    assert Model(str(trained)).layer == "fc1"
    files = sorted(faces_of_a_book.rglob("*.png"))
    one_by_one = np.concatenate([made.look([path]).vectors for path in files])
    for _ in range(5):
        np.testing.assert_allclose(made.look(files * 5).vectors, np.tile(one_by_one, (5, 1)), atol=1e-5)


def test_groups_are_numbered_by_size() -> None:
    """And members begin with the most typical."""
    draw = np.random.default_rng(0)
    middles = np.eye(3, 40, dtype=np.float32)
    sizes = (12, 40, 25)
    vectors = np.concatenate([middle + draw.normal(0, 0.02, (n, 40)) for middle, n in zip(middles, sizes, strict=True)])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = find_groups(vectors)
    assert np.array_equal(found.group, np.repeat([2, 0, 1], sizes))
    for number in range(3):
        members = found.members(number)
        assert (np.diff(found.distance[members]) >= 0).all()
        middle = vectors[found.group == number].mean(0)
        expected = np.linalg.norm(vectors[members] - middle / np.linalg.norm(middle), axis=1)
        np.testing.assert_allclose(found.distance[members], expected, atol=1e-5)


def test_the_least_size_of_a_group() -> None:
    assert [least_size(count) for count in (4, 29, 40, 99, 100, 5000)] == [3, 3, 4, 9, 10, 10]


WRONG = {
    "no folder": (["MODEL", "nowhere"], "nowhere: there is no such folder; expected one with pictures."),
    "a file": (["MODEL", "FACES/pizza/face_000.png"], "there is no such folder"),
    "no pictures": (["MODEL", "EMPTY"], "has no pictures; expected files with .bmp, .gif"),
    "only bad ones": (["MODEL", "BAD"], "None of the 2 pictures in"),
    "no model": (["FACES", "FACES"], "is not the folder of a finished step (it has no step.json)"),
    "nowhere": (["nowhere", "FACES"], "nowhere is not the folder of a finished step"),
    "no layer": (["MODEL", "FACES", "--layer", "fc9"], "no layer 'fc9'; expected one of conv1, conv2, conv3, fc1, fc2"),
    "no embedding": (["MODEL", "FACES", "--layer", "embedding"], "predicts no 'embedding'; it has scores, predicted"),
    "least": (["MODEL", "FACES", "--min-size", "1"], "--min-size 1: expected 2 or more"),
    "clips": (["CLIPS", "FACES"], "Step 'small' is trained on clips; expected one that is trained on pictures"),
}


@pytest.fixture(name="place")
def _place(model: Path, faces_of_a_book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "bad"):
        Path(name).mkdir()
    for name in ("a.png", "b.jpg"):
        Path("bad", name).write_bytes(b"no picture")
    clips = finished(tmp_path / "runs", faces_of_a_book, pictures=Clips(64, 64, short_side=(64, 64), test_side=64))
    return {"MODEL": str(model), "FACES": str(faces_of_a_book), "EMPTY": "empty", "BAD": "bad", "CLIPS": str(clips)}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_message_and_exit_code_2(name: str, place: dict[str, str]) -> None:
    words, message = WRONG[name]
    for short, whole in place.items():
        words = [word.replace(short, whole) for word in words]
    said = mvray("group", *words, "--out", "out")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("mvray: ")
    assert message in said.err
    assert "Traceback" not in said.err
    assert not Path("out", "index.html").exists()
