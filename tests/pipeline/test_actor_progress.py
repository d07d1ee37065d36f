"""What a Generate step says of its actors, and what is charged for them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from toys import Means

from mvray.data.readers.folder import Folder
from mvray.experiment.steps import Data, Generate, Scale
from mvray.pipeline import actor_progress
from mvray.pipeline.actor_progress import ActorProgress
from mvray.storage.storage import Storage
from mvray.training.live_progress import GpuUse

STEP = Generate("means", Means(), Data(Folder()), Scale(workers=8, cpus_per_worker=2, gpus_per_actor=0.25))


def test_what_is_held_is_said_as_actors_come_and_go(tmp_path: Path, clock: list[float]) -> None:
    folder, hosts = Storage(str(tmp_path)), list[str]()
    progress = ActorProgress(folder, STEP, 4, 6, lambda: hosts, gpus=True)

    def said(after_s: float = 2 * actor_progress.LOOK_S) -> tuple[str, float, float]:
        clock[0] += after_s
        progress.look()
        found = json.loads(folder.read("progress.json"))
        return (found["text"], STEP.room(8, found["workers"])[0], found["gpus"])

    clock[0] += 600  # a step that waits for room says nothing, and costs nothing
    progress.look()
    assert not folder.exists("progress.json")
    hosts = ["b", "a", "a"]
    assert said() == ("2/6 shards, 3 workers on a, b", 6, 0.75)
    progress.add_shard(100, "a", 90.0)
    progress.add_shard(100, "b", 70.0)
    assert said(0.0) == ("4/6 shards, 0 samples/s, 10 min 02 s left, 3 workers on a, b, GPU 80 %", 6, 0.75)
    hosts = ["b"]
    assert said()[0].endswith("1 worker on b, GPU 70 %")
    assert said()[1:] == (2, 0.25)
    hosts = []
    assert said()[1:] == (0, 0)


def test_nobody_knows_how_busy_a_gpu_is(tmp_path: Path) -> None:
    progress = ActorProgress(Storage(str(tmp_path)), replace(STEP, scale=Scale()), 1, 1, lambda: ["a"], gpus=False)
    progress.look()
    progress.add_shard(10, "a", math.nan)
    found = json.loads((tmp_path / "progress.json").read_text())
    assert found["text"].endswith("1 worker on a")
    assert (found["workers"], found["gpus"]) == (1, 0)


def test_gpus_of_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GpuUse, "_ask", lambda _: None)
    use = GpuUse()
    assert use.text == ""
    use.here = 90.0
    assert use.text == ", GPU 90 %"
    use.everywhere = [90.0, 40.0, None, 50.0]
    assert use.text == ", GPU 60 %"
