"""Sample segments: VOC 2012's layout as its reader reads it, exact class maps, nothing shared by train and val."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from mvray.cli import main
from mvray.data.palette import colours
from mvray.data.readers import VOC2012
from mvray.data.synthetic import drawings
from mvray.data.synthetic.collage import edges
from mvray.data.synthetic.segments import CLASSES, compose, works_of
from mvray.data.synthetic.stamps import SUBJECTS, Stamp, split_stamps
from mvray.experiment import IGNORE, Index

PICTURES, SIZE, SEED = 20, 64, 2


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("art") / "segments"
    compose(out, pictures=PICTURES, size=SIZE, seed=SEED, processes=1)
    return out


@pytest.fixture(scope="module")
def index(sample: Path) -> Index:
    return VOC2012(root=str(sample), validation=0.0).index()


def names_of(sample: Path) -> list[str]:
    return (sample / "ImageSets" / "Segmentation" / "trainval.txt").read_text().split()


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_reader_of_voc_finds_nothing_wrong(sample: Path, index: Index) -> None:
    assert index.bad == ()
    assert index.classes == CLASSES
    assert Counter(index.rows["split"].to_pylist()) == {"train": 16, "test": 4}
    assert index.rows["key"].to_pylist() == names_of(sample) == [f"composed_{n:06d}" for n in range(PICTURES)]
    reader = VOC2012(root=str(sample))
    name = names_of(sample)[0]
    picture_HWC = reader.read(f"JPEGImages/{name}.jpg", "")
    assert reader.read_target(f"SegmentationClass/{name}.png", "mask").shape == picture_HWC.shape[:2]


def test_class_maps_objects_and_annotations_agree(sample: Path) -> None:
    for name in names_of(sample):
        map_HW = pixels(sample / "SegmentationClass" / f"{name}.png")
        objects_HW = pixels(sample / "SegmentationObject" / f"{name}.png")
        tree = ElementTree.parse(sample / "Annotations" / f"{name}.xml")  # noqa: S314 (written here, a moment ago)
        things = tree.findall("object")
        assert [int(tree.findtext(f"size/{side}") or 0) for side in ("height", "width")] == list(map_HW.shape)
        assert 1 <= len(things) <= 4
        assert {thing.findtext("name") for thing in things} == {CLASSES[i] for i in np.unique(map_HW) if 0 < i < IGNORE}
        for number, thing in enumerate(things, 1):
            left, top, right, bottom = (
                int(thing.findtext(f"bndbox/{side}") or 0) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            inside_HW = objects_HW == number
            assert np.unique(map_HW[inside_HW]).tolist() == [CLASSES.index(thing.findtext("name") or "")]
            assert inside_HW.sum() >= 0.004 * map_HW.size
            assert inside_HW[top - 1 : bottom, left - 1 : right].sum() == inside_HW.sum()
            assert thing.findtext("difficult") == "0"


def test_void_lies_between_any_two_owners_and_nowhere_else(sample: Path) -> None:
    for name in names_of(sample):
        map_HW = pixels(sample / "SegmentationClass" / f"{name}.png")
        objects_HW = pixels(sample / "SegmentationObject" / f"{name}.png")
        void_HW = map_HW == IGNORE
        assert (void_HW == (objects_HW == IGNORE)).all()
        assert void_HW.any()
        for one, other in ((np.s_[1:, :], np.s_[:-1, :]), (np.s_[:, 1:], np.s_[:, :-1])):
            known_HW = ~void_HW[one] & ~void_HW[other]
            assert (objects_HW[one] == objects_HW[other])[known_HW].all(), "two owners side by side"
    owners_HW = np.zeros((7, 7), np.uint8)
    owners_HW[:4, 3:] = 1
    assert edges(owners_HW)[0].tolist() == [False, False, True, True, False, False, False]
    assert edges(owners_HW)[:, 6].tolist() == [False, False, False, True, True, False, False]


def test_colours_are_vocs(sample: Path) -> None:
    with Image.open(sample / "SegmentationClass" / "composed_000000.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == colours().ravel().tolist()
    voc = colours().tolist()
    assert voc[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert voc[8] == [64, 0, 0]
    assert voc[15] == [192, 128, 128], "person"
    assert voc[IGNORE] == [224, 224, 192]


def test_train_and_val_share_neither_drawings_nor_grounds(sample: Path) -> None:
    with (sample / "composed.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == names_of(sample)
    for split in ("train", "val"):
        listed = (sample / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        assert listed == [row["picture"] for row in rows if row["list"] == split]
    works = works_of(300, 160, 0)
    used = (
        {(work.pictures[0].split, work.ground) for work in works},
        {(p.split, stamp.key) for work in works for p in work.pictures for stamp in p.stamps + p.things},
    )
    for things in used:
        assert not {thing for split, thing in things if split == "train"} & {
            thing for split, thing in things if split == "val"
        }
    train, val = split_stamps(np.random.default_rng(0))
    for kind in ("", *SUBJECTS):
        ours, theirs = ({stamp.key for stamp in part if stamp.kind == kind} for part in (train, val))
        assert not ours & theirs
        assert len(ours) == round((len(ours) + len(theirs)) * 2 / 3)
    assert all(picture.split == work.pictures[0].split for work in works for picture in work.pictures)
    assert {work.kind for work in works if work.pictures[0].split == "val"} == {work.kind for work in works}


def test_no_drawing_has_a_twin_in_the_other_split() -> None:
    """Artists draw a man and a woman, a ram and a ewe, nearly alike; whatever the split, no such pair may be torn."""
    train, val = split_stamps(np.random.default_rng(0))

    def small(stamp: Stamp) -> np.ndarray:
        image = drawings.drawing(stamp.artist, stamp.name).image.crop(drawings.extent(stamp.artist, stamp.name))
        return np.asarray(image.resize((24, 24)).convert("RGBa")).astype(np.float32) / 255

    for kind in ("", *SUBJECTS):
        stamps = [stamp for stamp in train + val if stamp.kind == kind]
        pictures = np.stack([small(stamp) for stamp in stamps])
        for i, stamp in enumerate(stamps[1:], 1):
            for one in (pictures[i], pictures[i, :, ::-1]):
                apart = np.abs(pictures[:i] - one).mean(axis=(1, 2, 3))
                assert apart.min() > 0.045, (stamp.key, stamps[int(apart.argmin())].key)


def test_every_class_is_dealt_alike_and_every_subject_was_drawn() -> None:
    drawn = frozenset().union(*(drawings.names(artist) for artist in drawings.artists()))
    assert {name for names in SUBJECTS.values() for name in names} <= drawn
    pictures = [picture for work in works_of(300, 160, 0) for picture in work.pictures]
    assert len(pictures) == 300
    counts = Counter(kind for p in pictures for kind in {stamp.kind for stamp in p.stamps})
    assert set(counts) == set(SUBJECTS)
    assert max(counts.values()) - min(counts.values()) <= 12
    assert set(Counter(len({stamp.kind for stamp in p.stamps}) for p in pictures)) == {1, 2, 3}
    assert {p.size for p in pictures} == {(160, 160), (160, 120), (120, 160)}


def test_pictures_stand_lie_and_are_square(sample: Path) -> None:
    sizes = {pixels(path).shape for path in (sample / "JPEGImages").iterdir()}
    assert sizes == {(SIZE, SIZE, 3), (48, SIZE, 3), (SIZE, 48, 3)}


def test_the_same_seed_gives_the_same_bytes_and_the_command_composes(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--pictures", str(PICTURES), "--size", str(SIZE), "--seed"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)
        assert main(["sample", "segments", str(tmp_path / "again"), *settings, str(SEED)]) == 0
    assert f"Wrote {PICTURES} pictures" in capsys.readouterr().out
    assert (tmp_path / "again" / "sample.json").read_bytes() == (sample / "sample.json").read_bytes()
    assert works_of(PICTURES, SIZE, SEED) == works_of(PICTURES, SIZE, SEED)
    assert works_of(PICTURES, SIZE, SEED + 1) != works_of(PICTURES, SIZE, SEED)
