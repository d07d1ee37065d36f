"""Folders that a command may write again: its own things are replaced, others stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvray.errors import DataError
from mvray.inference import output_folder

NAMES = ("index.html", "groups")


def everything(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "some" / "face.png"
    path.parent.mkdir()
    path.write_bytes(b"a picture")
    return path


def test_links_stay_right_when_both_folders_move(tmp_path: Path, picture: Path) -> None:
    out = tmp_path / "out"
    output_folder.check(out, "group", NAMES)
    assert output_folder.write(out, "group", {"index.html": b"page", "groups/01/face.png": picture}) == 0
    link = out / "groups" / "01" / "face.png"
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.read_bytes() == b"a picture"
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for folder in ("some", "out"):
        (tmp_path / folder).rename(moved / folder)
    assert (moved / "out" / "groups" / "01" / "face.png").read_bytes() == b"a picture"


def test_what_was_written_before_goes_and_what_is_foreign_stays(tmp_path: Path, picture: Path) -> None:
    out = tmp_path / "out"
    output_folder.check(out, "group", NAMES)
    output_folder.write(
        out, "group", {"index.html": b"old", "groups/01/face.png": picture, "groups/02/face.png": picture}
    )
    (out / "notes.txt").write_text("mine")
    (out / "groups" / "01" / "mine.txt").write_text("mine")
    output_folder.check(out, "group", NAMES)
    output_folder.write(
        out, "group", {"index.html": b"new", "groups/03/face.png": picture, "groups/01/mine.txt": b"theirs"}
    )
    found = everything(out)
    del found[".mvray-group.json"]
    assert found == {
        "index.html": b"new",
        "notes.txt": b"mine",
        "groups/01/mine.txt": b"mine",
        "groups/01/mine-2.txt": b"theirs",
        "groups/03/face.png": b"a picture",
    }
    assert not (out / "groups" / "02").exists()
    assert picture.read_bytes() == b"a picture"  # links went, not what they lead to


def test_a_command_that_ended_in_the_middle_leaves_nothing_behind(tmp_path: Path, picture: Path) -> None:
    out = tmp_path / "out"
    output_folder.check(out, "group", NAMES)
    with pytest.raises(DataError, match=r"out cannot be written"):
        output_folder.write(out, "group", {"groups/01/a.png": picture, "groups/01/a.png/b": b""})
    assert (out / "groups" / "01" / "a.png").is_symlink()
    output_folder.check(out, "group", NAMES)
    output_folder.write(out, "group", {"index.html": b"page"})
    assert set(everything(out)) == {"index.html", ".mvray-group.json"}
    assert picture.exists()


def test_foreign_things_of_the_same_names_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("a page of mine")
    with pytest.raises(DataError, match=r"out has index.html, which `mvray group` did not write"):
        output_folder.check(out, "group", NAMES)
    assert everything(out) == {"index.html": b"a page of mine"}
    other = tmp_path / "other"
    output_folder.check(other, "find", ("index.html",))
    output_folder.write(other, "find", {"index.html": b"of find"})
    output_folder.check(other, "find", ("index.html",))
    with pytest.raises(DataError, match="did not write"):
        output_folder.check(other, "group", NAMES)


def test_where_links_cannot_be_made_files_are_copied(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # as FAT and exFAT answer

    monkeypatch.setattr(Path, "symlink_to", refuse)
    output_folder.check(tmp_path / "out", "group", NAMES)
    assert output_folder.write(tmp_path / "out", "group", {"groups/01/face.png": picture}) == 1
    copy = tmp_path / "out" / "groups" / "01" / "face.png"
    assert not copy.is_symlink()
    assert copy.read_bytes() == b"a picture"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file cannot be written \(File exists\)"):
        output_folder.check(tmp_path / "file", "group", NAMES)
    with pytest.raises(DataError, match=r"cannot be written \(Not a directory\)"):
        output_folder.check(tmp_path / "file" / "out", "group", NAMES)


@pytest.mark.parametrize("listed", ["no JSON", '{"a": 1}', '["/etc/passwd"]', '["../some/face.png"]', "[3]"])
def test_a_list_that_is_not_ours_deletes_nothing(tmp_path: Path, picture: Path, listed: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".mvray-group.json").write_text(listed)
    with pytest.raises(DataError, match="delete it, or name another --out"):
        output_folder.check(out, "group", NAMES)
    assert picture.exists()


def test_a_check_leaves_no_new_folder(tmp_path: Path) -> None:
    output_folder.check(tmp_path / "a" / "b", "group", NAMES)
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    output_folder.check(tmp_path / "a", "group", NAMES)
    assert (tmp_path / "a").is_dir()
