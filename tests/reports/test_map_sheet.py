"""Sheets of class maps out of finished steps over pictures with masks: which samples they show, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mvray import ClassMaps, Data, Generate, Job, Measure, Pictures, metrics
from mvray.data.columns import as_png, classes_field
from mvray.data.readers.pairs import Pairs
from mvray.data.tables import write_table
from mvray.errors import SettingError
from mvray.experiment.steps import Train
from mvray.generators import label_maps, map_scores
from mvray.methods import segmenter
from mvray.metrics import counts_of
from mvray.pipeline import plan
from mvray.pipeline.plan import MANIFEST, Plan
from mvray.reports import figures, map_sheet, results
from mvray.storage.storage import Storage

CLASSES, COUNT, SIDE = 3, 6, 32


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Squares of class 1 + i % 2 on background; the picture is grey where they are."""
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i in range(COUNT):
        mask_HW = np.zeros((SIDE, SIDE), np.uint8)
        mask_HW[8:24, 8:24] = 1 + i % 2
        Image.fromarray(mask_HW * 100).convert("RGB").save(tmp_path / f"data/images/{i}.png")
        Image.fromarray(mask_HW).save(tmp_path / f"data/masks/{i}.png")
    (tmp_path / "data/classes.txt").write_text("background\ncat\ndog\n")
    return tmp_path / "data"


def of_maps(root: Path, place: Path) -> Plan:
    """Two rows: one that says the truth, and one that is wrong by ever more, from picture 0 to the last."""
    data = Data(Pairs(root=str(root), train=0.34, validation=0.16, test=0.5), Pictures(40, 40, 3, fit="pad"))
    trained = Train("seg", segmenter.Config(network="mobilenet_v2"), data, select="mean_iou")
    rows = []
    for name in ("right", "worse"):
        maps = Generate(f"maps-{name}", label_maps.Config(of=trained, least=0.1 * len(rows)), data)
        scores = Generate(f"counts-{name}", map_scores.Config(CLASSES), data.with_columns(maps))
        rows.append((name, Measure(f"score-{name}", data.with_columns(scores), (metrics.MeanIoU(),))))
    sheet = ClassMaps("class maps", data, tuple(rows), samples=2)
    return plan.make(Job("seg", tuple(row for _, row in rows), sheets=(sheet,)), Storage(str(place)))


def finish(made: Plan) -> None:
    """Leave what the steps would; the worse row misses a row of pixels more for each picture."""
    for planned in made.steps:
        rows = planned.rows()
        keys, files = rows["key"].combine_chunks(), rows["location"].to_pylist()
        made_maps, counts = [], []
        for file in files:
            number = int(Path(file).stem)
            truth_HW = np.full((40, 40), 255, np.uint8)
            truth_HW[4:36, 4:36] = 0
            truth_HW[12:28, 12:28] = 1 + number % 2
            map_HW = np.where(truth_HW == 255, 1, truth_HW)  # a network says something of padding, too
            if "worse" in planned.name:
                map_HW[12 : 13 + 2 * number] = 0
            made_maps.append(as_png(map_HW.astype(np.uint8)))
            counts.append(counts_of(truth_HW, map_HW, CLASSES).reshape(-1))
        if planned.name.startswith("maps"):
            schema = pa.schema([pa.field("key", pa.string()), classes_field("label_map")])
            write_table(planned.folder, "columns/0.parquet", pa.table([keys, pa.array(made_maps)], schema=schema))
        elif planned.name.startswith("counts"):
            flat = pa.array(np.concatenate(counts).astype(np.int32))
            lists = pa.FixedSizeListArray.from_arrays(flat, CLASSES * (CLASSES + 1))
            write_table(planned.folder, "columns/0.parquet", pa.table({"key": keys, "counts": lists}))
        planned.folder.write("metrics.json", json.dumps({}).encode())
        planned.folder.write(MANIFEST, b"{}")


def test_sheets_best_worst_confusion_and_bars(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = of_maps(root, tmp_path / "runs")
    assert results.pictures(made) == {}
    finish(made)
    pages: dict[str, list[tuple[str, list[str]]]] = {}
    shown: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(map_sheet, "_stacked", lambda blocks, title: pages.update({title: shown[:]}) or blocks[0])
    lines = map_sheet._lines
    monkeypatch.setattr(map_sheet, "_lines", lambda *args: shown.append((args[2], args[1])) or lines(*args))
    drawn = results.pictures(made)
    names = ("", "-worst", "-best", "-confusion", "-classes")
    assert list(drawn) == [f"class-maps/class-maps{name}-seed0.png" for name in names]
    for png in drawn.values():
        Image.open(io.BytesIO(png)).verify()
    representative, worst, best = shown[:2], shown[2:4], shown[4:]
    assert [name for name, _ in worst] == ["images/5.png", "images/4.png"]
    assert [name for name, _ in best] == ["images/0.png", "images/1.png"]
    assert len({name for name, _ in representative}) == 2
    assert best[0][1] == ["picture", "truth", "right\nIoU 100%", "worse\nIoU 96%"]


def test_padding_is_not_shown(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = of_maps(root, tmp_path / "runs")
    finish(made)
    cells: list[np.ndarray] = []
    lines = map_sheet._lines
    monkeypatch.setattr(map_sheet, "_lines", lambda *args: cells.extend(args[0]) or lines(*args))
    results.pictures(made)
    assert {cell.shape for cell in cells} == {(SIDE, SIDE, 3)}


def test_a_measure_without_scores_of_maps_is_refused(root: Path, tmp_path: Path) -> None:
    made = of_maps(root, tmp_path / "runs")
    finish(made)
    sheet = made.job.sheets[0]
    assert isinstance(sheet, ClassMaps)
    (_, row), *_ = sheet.rows
    measure = Measure("alone", row.data.with_columns(), (metrics.MeanIoU(),))
    other = Measure("alone", Data(measure.data.source, measure.data.pictures), (metrics.MeanIoU(),))
    wrong = ClassMaps("class maps", sheet.data, (("alone", other),))
    made = plan.make(Job("seg", (other,), sheets=(wrong,)), Storage(str(tmp_path / "runs")))
    finish(made)
    with pytest.raises(SettingError, match="'alone' reads no scores"):
        results.pictures(made)


def test_a_confusion_matrix_has_a_column_for_none_where_there_is_any() -> None:
    counts = np.array([[5, 1, 0], [2, 2, 0]])
    assert figures.confusion_matrix(counts, ["a", "b"], "t", percent=True) == figures.confusion_matrix(
        counts[:, :2], ["a", "b"], "t", percent=True
    )
    counts[0, 2] = 3
    sizes = [
        Image.open(io.BytesIO(figures.confusion_matrix(part, ["a", "b"], "t"))).size for part in (counts, counts[:, :2])
    ]
    assert sizes[0] != sizes[1]
