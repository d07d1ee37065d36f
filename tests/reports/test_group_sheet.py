"""Sheets of groups, drawn from finished Measure steps over pictures in a folder."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mvray import Job
from mvray.cluster.session import Cluster
from mvray.data.readers.folder import Folder
from mvray.errors import SettingError
from mvray.experiment import Metric
from mvray.experiment.exhibits import Groups
from mvray.experiment.inputs import Pictures
from mvray.experiment.source import Index
from mvray.experiment.steps import Data, Measure
from mvray.metrics.clustering import Clusters, Hdbscan, KMeans
from mvray.pipeline import measure, plan
from mvray.pipeline.plan import MANIFEST, Plan
from mvray.reports import group_sheet, results
from mvray.storage.storage import Storage

pytestmark = pytest.mark.slow  # pictures, half a second each


@dataclass(frozen=True, kw_only=True)
class Works(Folder):
    """The drawings as if they were of two works."""

    def index(self) -> Index:
        index = super().index()
        works = ["odd" if int(Path(key).stem) % 2 else "even work" for key in index.rows["location"].to_pylist()]
        rows = index.rows.set_column(index.rows.column_names.index("group"), "group", pa.array(works))
        return replace(index, rows=rows)


@dataclass(frozen=True)
class OfPixels(Metric):
    """Clusters of the pictures themselves, so that no network is needed."""

    root: str
    clusters: Clusters

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> dict[str, float | np.ndarray]:
        source = Works(root=self.root)
        read = [source.read(location, "").reshape(-1) for location in table["location"].to_pylist()]
        vectors = pa.array([each.astype(float) for each in read], pa.list_(pa.float64()))
        return self.clusters(table.append_column("vector", vectors), names)


def finished(root: Path, place: Path, clusters: Clusters) -> tuple[Plan, Groups]:
    """The plan of a job that measured two ways to group, and its sheet."""
    data = Data(Works(root=str(root), train=1.0, validation=0.0, test=0.0), Pictures(12, 8, 1)).train
    other = replace(clusters, way=KMeans(), map=False)
    rows = tuple(
        (name, Measure(f"score {name}", data, (OfPixels(str(root), each),)))
        for name, each in (("dc", clusters), ("ft+dc fc1", other))
    )
    sheet = Groups("characters", data, rows, clusters.name)
    made = plan.make(Job("job", tuple(step for _, step in rows), sheets=(sheet,)), Storage(str(place)))
    for planned in made.steps:
        metrics = measure.run(planned, Cluster(planned.storage, 0))
        planned.folder.write("metrics.json", json.dumps(metrics).encode())
    return made, sheet


def end(made: Plan) -> None:
    for planned in made.steps:
        planned.folder.write(MANIFEST, b"{}")


CLUSTERS = Clusters("vector", "hdbscan", None, Hdbscan(4), map=True)


def test_bars_map_and_sheet_of_the_middle_work(drawings: Path, tmp_path: Path) -> None:
    made, sheet = finished(drawings, tmp_path, CLUSTERS)
    assert group_sheet.draw(made, sheet, 0) == {}  # not finished yet
    end(made)
    found = group_sheet.draw(made, sheet, 0)
    assert sorted(found) == [
        "groups/characters-train-dc-map-seed0.png",
        "groups/characters-train-dc-sheet-seed0.png",
        "groups/characters-train-ft+dc-fc1-sheet-seed0.png",  # its metric made no map
        "groups/characters-train-works-seed0.png",
    ]
    for content in found.values():
        assert Image.open(io.BytesIO(content)).width > 1000
    assert results.pictures(made) == found


@pytest.mark.slow
def test_pictures_that_cannot_be_read_any_more_are_left_out(drawings: Path, tmp_path: Path) -> None:
    shutil.copytree(drawings, tmp_path / "copy")
    made, sheet = finished(tmp_path / "copy", tmp_path / "out", CLUSTERS)
    end(made)
    whole = group_sheet.draw(made, sheet, 0)
    for file in (tmp_path / "copy/ada").iterdir():
        file.write_bytes(b"no picture")
    some = group_sheet.draw(made, sheet, 0)
    assert some.keys() == whole.keys()
    assert some["groups/characters-train-dc-sheet-seed0.png"] != whole["groups/characters-train-dc-sheet-seed0.png"]
    for file in (tmp_path / "copy").rglob("*.png"):
        file.write_bytes(b"no picture")
    none = group_sheet.draw(made, sheet, 0)
    assert sorted(none) == ["groups/characters-train-dc-map-seed0.png", "groups/characters-train-works-seed0.png"]


def test_a_metric_that_is_not_there_is_named(drawings: Path, tmp_path: Path) -> None:
    made, sheet = finished(drawings, tmp_path, CLUSTERS)
    end(made)
    with pytest.raises(SettingError, match=r"metric 'dbscan'.*'score dc' does not have.*its metrics: hdbscan"):
        group_sheet.draw(made, replace(sheet, metric="dbscan"), 0)


def test_without_a_work_that_counts_nothing_is_drawn(drawings: Path, tmp_path: Path) -> None:
    made, sheet = finished(drawings, tmp_path, replace(CLUSTERS, least_samples=1000))
    end(made)
    assert group_sheet.draw(made, sheet, 0) == {}
