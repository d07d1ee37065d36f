"""Measure steps: metrics that are told of the seed and of all splits, and what they say of each sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mvray import Job
from mvray.cluster.session import Cluster
from mvray.data.readers.folder import Folder
from mvray.experiment import Metric
from mvray.experiment.serialisation import decoded, encoded, flat
from mvray.experiment.steps import Data, Measure
from mvray.pipeline import measure, outputs, plan
from mvray.pipeline.plan import Planned
from mvray.storage.storage import Storage


@dataclass(frozen=True)
class Told(Metric):
    """Says what it was told."""

    name: str = "told"
    seed: int = 0
    most: int = 0

    def seeded(self, seed: int) -> Told:
        return replace(self, seed=seed)

    def fitted(self, tables: Mapping[str, pa.Table], names: tuple[str, ...]) -> Told:
        return replace(self, most=max(len(table) for table in tables.values()))

    def __call__(self, table: pa.Table, names: tuple[str, ...]) -> dict[str, float | np.ndarray]:
        position = np.arange(2.0 * len(table), dtype=np.float32).reshape(-1, 2)
        rows: dict[str, float | np.ndarray] = {"place": np.arange(len(table)), "position": position}
        if table["split"][0].as_py() == "test":
            del rows["position"]
        return {f"{self.name}_seed": self.seed, f"{self.name}_most": self.most, "names": len(names), **rows}


def planned(drawings: Path, place: Path, metric: Told) -> Planned:
    step = Measure("score", Data(Folder(root=str(drawings))), (metric,))
    return plan.make(Job("job", (step,)), Storage(str(place))).of(step, 0)


def test_a_metric_is_told_of_the_seed_and_of_all_splits(drawings: Path, tmp_path: Path) -> None:
    step = replace(planned(drawings, tmp_path, Told()), seed=3)
    metrics = measure.run(step, Cluster(step.storage, 0))
    expected = {"samples": 12, "told_seed": 3, "told_most": 42, "names": 3}
    assert {name: value for name, value in metrics.items() if name.startswith("test/")} == {
        f"test/{name}": value for name, value in expected.items()
    }
    assert metrics["train/told_most"] == 42


def test_what_it_says_of_each_sample_is_kept_by_key(drawings: Path, tmp_path: Path) -> None:
    step = planned(drawings, tmp_path, Told())
    assert outputs.samples_of(step.folder) is None
    measure.run(step, Cluster(step.storage, 0))
    found = outputs.samples_of(step.folder)
    assert sorted(found["key"].to_pylist()) == sorted(step.rows()["key"].to_pylist())
    by_split = {row["split"]: row for row in found.to_pylist()}
    assert by_split["test"]["place"] == 11
    assert by_split["test"]["position"] is None  # for this split it said none
    assert by_split["train"]["position"] == [82.0, 83.0]


def test_its_settings_are_part_of_the_step(drawings: Path, tmp_path: Path) -> None:
    one, other = (planned(drawings, tmp_path, Told(name)) for name in ("one", "other"))
    assert one.id != other.id
    assert one.id == planned(drawings, tmp_path, Told("one")).id
    assert decoded(encoded(one.step)) == one.step
    assert "Told(name='one'" in flat(one.step)["metrics"]
