"""Generate steps over the frames of videos: every frame once, shards of about as many frames, nothing made twice."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from mvray import Job
from mvray.cluster.session import Cluster
from mvray.data.readers.videos import Videos
from mvray.data.tables import read_table, write_table
from mvray.errors import DataError
from mvray.experiment.contracts import Frame, FrameGenerator, GeneratorConfig
from mvray.experiment.inputs import Clips
from mvray.experiment.steps import Data, Generate, Scale
from mvray.generators import instance_masks
from mvray.generators.segmenters import files
from mvray.nn.method import Method
from mvray.pipeline import generate, plan, shards
from mvray.pipeline.outputs import columns_of
from mvray.pipeline.plan import Planned
from mvray.storage.storage import Storage

FRAMES = 8
"""Of each video (conftest.py)."""


@dataclass(frozen=True)
class Bright(GeneratorConfig):
    every: int = 1
    batch_size: int = 5

    @property
    def frame_step(self) -> int:
        return self.every

    def build(self, method: Method | None, read: object) -> FrameGenerator:
        return Means(self)


class Means(FrameGenerator):
    def __init__(self, config: Bright) -> None:
        self.every, self.batch_size = config.every, config.batch_size

    def __call__(self, frames: Sequence[Frame]) -> pa.Table:
        assert 0 < len(frames) <= self.batch_size
        return pa.table({"mean": [float(frame.pixels.mean()) for frame in frames]})


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 50)


def planned_of(root: Path, place: Path, config: GeneratorConfig, **settings: object) -> Planned:
    data = Data(Videos(root=str(root)), Clips(), max_bad_fraction=0.2, **settings)
    step = Generate("frames", config, data, Scale(loader_workers=2))
    planned = plan.make(Job("job", (step,)), Storage(str(place))).steps[0]
    write_table(planned.folder, "index.parquet", planned.rows())
    return planned


def run(planned: Planned) -> dict[str, float]:
    return generate.run(planned, Cluster(planned.storage, workers=0))


def written(planned: Planned) -> dict[str, bytes]:
    return {entry.path: planned.folder.read(entry.path) for entry in planned.folder.list("columns")}


@pytest.mark.parametrize("every", [1, 3])
def test_every_kth_frame_once_in_order(videos: Path, tmp_path: Path, every: int) -> None:
    planned = planned_of(videos, tmp_path, Bright(every))
    metrics = run(planned)
    looked_at = len(range(0, FRAMES, every))
    assert (metrics["rows"], metrics["bad"]) == (24, 0)
    assert metrics["shards"] == -(-24 * looked_at // 50)
    table = columns_of(planned.folder)
    keys = planned.rows()["key"].to_pylist()
    assert table["key"].to_pylist() == [key for key in keys for _ in range(looked_at)]
    assert table["frame"].to_pylist() == list(range(0, FRAMES, every)) * 24
    with planned.data.source.open(planned.rows()["location"][4].as_py()) as video:
        expected = [image.mean() for _, image in video.every(every)]
    assert table["mean"].to_pylist()[4 * looked_at : 5 * looked_at] == pytest.approx(expected)


def test_missing_shards_alone_are_made(videos: Path, tmp_path: Path) -> None:
    planned = planned_of(videos, tmp_path, Bright())
    run(planned)
    before = written(planned)
    assert len(before) == 4
    planned.folder.delete("columns/00002.parquet")
    kept = planned.folder.local("columns/00001.parquet").stat().st_mtime_ns
    run(planned)
    assert written(planned) == before
    assert planned.folder.local("columns/00001.parquet").stat().st_mtime_ns == kept


def test_shards_have_about_as_many_frames_each_and_whole_videos() -> None:
    counts = np.array([10, 10, 300, 10, 10, 10, 10, 10, 10, 10, 40, 0])
    starts = shards.shards_of(counts, 1)
    assert (starts[0], starts[-1]) == (0, 12)
    assert list(starts) == sorted(set(starts))
    frames = [int(counts[a:b].sum()) for a, b in itertools.pairwise(starts)]
    assert max(frames) <= 300 + 50
    assert shards.shards_of(np.ones(120, int), None) == (0, 40, 80, 120)
    assert shards.shards_of(np.full(10, 100), 10) == (0, 5, 10)


@pytest.fixture
def broken(videos: Path, tmp_path: Path) -> Callable[..., Path]:
    """The videos, some of which end in rubbish that only decoding finds."""

    def make(*names: str) -> Path:
        root = Path(shutil.copytree(videos, tmp_path / "broken"))
        for name in names:
            data = bytearray((root / name).read_bytes())
            for at in range(len(data)):
                if data[at : at + 4] == b"00dc":  # each frame of an AVI file
                    data[at + 8 : at + 24] = bytes(16)
            (root / name).write_bytes(data)
        return root

    return make


def test_a_broken_video_has_no_frames_and_is_named(videos: Path, tmp_path: Path, broken) -> None:
    planned = planned_of(broken("ada/03.avi", "cleo/07.avi"), tmp_path / "runs", Bright())
    metrics = run(planned)
    assert (metrics["rows"], metrics["bad"]) == (22, 2)
    listed: dict[str, str] = {}
    for entry in planned.folder.list("unreadable"):
        listed |= json.loads(planned.folder.read(entry.path))
    assert set(listed) == {"ada/03.avi", "cleo/07.avi"}
    good = planned_of(videos, tmp_path / "good", Bright())
    run(good)
    expected = [row for row in columns_of(good.folder).to_pylist() if row["key"] not in listed]
    assert columns_of(planned.folder).to_pylist() == expected


def test_masks_in_a_file_beside_the_videos_count_by_their_content(videos: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(videos, tmp_path / "data"))
    config = instance_masks.Config(files.Config("masks.json"))
    with pytest.raises(DataError, match=r"Step 'frames' reads the file masks.json below .*, which is not there"):
        planned_of(root, tmp_path / "runs", config)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.avi"))
    rle = {"size": [48, 64], "counts": [48 * 10, 48 * 5, 48 * 49]}
    told = {
        "videos": [
            {
                "id": i,
                "width": 64,
                "height": 48,
                "length": FRAMES,
                "file_names": [f"{n}/{t:05d}" for t in range(FRAMES)],
            }
            for i, n in enumerate(names)
        ],
        "categories": [{"id": 7, "name": "person"}],
        "annotations": [
            {"id": i, "video_id": i, "category_id": 7, "segmentations": [rle] * FRAMES} for i in range(len(names))
        ],
    }
    (root / "masks.json").write_text(json.dumps(told))
    planned = planned_of(root, tmp_path / "runs", config)
    run(planned)
    table = read_table(planned.folder, "columns/00000.parquet")
    assert json.loads(table.schema.field("masks").metadata[b"classes"]) == ["person"]
    (instance,) = table["masks"][3].as_py()
    assert (instance["label"], instance["score"], instance["box"]) == (0, 1.0, [10.0, 0.0, 15.0, 48.0])
    told["annotations"].pop()
    (root / "masks.json").write_text(json.dumps(told))
    assert planned_of(root, tmp_path / "runs", config).id != planned.id


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_videos(videos: Path, tmp_path: Path) -> None:
    """24,000 frames: what the process holds after a third of them and at the end differs by little."""
    film = videos / "ada" / "00.avi"
    root = tmp_path / "many"
    for number in range(24_000 // FRAMES):
        folder = root / f"{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}.avi").hardlink_to(film)
    planned = planned_of(root, tmp_path / "runs", Bright(batch_size=64))
    held: list[int] = []
    work = shards.work_of(planned)
    maker = shards.ShardMaker(work, [])
    count = len(work.shards) - 1
    for shard in range(count):
        maker.make(shard)
        held.append(psutil.Process().memory_info().rss)
    assert work.shards[-1] * FRAMES == 24_000
    growth = (held[-1] - held[count // 3]) / 2**20
    assert growth < 8  # half a kilobyte for each frame more
