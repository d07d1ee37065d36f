"""The AnimeFace Character Dataset's layout."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mvray.data.bad_files import Note
from mvray.data.fingerprint import fingerprint
from mvray.data.readers.animeface import AnimeFace
from mvray.errors import ClusterError, DataError
from mvray.storage.storage import Storage


@pytest.fixture
def root(tmp_path: Path, drawn_picture: Callable[..., Image.Image]) -> Path:
    """Six characters with 4 faces and one with 12; some folders are empty, as in the real one."""
    thumb = tmp_path / "faces" / "animeface-character-dataset" / "thumb"
    for number, name in enumerate(("hatsune_miku", "kinomoto_sakura", "suzumiya_haruhi", "fate", "c.c.", "八神はやて")):
        folder = thumb / f"{number:03d}_{name}"
        folder.mkdir(parents=True)
        (folder / "color.csv").write_text("file,hair\n")
        for i in range(12 if number == 2 else 4):
            drawn_picture(160, 160, seed=i + number, mode="RGB").save(folder / f"face_{i}_10_20.png")
    for name in ("105_nobody", "106_nobody_with_colours"):
        (thumb / name).mkdir()
    (thumb / "106_nobody_with_colours" / "color.csv").write_text("file,hair\n")
    return tmp_path / "faces"


def test_characters_are_classes_and_colours_are_ignored(root: Path) -> None:
    index = AnimeFace(root=str(root), unseen=2).index()
    assert len(index.rows) == 32
    assert index.bad == ()
    assert sorted(index.names) == [
        "000_hatsune_miku", "001_kinomoto_sakura", "002_suzumiya_haruhi", "003_fate", "004_c.c.", "005_八神はやて"
    ]  # fmt: skip
    assert len(index.unseen) == 2
    assert index.rows["key"][0].as_py() == "000_hatsune_miku/face_0_10_20.png"
    (root / "animeface-character-dataset/thumb/000_hatsune_miku/readme.txt").write_text("x")
    (note,) = AnimeFace(root=str(root), unseen=2).index().bad
    assert isinstance(note, Note)
    assert "1 .txt" in note.reason


def test_the_same_from_around_from_inside_and_elsewhere(root: Path) -> None:
    inside = root / "animeface-character-dataset"
    sources = [AnimeFace(root=str(place)) for place in (root, inside, inside / "thumb")]
    prints = {fingerprint(source.index()) for source in sources}
    assert len(prints) == 1
    for source in (*sources, *(pickle.loads(pickle.dumps(source)) for source in sources)):  # noqa: S301 (our own)
        assert source.read("003_fate/face_1_10_20.png", "").shape == (160, 160, 3)


def test_characters_with_few_faces_can_be_left_out(root: Path) -> None:
    with pytest.raises(DataError, match=r"1 identity to train on \(002_suzumiya_haruhi, 12 pictures\)"):
        AnimeFace(root=str(root), unseen=0, min_pictures=10).index()
    assert len(AnimeFace(root=str(root), unseen=0, min_pictures=4).index().classes) == 6


def test_another_layout_in_clear_words(tmp_path: Path, drawn_picture: Callable[..., Image.Image]) -> None:
    with pytest.raises(DataError, match=r"Found no folder .*none"):
        AnimeFace(root=str(tmp_path / "none")).index()
    (tmp_path / "ann").mkdir()
    drawn_picture(20, 20, seed=1).save(tmp_path / "ann" / "1.png")
    with pytest.raises(
        DataError, match=r"is not the AnimeFace .*found ann/; expected thumb/NNN_name.*source=identities"
    ):
        AnimeFace(root=str(tmp_path)).index()
    (tmp_path / "thumb" / "000_nobody").mkdir(parents=True)
    with pytest.raises(DataError, match=r"thumb is not the AnimeFace .*found 000_nobody/; expected"):
        AnimeFace(root=str(tmp_path)).index()
    with pytest.raises(DataError, match="AnimeFace has no root"):
        AnimeFace().index()


@pytest.mark.slow
def test_the_same_from_s3(root: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(s3)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        storage.write(file.relative_to(root).as_posix(), file.read_bytes())
    local, remote = AnimeFace(root=str(root)), AnimeFace(root=s3)
    assert remote.index() == local.index()
    assert remote.read("003_fate/face_1_10_20.png", "").shape == (160, 160, 3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(ClusterError, match="cannot be read"):
        AnimeFace(root=s3).index()
