"""Generate steps in this process: what is made, shard by shard, and that nothing is made twice."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from mvray import Job
from mvray.cluster.session import Cluster
from mvray.data.pictures import PictureDataset
from mvray.data.readers.folder import Folder
from mvray.data.tables import read_table, write_table
from mvray.errors import DataError
from mvray.experiment.contracts import Batch, Generator, GeneratorConfig
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Data, Generate, Scale, Train
from mvray.generators import gradcam
from mvray.methods import classifier
from mvray.nn import cam
from mvray.nn.method import Method
from mvray.pipeline import generate, plan, shards
from mvray.pipeline.outputs import columns_of
from mvray.pipeline.plan import Planned
from mvray.storage.storage import Storage
from mvray.training import load_method
from mvray.training.checkpoint import weights_to_bytes

SIZE = Pictures(48, 32, 1)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 25)


def planned_of(trained_on: Path, looked_at: Path, place: Path, **settings: object) -> Planned:
    """A Grad-CAM step, ready to run, that looks through a network with random weights."""
    first = Train("first", classifier.Config(network="alexnet-small"), Data(Folder(root=str(trained_on)), SIZE))
    config = gradcam.Config(of=first, batch_size=7, **settings)
    data = Data(Folder(root=str(looked_at)), SIZE, max_bad_fraction=0.5)
    look = Generate("look", config, data, Scale(loader_workers=2))
    made = plan.make(Job("job", (look,)), Storage(str(place)))
    torch.manual_seed(0)
    method = first.method.build(made.of(first, 0).facts)
    made.of(first, 0).folder.write("weights.safetensors", weights_to_bytes(method.state_dict()))
    planned = made.of(look, 0)
    write_table(planned.folder, "index.parquet", planned.rows())
    return planned


def run(planned: Planned) -> dict[str, float]:
    return generate.run(planned, Cluster(planned.storage, workers=0))


def written(planned: Planned) -> dict[str, bytes]:
    return {entry.path: planned.folder.read(entry.path) for entry in planned.folder.list("columns")}


def test_every_sample_once_in_order(drawings: Path, tmp_path: Path) -> None:
    planned = planned_of(drawings, drawings, tmp_path)
    metrics = run(planned)
    assert metrics.pop("samples_per_s") > 0
    assert metrics == {"rows": 60, "bad": 0, "shards": 3}
    names = [f"columns/0000{i}.parquet" for i in range(3)]
    assert list(written(planned)) == names
    assert [len(read_table(planned.folder, name)) for name in names] == [20, 20, 20]  # alike, none almost empty
    table = columns_of(planned.folder)
    assert table["key"].to_pylist() == planned.rows()["key"].to_pylist()
    assert table.schema.field("map").metadata[b"shape"] == b"5,3"
    assert json.loads(planned.folder.read("progress.json"))["text"].startswith("3/3 shards, ")


def test_columns_are_what_the_network_says_of_that_sample(drawings: Path, tmp_path: Path) -> None:
    planned = planned_of(drawings, drawings, tmp_path)
    run(planned)
    table, rows = columns_of(planned.folder), planned.rows()
    of = planned.inputs["first"]
    method = load_method(of.step, of.facts, of.folder)
    dataset = PictureDataset(planned.data.source, rows, SIZE)
    for row in (0, 19, 20, 41, 59):
        image = torch.from_numpy(dataset[row, 0]["image"].copy())[None].to(next(method.parameters()).device)
        maps, scores = cam.grad_cam(method.class_scores, method, method.attention_layer, image)
        expected = cam.normalise(maps)[0].cpu().numpy().ravel()
        np.testing.assert_allclose(np.array(table["map"][row].as_py()), expected, atol=2e-3)
        assert table["peak"][row].as_py() == pytest.approx(float(maps.detach().max()), rel=1e-3)
        assert table["predicted"][row].as_py() == int(scores.argmax())
        np.testing.assert_allclose(table["scores"][row].as_py(), scores.detach().softmax(1)[0].cpu().numpy(), atol=2e-3)
    assert len({tuple(values) for values in table["scores"].to_pylist()}) > 30


def test_only_the_shard_that_is_missing_is_made(drawings: Path, tmp_path: Path) -> None:
    planned = planned_of(drawings, drawings, tmp_path)
    run(planned)
    before = written(planned)
    kept = [planned.folder.local(f"columns/0000{i}.parquet") for i in (0, 2)]
    times = [path.stat().st_mtime_ns for path in kept]
    planned.folder.delete("columns/00001.parquet")
    planned.folder.local("columns/.00001.parquet.0123.partial").write_bytes(before["columns/00001.parquet"][:500])
    metrics = run(planned)
    assert (metrics["rows"], metrics["shards"]) == (60, 3)
    assert written(planned) == before  # to the byte
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_a_shard_that_an_actor_wrote_before_it_died_is_kept(drawings: Path, tmp_path: Path) -> None:
    """Ray Data hears of a shard after it is written, and asks another actor for it if the first dies between."""
    planned = planned_of(drawings, drawings, tmp_path)
    run(planned)
    before = planned.folder.local("columns/00001.parquet").stat().st_mtime_ns
    planned.inputs["first"].folder.delete("weights.safetensors")  # would be needed to make it again
    assert shards.ShardMaker(shards.work_of(planned), [0, 1, 2]).make(1) == (20, 0)
    assert planned.folder.local("columns/00001.parquet").stat().st_mtime_ns == before


def test_nothing_is_made_when_all_is_there(drawings: Path, tmp_path: Path) -> None:
    planned = planned_of(drawings, drawings, tmp_path)
    run(planned)
    planned.inputs["first"].folder.delete("weights.safetensors")  # would be needed
    assert run(planned) == {"rows": 60, "bad": 0, "shards": 3}


@pytest.fixture
def broken(drawings: Path, tmp_path: Path) -> Callable[..., Path]:
    """The drawings with some that look whole from outside, and can be found out by decoding alone."""

    def make(*names: str) -> Path:
        root = Path(shutil.copytree(drawings, tmp_path / "broken"))
        for name in names:
            data = bytearray((root / name).read_bytes())
            start = data.index(b"IDAT") + 6
            data[start : start + 20] = bytes(20)
            (root / name).write_bytes(data)
        return root

    return make


def test_an_unreadable_picture_is_left_out_and_counted(drawings: Path, tmp_path: Path, broken) -> None:
    root = broken("ada/03.png", "ben/00.png", "cleo/19.png")
    good, bad = planned_of(drawings, drawings, tmp_path / "good"), planned_of(drawings, root, tmp_path / "bad")
    run(good)
    metrics = run(bad)
    assert (metrics["rows"], metrics["bad"], metrics["shards"]) == (57, 3, 3)
    listed: dict[str, str] = {}
    for entry in bad.folder.list("unreadable"):
        listed |= json.loads(bad.folder.read(entry.path))
    assert set(listed) == {"ada/03.png", "ben/00.png", "cleo/19.png"}
    assert all("truncated or broken" in reason for reason in listed.values())
    expected = {row["key"]: row for row in columns_of(good.folder).to_pylist()}
    rows = columns_of(bad.folder).to_pylist()
    assert set(expected) - {row["key"] for row in rows} == set(listed)
    for row in rows:
        assert row["scores"] == pytest.approx(expected[row["key"]]["scores"], abs=2e-3)
        assert row["map"] == pytest.approx(expected[row["key"]]["map"], abs=5e-3)


def test_a_shard_without_a_readable_picture_has_no_file(drawings: Path, tmp_path: Path, broken) -> None:
    planned = planned_of(drawings, broken(*(f"ada/{i:02d}.png" for i in range(20))), tmp_path / "runs")
    metrics = run(planned)
    assert (metrics["rows"], metrics["bad"], metrics["shards"]) == (40, 20, 3)
    assert list(written(planned)) == ["columns/00001.parquet", "columns/00002.parquet"]


def test_too_many_unreadable_pictures_end_the_step_until_they_are_mended(
    drawings: Path, tmp_path: Path, broken
) -> None:
    """A folder that could not be read for a while must not leave its gaps for good."""
    root = broken(*(f"ada/{i:02d}.png" for i in range(20)), *(f"ben/{i:02d}.png" for i in range(15)))
    planned = planned_of(drawings, root, tmp_path / "runs")
    message = r"Step 'look': 35 of 60 samples cannot be read, first ada/00.png: truncated .* At most 50.0% may be bad"
    with pytest.raises(DataError, match=message):
        run(planned)
    assert list(written(planned)) == ["columns/00002.parquet"]
    for path in sorted(drawings.rglob("*.png")):
        shutil.copy(path, root / path.relative_to(drawings))
    metrics = run(planned)
    assert (metrics["rows"], metrics["bad"]) == (60, 0)
    assert not planned.folder.list("unreadable")


def test_other_pictures_than_it_was_trained_on(drawings: Path, tmp_path: Path) -> None:
    """The network keeps the classes that it was trained for."""
    other = tmp_path / "other"
    shutil.copytree(drawings / "cleo", other / "someone")
    planned = planned_of(drawings, other, tmp_path / "runs")
    assert planned.index.classes == ("someone",)
    assert run(planned)["rows"] == 20
    assert {len(scores) for scores in columns_of(planned.folder)["scores"].to_pylist()} == {3}


@dataclass(frozen=True)
class Brightness(GeneratorConfig):
    """A generator that looks through nothing."""

    def build(self, method: Method | None, read: object) -> Generator:
        assert method is None
        return Means()


class Means(Generator):
    def __call__(self, batch: Batch) -> pa.Table:
        assert batch["image"].dtype == torch.uint8
        assert len(batch["image"]) <= 64
        return pa.table({"mean": batch["image"].float().mean((1, 2, 3)).numpy(), "label": batch["label"].numpy()})


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert not {thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("decode")}


@pytest.mark.usefixtures("no_threads_left")
@pytest.mark.parametrize("loader_workers", [0, 2])
def test_a_generator_without_a_method(drawings: Path, tmp_path: Path, loader_workers: int) -> None:
    data = Data(Folder(root=str(drawings)), replace(SIZE, height=12, width=8)).test
    step = Generate("bright", Brightness(), data, Scale(loader_workers=loader_workers))
    planned = plan.make(Job("job", (step,)), Storage(str(tmp_path))).steps[0]
    write_table(planned.folder, "index.parquet", planned.rows())
    assert run(planned)["rows"] == 12
    table = columns_of(planned.folder)
    assert table["label"].to_pylist() == planned.rows()["label"].to_pylist()
    dataset = PictureDataset(data.source, planned.rows(), data.pictures)
    assert table["mean"].to_pylist() == pytest.approx([float(dataset[i, 0]["image"].mean()) for i in range(12)])
