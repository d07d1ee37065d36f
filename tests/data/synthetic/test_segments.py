"""Sample segments: VOC's layout, class maps that say what the annotations say, splits that share no drawing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvray.data.readers import VOC2012
from mvray.data.synthetic import segments
from mvray.errors import SettingError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("segments") / "sample"
    segments.compose(place, pictures=25, size=96, seed=3, processes=1)
    return place


def test_it_is_read_as_voc_is(root: Path) -> None:
    source = VOC2012(root=str(root))
    index = source.index()
    assert index.classes == segments.CLASSES
    assert index.bad == ()
    sizes = set()
    for row in index.rows.to_pylist():
        classes_HW = source.read_target(row["targets"]["mask"]["location"], "mask")
        assert source.read(row["location"], "").shape[:2] == classes_HW.shape
        sizes.add(classes_HW.shape)
        seen = set(np.unique(classes_HW)) - {0, 255}
        assert seen == set(np.flatnonzero(row["labels"]))
        assert (classes_HW == 255).any()
    assert sizes == {(96, 96), (72, 96), (96, 72)}
    splits = index.rows["split"].to_pylist()
    assert splits.count("test") == 5
    assert splits.count("train") + splits.count("validation") == 20
    mask = Image.open(root / "SegmentationClass/2007_000000.png")
    assert mask.mode == "P"
    assert mask.getpalette()[3:6] == [128, 0, 0]


def test_no_drawing_is_in_both_splits() -> None:
    train, val = segments.stamps("train", 0), segments.stamps("val", 0)
    assert list(train) == list(segments.THINGS)
    for class_ in train:
        assert not set(train[class_]) & set(val[class_])
        assert len(train[class_]) > len(val[class_]) > 10


def test_the_same_settings_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    segments.compose(tmp_path / "again", pictures=25, size=96, seed=3, processes=1)
    files = [file.relative_to(root) for file in root.rglob("*") if file.is_file()]
    assert len(files) > 75
    assert all((root / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="pictures is 3; expected 10"):
        segments.compose(tmp_path / "few", pictures=3)
    with pytest.raises(SettingError, match="size is 2000; expected 64"):
        segments.compose(tmp_path / "large", size=2000)
