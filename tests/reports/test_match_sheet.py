"""Sheets of matches are opened again and looked at."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from mvray import Job
from mvray.data.readers.folder import Folder
from mvray.data.tables import write_table
from mvray.experiment.exhibits import Matches
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Data, Generate, Optim, Train
from mvray.generators import predictions
from mvray.methods import arcface
from mvray.metrics import retrieval
from mvray.pipeline import plan
from mvray.pipeline.plan import MANIFEST, Plan
from mvray.reports import match_sheet
from mvray.storage.storage import Storage

pytestmark = pytest.mark.slow  # pictures, half a second each

SPLITS = ("validation", "test")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three characters of a colour each, 24 pictures; one more with a single picture."""
    root = tmp_path_factory.mktemp("faces")
    rand = np.random.default_rng(0)
    colours = {"ada": (0, 0, 200), "ben": (200, 200, 0), "cléo $1": (120, 0, 120), "dora": (0, 120, 120)}
    for name, colour in colours.items():
        (root / name).mkdir()
        for i in range(1 if name == "dora" else 8):
            pixels = np.clip(np.array(colour) + rand.integers(-20, 20, (40, 30, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def planned(faces: Path, place: Path, **settings: object) -> tuple[Plan, Matches]:
    data = Data(Folder(root=str(faces), train=0.4, validation=0.3, test=0.3), Pictures(32, 24))
    trained = Train("faces", arcface.Config("resnet-small"), data, Optim(), select="f1")
    made = Generate("embeddings", predictions.Config(of=trained), data.only(*SPLITS))
    sheet = Matches(**{"title": "test faces", "data": data.test, "embeddings": made, "samples": 3, **settings})
    return plan.make(Job("faces", (made,), sheets=(sheet,)), Storage(str(place))), sheet


def finish(made: plan.Planned, left_out: int = 0) -> None:
    """Embeddings of two directions: ada's and cléo's are alike, ben's are not."""
    rows = made.rows().slice(left_out)
    rand = np.random.default_rng(1)
    far = np.array([made.index.names[label] == "ben" for label in rows["label"].to_pylist()])
    vectors = np.stack([far, ~far], 1) + 0.05 * rand.standard_normal((len(rows), 2))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).reshape(-1)), 2)
    # Generate's shards are in no order that could be relied on.
    table = pa.table({"key": rows["key"].combine_chunks(), "embedding": column}).take(rand.permutation(len(rows)))
    write_table(made.folder, "columns/00000.parquet", table)
    made.folder.write(MANIFEST, b"{}")


def opened(png: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    return np.asarray(picture.convert("RGB"))


def share(pixels: np.ndarray, colour: str) -> int:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((pixels == wanted).all(2).sum())


@pytest.mark.slow
def test_examples_with_their_nearest_and_curves(faces: Path, tmp_path: Path) -> None:
    made, sheet = planned(faces, tmp_path)
    assert match_sheet.draw(made, sheet, 0) == {}, "nothing is finished yet"
    finish(made.of(sheet.embeddings, 0))
    drawn = match_sheet.draw(made, sheet, 0)
    assert drawn.keys() == {"matches/test-faces-seed0.png", "matches/test-faces-curves-seed0.png"}
    pixels = opened(drawn["matches/test-faces-seed0.png"])
    assert pixels.shape[1] == match_sheet.WIDTH_PX
    assert share(pixels, match_sheet.SAME) > 1000
    assert share(pixels, match_sheet.OTHER) > 1000
    assert opened(drawn["matches/test-faces-curves-seed0.png"]).size
    assert match_sheet.draw(made, sheet, 0) == drawn


def test_the_nearest_come_first_and_are_others_of_the_sheet(faces: Path, tmp_path: Path) -> None:
    made, sheet = planned(faces, tmp_path)
    finish(made.of(sheet.embeddings, 0))
    table = match_sheet._with_vectors(made.of(sheet.embeddings, 0), ("test",), "embedding")
    assert set(table["split"].to_pylist()) == {"test"}
    lines = match_sheet._lines(sheet, table, made.of(sheet.embeddings, 0).index.names)
    assert len({line.caption for line in lines}) == 3, "each character once, and none that is alone"
    for line in lines:
        distances = [match.distance for match in line.matches]
        assert len(distances) == min(match_sheet.NEAREST, len(table) - 1)
        assert distances == sorted(distances)
        name, split, count = line.caption.splitlines()
        others = int(count.split()[0])
        assert split == "test"
        assert sum(bool(match.same) for match in line.matches) == others
        if name == "ben":
            assert all(match.same for match in line.matches[:others])


def test_the_threshold_is_validations(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, sheet = planned(faces, tmp_path)
    finish(made.of(sheet.embeddings, 0))
    vectors = match_sheet._with_vectors(made.of(sheet.embeddings, 0), ("validation",), "embedding")
    seen: list[float] = []
    monkeypatch.setattr(match_sheet, "_sheet", lambda lines, threshold, title: seen.append(threshold) or b"")
    match_sheet.draw(made, sheet, 0)
    assert seen == [retrieval.Retrieval().fitted({"validation": vectors}, ()).threshold]


def test_pictures_without_vectors_or_gone_are_left_out(faces: Path, tmp_path: Path) -> None:
    made, sheet = planned(faces, tmp_path)
    finish(made.of(sheet.embeddings, 0), left_out=2)
    rows = made.of(sheet.embeddings, 0).rows()
    missing = next(row["location"] for row in rows.to_pylist() if row["split"] == "test")
    content = (faces / missing).read_bytes()
    (faces / missing).write_bytes(b"")
    try:
        assert "matches/test-faces-seed0.png" in match_sheet.draw(made, sheet, 0)
    finally:
        (faces / missing).write_bytes(content)


def test_nothing_to_compare_draws_nothing(faces: Path, tmp_path: Path) -> None:
    made, sheet = planned(faces, tmp_path)
    step = made.of(sheet.embeddings, 0)
    finish(step)
    columns = step.folder
    alone = step.rows()
    firsts = [alone["label"].to_pylist().index(label) for label in set(alone["label"].to_pylist())]
    keys = alone.take(firsts)["key"]
    table = match_sheet.columns_of(columns)
    write_table(columns, "columns/00000.parquet", table.filter(pc.is_in(table["key"], keys.combine_chunks())))
    assert match_sheet.draw(made, sheet, 0) == {}
