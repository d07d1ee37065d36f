"""What a step has cost."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
from toys import Linear, step_of

from mvray import Job
from mvray.errors import DataError
from mvray.experiment.steps import Scale
from mvray.pipeline import cost, plan
from mvray.pipeline.cost import Cost, CostMeter
from mvray.pipeline.watch import StepWatch
from mvray.storage.storage import Storage
from mvray.training import StepProgress


def test_hours_are_what_was_held_while_it_was_held(tmp_path: Path, clock: list[float]) -> None:
    meter = CostMeter(Storage(str(tmp_path)), Scale(price_per_gpu_hour=3.0, price_per_cpu_hour=0.1))
    for seconds, cpus, gpus in ((600.0, 0.0, 0.0), (1800.0, 4.0, 2.0), (900.0, 2.0, 1.0)):
        clock[0] += seconds
        meter.read(cpus, gpus)
    meter.keep()
    found = cost.total(Storage(str(tmp_path)))
    assert found.seconds == pytest.approx(3300)
    assert found.cpu_hours == pytest.approx(0.5 * 4 + 0.25 * 2)
    assert found.gpu_hours == pytest.approx(0.5 * 2 + 0.25 * 1)
    assert found.cost == pytest.approx(1.25 * 3.0 + 2.5 * 0.1)


def test_killed_attempts_are_counted_but_for_their_last_seconds(tmp_path: Path, clock: list[float]) -> None:
    for _ in range(2):
        meter = CostMeter(Storage(str(tmp_path)), Scale())
        for _ in range(10):
            clock[0] += 4.0
            meter.read(1.0, 1.0)
    found = cost.total(Storage(str(tmp_path)))
    assert 2 * (40 - cost.KEEP_EVERY_S - 4) <= found.seconds < 80
    assert found.gpu_hours == pytest.approx(found.seconds / 3600)


def test_a_step_without_workers_costs_time_alone(tmp_path: Path, clock: list[float]) -> None:
    meter = CostMeter(Storage(str(tmp_path)), Scale())
    clock[0] += 5
    meter.read(0.0, 0.0)
    meter.keep()
    assert cost.as_metrics(cost.total(Storage(str(tmp_path)))) == {"spent/seconds": pytest.approx(5)}


def test_a_step_that_waits_for_room_again_holds_nothing(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (planned,) = plan.make(Job("toys", (step_of(drawings, Linear()),)), Storage(str(tmp_path))).steps
    lines, held = Queue[str | None](), list[tuple[float, float]]()
    progress: Any = SimpleNamespace(show=lambda key, text: lines.put(text), say=None)
    log: Any = SimpleNamespace(epochs=lambda *_: None)
    cluster: Any = SimpleNamespace(gpus=lambda: 1)
    monkeypatch.setattr(CostMeter, "read", lambda meter, cpus, gpus: held.append((cpus, gpus)))
    with StepWatch(planned, "", log, progress, cluster, poll_s=0.01):
        assert lines.get() is None
        StepProgress("step 1", cpus=2, gpus=1).write(planned.folder)
        while lines.get() is None:
            pass
        planned.folder.write("progress.json", b"half of")  # passed over
        planned.folder.delete("progress.json")
        while lines.get() is not None:
            pass
    assert [pair for pair, _ in itertools.groupby(held)] == [(0.0, 0.0), (2, 1), (0.0, 0.0)]


def test_the_table_leaves_out_what_is_nothing() -> None:
    rows = [("one (seed 0)", Cost(3600, 2, 0, 0)), ("two (seed 0)", Cost(90, 0.5, 0, 0))]
    assert [line.split("   ") for line in re.sub(" {3,}", "   ", cost.as_text(rows)).splitlines()] == [
        ["step", "wall time", "CPU-hours"],
        ["one (seed 0)", "60 min 00 s", "2.00"],
        ["two (seed 0)", "1 min 30 s", "0.50"],
        ["in all", "61 min 30 s", "2.50"],
    ]
    assert "GPU-hours     cost" in cost.as_text([("one", Cost(10, 0.01, 0.02, 0.05))])


def test_an_account_is_plain_json(tmp_path: Path) -> None:
    CostMeter(Storage(str(tmp_path)), Scale()).keep()
    (file,) = (tmp_path / "spent").iterdir()
    assert set(json.loads(file.read_text())) == {"seconds", "cpu_hours", "gpu_hours", "cost"}


@pytest.mark.parametrize("content", ['{"years": 1}', '{"seconds": "long"}', "null"])
def test_an_account_that_is_damaged_is_named(tmp_path: Path, content: str) -> None:
    Storage(str(tmp_path)).write("spent/1", content.encode())
    with pytest.raises(DataError, match="spent/1 is not as mvray has written it"):
        cost.total(Storage(str(tmp_path)))
