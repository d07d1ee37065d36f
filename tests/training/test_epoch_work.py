"""What a method may do before an epoch, and how it starts from another step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import BUILT, Here, Kept, Linear, Ordered, initial, step_of, task, weights

from mvray.data.tables import read_table
from mvray.errors import SettingError
from mvray.experiment.steps import LAST, Optim, Train
from mvray.storage.storage import Storage
from mvray.training.loop import train
from mvray.training.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")


def history(given: Task) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = json.loads(Storage(given.folder).read("history.json"))
    return [{name: value for name, value in row.items() if name != "samples_per_s"} for row in rows]


def test_the_order_of_an_epoch_may_be_the_methods(drawings: Path, tmp_path: Path) -> None:
    given = task(step_of(drawings, Kept(Ordered()), epochs=2), tmp_path)
    train(given, Here())
    method, rows = BUILT[-1], read_table(Storage(given.folder), "index.parquet").to_pylist()
    assert method.labels.tolist() == [row["label"] for row in rows if row["split"] == "train"]
    assert method.seen[:2] == [list(range(41, 33, -1)), list(range(33, 25, -1))]
    assert method.seen[5] == list(range(40, 32, -1))
    assert [row["epoch/first"] for row in history(given)] == [0, 8]


@pytest.mark.parametrize("steps", [3, 7])
def test_order_and_notes_go_on_after_a_stop(drawings: Path, tmp_path: Path, steps: int) -> None:
    whole, broken = (task(step_of(drawings, Kept(Ordered()), epochs=2), tmp_path / n) for n in ("whole", "broken"))
    train(whole, Here())
    seen = BUILT[-1].seen
    train(broken, Here(stop_after=steps))
    before = BUILT[-1].seen
    train(broken, Here())
    assert before + BUILT[-1].seen == seen
    assert history(broken) == history(whole)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(broken).items())


def test_fresh_parameters_have_no_momentum(drawings: Path, tmp_path: Path) -> None:
    """An epoch of one step that begins anew is a plain step of gradient descent; with momentum it is not."""
    ended = {}
    for name, method, momentum in (("fresh", Ordered(True), 0.9), ("plain", Ordered(), 0.0), ("kept", Ordered(), 0.9)):
        settings = {"batch_size": 42, "epochs": 3, "momentum": momentum, "lr": 0.1, "select": LAST}
        given = task(step_of(drawings, method, **settings), tmp_path / name)
        train(given, Here())
        ended[name] = weights(given)["layer.weight"]
    torch.testing.assert_close(ended["fresh"], ended["plain"], rtol=1e-6, atol=1e-7)
    assert float((ended["kept"] - ended["plain"]).abs().max()) > 1e-3


def test_a_method_takes_what_it_can_use_of_another_steps_weights(drawings: Path, tmp_path: Path) -> None:
    first = task(step_of(drawings, Linear(), lr=0.5), tmp_path / "first")
    train(first, Here())
    still = task(step_of(drawings, Ordered(), lr=1e-30, epochs=1), tmp_path / "next", seed=5)
    train(replace(still, start_weights=f"{first.folder}/weights.safetensors"), Here())
    assert torch.equal(weights(still)["layer.weight"], weights(first)["layer.weight"])
    assert torch.equal(weights(still)["layer.bias"], initial(still)["layer.bias"])


def test_the_last_epoch_may_be_the_one_that_counts(drawings: Path, tmp_path: Path) -> None:
    method = Linear(script=(0.9, 0.5, 0.7))
    ended = {}
    for select in ("accuracy", LAST):
        given = task(step_of(drawings, method, epochs=3, select=select, patience=1), tmp_path / select)
        train(given, Here())
        ended[select] = json.loads(Storage(given.folder).read("metrics.json"))
    assert (ended["accuracy"]["best_epoch"], ended["accuracy"]["epochs"]) == (0, 2)
    assert (ended[LAST]["best_epoch"], ended[LAST]["epochs"]) == (2, 3)


def test_a_score_that_there_is_not_cannot_select(drawings: Path) -> None:
    step = step_of(drawings, Linear())
    with pytest.raises(SettingError, match=r"toy.select is 'last_one'; .* scores accuracy; 'last' takes the last"):
        Train("toy", step.method, step.data, Optim(), select="last_one")
