"""Faces of characters: which are samples, of which classes and splits, and how their pixels come."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mvray.data.crops
from mvray.data.bad_files import Note, check
from mvray.data.decoding import Unreadable
from mvray.data.fingerprint import fingerprint
from mvray.data.loader import loader
from mvray.data.pictures import PictureDataset
from mvray.data.readers.manga109_faces import Manga109Faces
from mvray.data.rows import ROWS
from mvray.errors import DataError, SettingError
from mvray.experiment.inputs import Pictures
from mvray.experiment.source import BadRecord, Index
from mvray.storage.storage import Storage

SIZE = (300, 200)
Box = tuple[int, str, int, int, int, int]  # page, character, xmin, ymin, xmax, ymax
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("node")))


def annotated(characters: Sequence[tuple[str, str]], boxes: Sequence[Box], pages: int) -> str:
    """Manga109's XML. A character is (id, name)."""
    listed = "".join(f'<character id="{id_}" name="{name}"/>' for id_, name in characters)
    text = [
        f'<page index="{page}" width="{SIZE[0]}" height="{SIZE[1]}">'
        + "".join(
            f'<face id="{i:x}" xmin="{x0}" ymin="{y0}" xmax="{x1}" ymax="{y1}"'
            + (f' character="{who}"/>' if who else "/>")
            for i, (_, who, x0, y0, x1, y1) in enumerate(box for box in boxes if box[0] == page)
        )
        + '<body xmin="1" ymin="1" xmax="9" ymax="9" character="a"/><frame xmin="1" ymin="1" xmax="9" ymax="9"/></page>'
        for page in range(pages)
    ]
    return f'<book title="x"><characters>{listed}</characters><pages>{"".join(text)}</pages></book>'


@pytest.fixture
def write(tmp_path: Path, drawn_picture: Callable[..., Image.Image]) -> Write:
    """Add a work to tmp_path/comics; ``faces`` says how many each character has, or ``boxes`` where they are."""

    def add(
        title: str,
        faces: dict[str, int] | None = None,
        boxes: Sequence[Box] = (),
        characters: Sequence[tuple[str, str]] = (),
        pages: int = 2,
    ) -> Path:
        root = tmp_path / "comics"
        (root / "images" / title).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        for page in range(pages):
            drawn_picture(*SIZE, seed=len(title) + page).save(root / "images" / title / f"{page:03d}.jpg")
        everyone = [who for who, count in (faces or {}).items() for _ in range(count)]
        drawn = [
            (i % pages, who, 7 * i % 250, 11 * i % 150, 7 * i % 250 + 30, 11 * i % 150 + 40)
            for i, who in enumerate(everyone)
        ]
        xml = annotated(characters or [(who, f"Name {who}") for who in faces or {}], [*drawn, *boxes], pages)
        (root / "annotations" / f"{title}.xml").write_text(xml, encoding="utf-8")
        return root

    return add


def of(root: Path, **settings: object) -> Index:
    return Manga109Faces(root=str(root), **{"unseen": 0, **settings}).index()


def counted(index: Index) -> dict[tuple[str, str], int]:
    """How many samples each class has, split by whether training may see it."""
    rows = index.rows.to_pylist()
    return dict(Counter(("unseen" if r["split"] == "unseen" else "seen", index.names[r["label"]]) for r in rows))


def works_in(index: Index, *splits: str) -> set[str]:
    return {row["group"] for row in index.rows.to_pylist() if row["split"] in splits}


SEEN = ("train", "validation", "test")


def test_characters_are_classes_and_rare_ones_are_left_out_of_training(write: Write) -> None:
    root = write("ARMS", {"a": 12, "b": 10, "c": 9})
    index = of(root)
    assert index.rows.schema == ROWS
    assert index.classes == ("ARMS/Name a", "ARMS/Name b")
    assert index.unseen == ()
    assert counted(index) == {("seen", "ARMS/Name a"): 12, ("seen", "ARMS/Name b"): 10}
    assert of(root, min_faces=11).classes == ("ARMS/Name a",)
    assert of(root, min_faces=9).classes == ("ARMS/Name a", "ARMS/Name b", "ARMS/Name c")
    assert Counter(index.rows["split"].to_pylist()) == {"train": 16, "validation": 2, "test": 4}
    first = index.rows.to_pylist()[0]
    assert (first["group"], first["location"], first["regions"], first["frames"]) == (
        "ARMS", "images/ARMS/000.jpg", [], 1
    )  # fmt: skip
    assert first["key"] == f"ARMS/000/{first['part']}"
    assert len(set(index.rows["key"].to_pylist())) == 22


def test_rare_characters_of_an_unseen_work_are_one_class(write: Write) -> None:
    write("Alpha", {"a": 10})
    root = write("Beta", {"a": 10, "b": 9, "c": 1})
    index = of(root, unseen_works=("Beta",))
    assert index.classes == ("Alpha/Name a",)
    assert index.unseen == ("Beta/Name a", "Beta/other")
    assert counted(index) == {
        ("seen", "Alpha/Name a"): 10, ("unseen", "Beta/Name a"): 10, ("unseen", "Beta/other"): 10
    }  # fmt: skip
    assert works_in(index, "unseen") == {"Beta"}
    assert works_in(index, *SEEN) == {"Alpha"}


def test_every_character_that_is_a_class_is_trained_on(write: Write) -> None:
    index = of(write("W", {"a": 1, "b": 1, "c": 2, "d": 30}), min_faces=1)
    trained = {row["label"] for row in index.rows.to_pylist() if row["split"] == "train"}
    assert trained == {0, 1, 2, 3}
    assert Counter(index.rows["split"].to_pylist()) == {"train": 24, "validation": 3, "test": 7}


def test_names_that_repeat_and_names_that_mean_others(write: Write) -> None:
    twins = [("1", "双子"), ("2", "双子"), ("3", "other"), ("4", ""), ("5", "Ann")]
    index = of(write("W", {"1": 2, "2": 3, "3": 2, "4": 2, "5": 2}, characters=twins), min_faces=2)
    assert index.classes == ("W/ (4)", "W/Ann", "W/other (3)", "W/双子 (1)", "W/双子 (2)")
    assert counted(index)["seen", "W/双子 (2)"] == 3


@pytest.fixture
def many(write: Write) -> Path:
    """Fourteen works with 10 and 12 faces of two characters, two of them volumes of one series."""
    for title in [f"Work{i:02d}" for i in range(12)] + ["LoveHina_vol01", "LoveHina_vol14"]:
        root = write(title, {"a": 10, "b": 12}, pages=1)
    return root


def test_unseen_works_are_drawn_and_a_series_stays_on_one_side(many: Path) -> None:
    index = of(many, unseen=11)
    assert len(works_in(index, "unseen")) == 11
    assert len(works_in(index, *SEEN)) == 3
    assert not works_in(index, "unseen") & works_in(index, *SEEN)
    assert works_in(of(many, unseen=0.5), "unseen") < works_in(index, "unseen") | {"LoveHina_vol01", "LoveHina_vol14"}
    assert len(works_in(of(many, unseen=0.5), "unseen")) == 7
    sides = []
    for seed in range(12):
        drawn = of(many, unseen=7, split_seed=seed)
        assert len(works_in(drawn, "unseen")) == 7
        sides.append(len(works_in(drawn, "unseen") & {"LoveHina_vol01", "LoveHina_vol14"}))
    assert set(sides) == {0, 2}
    assert of(many, unseen=1.0).classes == ()
    with pytest.raises(DataError, match=r"Found 14 works; source.unseen asks for 15 .*source.unseen=0.2"):
        of(many, unseen=15)


def test_works_by_name(many: Path) -> None:
    index = of(many, works=("Work03", "Work01"), unseen_works=("Work05",))
    assert works_in(index, *SEEN) == {"Work01", "Work03"}
    assert works_in(index, "unseen") == {"Work05"}
    assert works_in(of(many, unseen_works=("Work05",)), *SEEN) == {
        path.name for path in (many / "images").iterdir()
    } - {"Work05"}
    drawn = of(many, works=("Work03", "LoveHina_vol01"), unseen=11)
    assert works_in(drawn, "unseen") == {f"Work{i:02d}" for i in range(12) if i != 3}  # not the other volume
    assert works_in(of(many, unseen_works=("LoveHina_vol14",)), *SEEN) == {f"Work{i:02d}" for i in range(12)}
    assert works_in(of(many, volumes="first"), *SEEN) == {*(f"Work{i:02d}" for i in range(12)), "LoveHina_vol01"}
    assert works_in(of(many, volumes="none"), *SEEN) == {f"Work{i:02d}" for i in range(12)}
    with pytest.raises(DataError, match=r"source.unseen_works names Nix, which .* It has: LoveHina_vol01,"):
        of(many, unseen_works=("Nix",))
    with pytest.raises(DataError, match=r"both have volumes of LoveHina; expected each series on one side"):
        of(many, works=("LoveHina_vol01",), unseen_works=("LoveHina_vol14",))


def test_one_work_per_author(many: Path, tmp_path: Path) -> None:
    titles = sorted(path.name for path in (many / "images").iterdir())
    table = tmp_path / "authors.csv"
    table.write_text("title,author\n" + "".join(f"{title},{i // 2}\n" for i, title in enumerate(titles)))
    writer = {title: i // 2 for i, title in enumerate(titles)}
    how = {"authors": str(table), "one_per_author": True}
    index = of(many, unseen=3, **how)
    taken = works_in(index, "unseen", *SEEN)
    assert sorted(writer[title] for title in taken) == list(range(7))  # so the paper's 94: 83 and 11 others
    assert len(works_in(index, "unseen")) == 3
    named = of(many, unseen_works=(titles[5],), **how)
    assert titles[4] not in works_in(named, *SEEN)  # by the same author
    assert len(works_in(named, *SEEN)) == 6
    with pytest.raises(SettingError, match=r"authors is '' but source.one_per_author is True"):
        of(many, one_per_author=True)
    table.write_text("title,author\nWork01,x\n")
    with pytest.raises(DataError, match="has no row for 13 works"):
        of(many, **how)


def test_the_first_works_are_a_part_of_all(many: Path) -> None:
    everything, few = (of(many, unseen=4, most_works=count) for count in (0, 3))
    assert len(works_in(few, *SEEN)) == 3
    assert works_in(of(many, unseen=4, most_works=2), *SEEN) < works_in(few, *SEEN)
    assert works_in(few, "unseen") == works_in(everything, "unseen")

    def described(index: Index) -> set[tuple[str, str, str]]:
        return {(row["key"], row["split"], index.names[row["label"]]) for row in index.rows.to_pylist()}

    assert described(few) < described(everything)
    assert len(few.classes) == 6


def test_works_without_a_frequent_character_do_not_count_as_works_that_train(write: Write) -> None:
    for i in range(8):
        root = write(f"Work{i}", {"a": 10 if i % 2 else 4}, boxes=[(0, "", 10, 10, 60, 60)])
    for count in range(1, 5):
        index = of(root, most_works=count)
        assert len(index.classes) == len(index.bad) == count
        assert works_in(index, *SEEN) <= {"Work1", "Work3", "Work5", "Work7"}


def test_faces_that_cannot_be_used_are_told_of_in_one_note(write: Write) -> None:
    wrong = [
        (0, "", 10, 10, 60, 60),
        (0, "", 20, 10, 60, 60),
        (0, "nobody", 10, 10, 60, 60),
        (1, "a", 301, 10, 360, 60),  # outside
        (1, "a", 60, 60, 10, 90),  # the wrong way round
        (7, "a", 10, 10, 60, 60),  # no such picture
    ]
    root = write("W", {"a": 10}, boxes=[*wrong, (0, "a", 280, -20, 340, 60)], pages=8)
    (root / "images/W/007.jpg").unlink()
    index = of(root)
    assert index.bad == (
        Note(
            "annotations/W.xml",
            "faces that are left out: 2 empty or outside of the page, 1 of a character that is not listed, "
            "2 on pages without a picture, 2 without a character",
        ),
    )
    check(index, 0.0)
    parts = [[int(side) for side in part.split(",")] for part in index.rows["part"].to_pylist()]
    assert max(part[2] for part in parts) == 300  # cut at its page
    assert min(part[1] for part in parts) == 0


def test_two_boxes_of_one_place_have_their_own_keys(write: Write) -> None:
    root = write(
        "W", boxes=[(0, "a", 10, 10, 60, 60)] * 2 + [(0, "b", 10, 10, 60, 60)], characters=[("a", "A"), ("b", "B")]
    )
    assert of(root, min_faces=1).rows["key"].to_pylist() == [
        "W/000/2,2,67,67", "W/000/2,2,67,67/2", "W/000/2,2,67,67/3"
    ]  # fmt: skip


def test_works_without_annotations_are_left_out(write: Write) -> None:
    write("Bad", {"a": 10})
    write("Missing", {"a": 10})
    root = write("Good", {"a": 10})
    (root / "annotations/Missing.xml").unlink()
    (root / "annotations/Bad.xml").write_text("<book><pages>")
    index = of(root)
    assert works_in(index, *SEEN) == {"Good"}
    assert [(type(bad), bad.location) for bad in index.bad] == [
        (Note, "annotations/Bad.xml"), (Note, "annotations/Missing.xml")
    ]  # fmt: skip
    assert index.bad[1].reason == "missing; its work is left out"
    check(index, 0.0)
    (root / "annotations/Good.xml").unlink()
    with pytest.raises(DataError, match=r"no annotations of its 3 works \(found first annotations/Bad.xml: not valid"):
        of(root)
    shutil.rmtree(root / "annotations")
    with pytest.raises(DataError, match=r"no annotations of its 3 works \(found images/\); expected annotations/TITLE"):
        of(root)


def test_only_rare_characters_and_no_characters(write: Write) -> None:
    root = write("W", {"a": 3, "b": 4})
    with pytest.raises(DataError, match=r"no character with 10 faces in 1 training works \(W/Name b has most, 4\)"):
        of(root)
    shutil.rmtree(root)
    with pytest.raises(DataError, match=r"no character with 10 faces .*there are no faces"):
        of(write("W"))


def test_bad_pages_lose_their_faces(write: Write) -> None:
    root = write("W", {"a": 40}, pages=4)
    (root / "images/W/001.jpg").write_bytes(b"")
    index = of(root)
    assert index.bad == (BadRecord("images/W/001.jpg", "empty (0 bytes)"),)
    assert len(index.rows) == 30
    with pytest.raises(DataError, match="Found 1 of 4 files unreadable"):
        check(index, 0.01)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unseen": 2.5}, r"source.unseen is 2.5; expected a share from 0 to 1 or a number of works"),
        ({"unseen": -1}, r"source.unseen is -1"),
        ({"volumes": "second"}, "expected one of all, first, none"),
        ({"margin": -0.1}, r"source.margin is -0.1; expected 0 or more"),
        ({"margin": float("nan")}, "source.margin is nan"),
        ({"crop_px": 0}, r"source.crop_px is 0; expected 1 or more"),
        ({"min_faces": -1}, "source.min_faces is -1"),
        ({"most_works": -1}, "source.most_works is -1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Manga109Faces(**settings)


def test_a_folder_that_is_not_manga109(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not Manga109: found nothing"):
        of(tmp_path)


def test_pixels_are_those_of_the_square(write: Write) -> None:
    root = write("W", {"a": 20}, pages=3)
    source = Manga109Faces(root=str(root), unseen=0)
    for row in source.index().rows.to_pylist():
        x0, y0, x1, y1 = (int(side) for side in row["part"].split(","))
        page = np.asarray(Image.open(root / row["location"]))
        found = source.read(row["location"], row["part"])
        assert found.shape == (y1 - y0, x1 - x0, 1)
        assert np.array_equal(found[..., 0], page[y0:y1, x0:x1])
    assert source.read_sized(row["location"], row["part"], 16, 16, grey=True).dtype == np.uint8
    tight = Manga109Faces(root=str(root), unseen=0, margin=0, crop_px=20)
    row = tight.index().rows.to_pylist()[0]
    assert tight.read(row["location"], row["part"]).shape == (20, 20, 1)


def test_the_folder_around_a_release(write: Write, tmp_path: Path) -> None:
    write("W", {"a": 10}).rename(tmp_path / "Manga109_released_2023_12_07")
    outer = Manga109Faces(root=str(tmp_path), unseen=0)
    row = outer.index().rows.to_pylist()[0]
    assert row["location"].startswith("Manga109_released_2023_12_07/images/W/")
    assert row["key"].startswith("W/000/")
    assert outer.read(row["location"], row["part"]).shape == (52, 52, 1)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every picture that is decoded for its crops."""
    seen: list[int] = []
    plain = mvray.data.crops.open_upright

    def picture(data: bytes, *given: object, **how: object) -> Image.Image:
        seen.append(len(data))
        return plain(data, *given, **how)

    monkeypatch.setattr(mvray.data.crops, "open_upright", picture)
    return seen


def test_each_page_is_decoded_once_over_epochs_threads_and_copies_of_the_source(
    write: Write, decodings: list[int]
) -> None:
    write("Alpha", {"a": 30}, pages=3)
    write("Empty", pages=2)
    root = write("Beta", {"a": 30, "b": 30}, pages=4)
    source = Manga109Faces(root=str(root), unseen=0)
    rows = source.index().rows
    assert decodings == []
    for copy in (source, pickle.loads(pickle.dumps(source))):  # noqa: S301 (our own)
        dataset = PictureDataset(copy, rows, Pictures(32, 32, 1), train=True)
        for epoch in range(3):
            order = np.random.default_rng(epoch).permutation(len(rows)).reshape(-1, 10)
            batches = list(loader(dataset, order, epoch, workers=8))
            assert sorted(int(i) for batch in batches for i in batch["index"]) == list(range(len(rows)))
            assert all((batch["bad"] == -1).all() for batch in batches)
    assert len(decodings) == 7  # not those without faces


def test_a_page_that_breaks_after_indexing(write: Write, decodings: list[int]) -> None:
    root = write("W", {"a": 20}, pages=2)
    source = Manga109Faces(root=str(root), unseen=0)
    rows = {row["location"]: row for row in source.index().rows.to_pylist()}
    broken, good = rows["images/W/000.jpg"], rows["images/W/001.jpg"]
    whole = (root / broken["location"]).read_bytes()
    (root / broken["location"]).write_bytes(whole[:200] + bytes(len(whole) - 200))
    assert source.read(good["location"], good["part"]).shape == (52, 52, 1)
    with pytest.raises(Unreadable, match="truncated or broken"):
        source.read(broken["location"], broken["part"])
    (root / broken["location"]).write_bytes(whole)
    mended = source.read(broken["location"], broken["part"])
    x0, y0, x1, y1 = (int(side) for side in broken["part"].split(","))
    assert np.array_equal(mended[..., 0], np.asarray(Image.open(root / broken["location"]))[y0:y1, x0:x1])
    (root / broken["location"]).unlink()
    with pytest.raises(Unreadable, match="not there any more"):
        source.read(broken["location"], broken["part"])
    (root / "annotations/W.xml").unlink()
    with pytest.raises(Unreadable, match=r"the annotations of W cannot be read any more \['missing"):
        Manga109Faces(root=str(root)).read(good["location"], good["part"])


def test_another_box_is_another_crop_and_another_fingerprint(write: Write) -> None:
    root = write("W", {"a": 10}, boxes=[(0, "a", 10, 10, 60, 60)])
    before = of(root)
    xml = root / "annotations/W.xml"
    xml.write_text(xml.read_text().replace('xmin="10" ymin="10"', 'xmin="12" ymin="10"'))
    after = of(root)
    assert fingerprint(after) != fingerprint(before)
    source = Manga109Faces(root=str(root))
    changed = set(after.rows["part"].to_pylist()) - set(before.rows["part"].to_pylist())
    (part,) = changed
    x0, y0, x1, y1 = (int(side) for side in part.split(","))
    page = np.asarray(Image.open(root / "images/W/000.jpg"))
    assert np.array_equal(source.read("images/W/000.jpg", part)[..., 0], page[y0:y1, x0:x1])


def test_what_the_fingerprint_sees(write: Write) -> None:
    write("Alpha", {"a": 10, "b": 10})
    root = write("Beta", {"a": 10})
    settings = {"unseen_works": ("Beta",)}
    plain = of(root, **settings)
    for changed in ({"margin": 0.2}, {"split_seed": 1}, {"min_faces": 11, "unseen": 1.0, "unseen_works": ()}):
        assert fingerprint(of(root, **settings | changed)) != fingerprint(plain)
    for title in ("Alpha", "Beta"):
        xml = root / "annotations" / f"{title}.xml"
        xml.write_text(xml.read_text().replace("Name a", "Anna"))
        renamed = of(root, **settings)
        assert fingerprint(renamed) != fingerprint(plain)
        trained = fingerprint(renamed, ("train", "validation")), fingerprint(plain, ("train", "validation"))
        assert (trained[0] == trained[1]) == (title == "Beta")  # an unseen name is nothing to training
        xml.write_text(xml.read_text().replace("Anna", "Name a"))


@pytest.mark.slow
def test_the_same_from_s3(write: Write, s3: str, decodings: list[int]) -> None:
    write("Alpha", {"a": 20, "b": 4})
    root = write("Beta", {"a": 12, "b": 3})
    (root / "images/Beta/001.jpg").write_bytes((root / "images/Beta/001.jpg").read_bytes()[:500])
    storage = Storage(s3)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        storage.write(file.relative_to(root).as_posix(), file.read_bytes())
    local, remote = (Manga109Faces(root=place, unseen_works=("Beta",), min_faces=5) for place in (str(root), s3))
    index = remote.index()
    assert index.rows.equals(local.index().rows)
    assert (index.classes, index.unseen) == (("Alpha/Name a",), ("Beta/Name a", "Beta/other"))
    assert [bad.location for bad in index.bad] == ["images/Beta/001.jpg"]
    for row in index.rows.to_pylist():
        pixels = (source.read(row["location"], row["part"]) for source in (local, remote))
        assert np.array_equal(*pixels)
    # Two of Alpha and one of Beta for each; Beta's other one is tried while its work is cut, and never asked for.
    assert len(decodings) == 2 * 4
