"""The loop against the same training written again slowly, on one rank and on two."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from toys import (
    BUILT,
    Here,
    Kept,
    Linear,
    LinearMethod,
    Means,
    Ordered,
    Relabelled,
    Streamed,
    TwoPhases,
    initial,
    step_of,
    task,
    weights,
)

from mvray.data import sampler
from mvray.data.tables import read_table, write_table
from mvray.errors import NonFiniteLoss, SettingError
from mvray.experiment import Generate
from mvray.experiment.inputs import Pictures
from mvray.methods import classifier
from mvray.storage.storage import Storage
from mvray.training.loop import train
from mvray.training.samples import Samples
from mvray.training.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")
Ranks = Callable[..., list[str]]
DONE = ["done", "done"]
PAGE = Pictures(48, 32, 1, flip=True, crop_scale=(0.7, 1.0))


def history(task: Task) -> list[dict[str, float]]:
    return json.loads(Storage(task.folder).read("history.json"))


def metrics(task: Task) -> dict[str, float]:
    return json.loads(Storage(task.folder).read("metrics.json"))


def progress(task: Task) -> dict[str, object]:
    return json.loads(Storage(task.folder).read("progress.json"))


def everything(task: Task) -> dict[str, np.ndarray]:
    """The training samples in the index's order, as they are before augmentation."""
    samples = Samples(task, Here())
    dataset = samples._plain
    rows = [dataset[row, 0] for row in range(len(dataset))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_training_is_what_the_formulas_say(drawings: Path, tmp_path: Path) -> None:
    """Softmax regression by SGD in float64: gradient (p - y) x, momentum, weight decay, warm-up and cosine."""
    lr, momentum, decay, epochs, batch_size, warmup = 0.2, 0.9, 0.01, 3, 8, 0.5
    settings = {"lr": lr, "momentum": momentum, "weight_decay": decay, "epochs": epochs, "warmup_epochs": warmup}
    given = task(step_of(drawings, Linear(), schedule="cosine", batch_size=batch_size, **settings), tmp_path, seed=7)
    train(given, Here())

    data, start = everything(given), initial(given)
    pixels, label = data["image"].reshape(42, -1) / 255, data["label"]
    w, b = (start[f"layer.{name}"].double().numpy() for name in ("weight", "bias"))
    v_w, v_b = np.zeros_like(w), np.zeros_like(b)
    losses: list[list[float]] = []
    for epoch in range(epochs):
        losses.append([])
        for k, rows in enumerate(sampler.order(42, batch_size, seed=7, epoch=epoch)):
            p = softmax(pixels[rows] @ w.T + b)
            losses[-1].append(-np.log(p[np.arange(batch_size), label[rows]]).mean())
            error = (p - np.eye(3)[label[rows]]) / batch_size
            v_w = momentum * v_w + error.T @ pixels[rows] + decay * w
            v_b = momentum * v_b + error.sum(0) + decay * b
            now = epoch + k / 5
            rate = lr * (now / warmup if now < warmup else (1 + math.cos(math.pi * now / epochs)) / 2)
            w, b = w - rate * v_w, b - rate * v_b

    best = metrics(given)["best_epoch"]
    assert [row["train/cross_entropy"] for row in history(given)] == pytest.approx(np.mean(losses, axis=1), rel=1e-5)
    assert [row["lr"] for row in history(given)][-1] == pytest.approx(rate)
    if best == epochs - 1:
        np.testing.assert_allclose(weights(given)["layer.weight"], w, atol=1e-5)
    last = read_last(given)
    np.testing.assert_allclose(last["layer.weight"], w, atol=1e-5)
    np.testing.assert_allclose(last["layer.bias"], b, atol=1e-5)


STREAMED = {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.9, "schedule": "poly", "steps": 7, "epochs": 1}


def test_steps_groups_and_poly_are_what_the_formulas_say(drawings: Path, tmp_path: Path) -> None:
    """7 steps are an epoch of 5 and one of 2; the bias has 20 times the rate and no decay."""
    given = task(step_of(drawings, Streamed(), **STREAMED), tmp_path, seed=7)
    train(given, Here())

    data, start = everything(given), initial(given)
    pixels, label = data["image"].reshape(42, -1) / 255, data["label"]
    w, b = (start[f"layer.{name}"].double().numpy() for name in ("weight", "bias"))
    v_w, v_b = np.zeros_like(w), np.zeros_like(b)
    batches = [rows for epoch in range(2) for rows in sampler.order(42, 8, seed=7, epoch=epoch)]
    for t, rows in enumerate(batches[:7]):
        error = (softmax(pixels[rows] @ w.T + b) - np.eye(3)[label[rows]]) / 8
        v_w = 0.9 * v_w + error.T @ pixels[rows] + 0.01 * w
        v_b = 0.9 * v_b + error.sum(0)
        rate = 0.02 * (1 - t / 7) ** 0.9
        w, b = w - rate * v_w, b - 20 * rate * v_b
    np.testing.assert_allclose(read_last(given)["layer.weight"], w, atol=1e-5)
    np.testing.assert_allclose(read_last(given)["layer.bias"], b, atol=1e-5)
    assert [row["epoch"] for row in history(given)] == [0, 1]


def read_last(task: Task) -> dict[str, torch.Tensor]:
    """The weights after the last epoch."""
    from mvray.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(Storage(task.folder))
    return checkpoints.weights(checkpoints.names()[-1])


@pytest.mark.parametrize(("batch_size", "accumulate"), [(12, 3), (11, 4), (7, 3)])
def test_accumulation_is_the_whole_batch(drawings: Path, tmp_path: Path, batch_size: int, accumulate: int) -> None:
    whole = task(step_of(drawings, Linear(), lr=0.5, batch_size=batch_size), tmp_path / "whole")
    parts = task(step_of(drawings, Linear(), lr=0.5, batch_size=batch_size, accumulate=accumulate), tmp_path / "parts")
    train(whole, Here())
    train(parts, Here())
    same(whole, parts)
    moved = max(float((read_last(whole)[name] - value).abs().max()) for name, value in initial(whole).items())
    assert moved > 0.01


def same(one: Task, other: Task, atol: float = 1e-6) -> None:
    """Equal weights and equal histories, to rounding."""
    first, second = read_last(one), read_last(other)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=atol)
    for row, expected in zip(history(other), history(one), strict=True):
        for key in set(expected) - {"samples_per_s"}:
            assert row[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6), key


def test_clipping_bounds_the_norm_of_the_step(drawings: Path, tmp_path: Path) -> None:
    def moved(place: str, **settings: float) -> float:
        one = step_of(drawings, Linear(), lr=1.0, momentum=0.0, batch_size=42, epochs=1, **settings)
        given = task(one, tmp_path / place)
        train(given, Here())
        before, after = initial(given), read_last(given)
        return math.sqrt(sum(float((after[name] - before[name]).double().square().sum()) for name in before))

    free = moved("free")
    assert free > 0.1
    assert moved("clipped", clip_norm=0.05) == pytest.approx(0.05, rel=1e-4)
    assert moved("loose", clip_norm=100.0) == pytest.approx(free, rel=1e-6)


def test_each_phase_trains_its_own_parameters_alone(drawings: Path, tmp_path: Path) -> None:
    """Written again: one gradient step for each phase in turn, of its own parameters, by autograd.grad."""
    given = task(step_of(drawings, TwoPhases(), lr=0.5, batch_size=42, epochs=3), tmp_path)
    train(given, Here())

    torch.manual_seed(0)
    method, data = given.step.method.build(given.facts), everything(given)
    batch = {"image": torch.from_numpy(data["image"]), "label": torch.from_numpy(data["label"])}
    speed = {name: torch.zeros_like(value) for name, value in method.named_parameters()}
    for _ in range(3):
        for phase in ("left", "right"):
            mine = {name: value for name, value in method.named_parameters() if name.startswith(phase)}
            slopes = torch.autograd.grad(sum(method(batch, phase).values()), list(mine.values()))
            with torch.no_grad():
                for (name, value), slope in zip(mine.items(), slopes, strict=True):
                    speed[name] = 0.5 * speed[name] + slope
                    value -= 0.5 * speed[name]
    for name, value in method.state_dict().items():
        torch.testing.assert_close(read_last(given)[name], value, rtol=1e-5, atol=1e-6)
    assert {"train/left_loss", "train/left_size", "train/right_loss", "train/right_size"} <= set(history(given)[0])


# -- stopping and choosing -----------------------------------------------------------------------


@pytest.mark.parametrize("select_max", [True, False])
def test_patience_ends_training_and_the_best_epoch_is_kept(drawings: Path, tmp_path: Path, select_max: bool) -> None:
    script = tuple(value if select_max else -value for value in (0.2, 0.6, 0.4, 0.6, 0.9))
    method = Linear(script=script)
    given = task(step_of(drawings, method, epochs=5, patience=2, select_max=select_max), tmp_path / "patient")
    found = train(given, Here())
    assert len(history(given)) == 4  # 0.6 again is not better
    assert found["validation/accuracy"] == script[3]
    assert metrics(given)["validation/accuracy"] == script[1]
    assert (metrics(given)["epochs"], metrics(given)["best_epoch"]) == (4, 1)
    assert "epoch" not in metrics(given)
    short = task(step_of(drawings, method, epochs=2, select_max=select_max), tmp_path / "short")
    train(short, Here())
    for name, value in weights(short).items():
        assert torch.equal(value, weights(given)[name])
    assert not torch.equal(read_last(given)["layer.weight"], weights(given)["layer.weight"])


def test_a_first_score_that_is_not_a_number_does_not_stay_the_best(drawings: Path, tmp_path: Path) -> None:
    given = task(step_of(drawings, Linear(script=(math.nan, 0.2, math.nan)), epochs=3), tmp_path)
    train(given, Here())
    assert metrics(given)["best_epoch"] == 1


def test_a_loss_that_is_not_finite_names_its_step(drawings: Path, tmp_path: Path) -> None:
    given = task(step_of(drawings, Linear(nan_at=8)), tmp_path)
    with pytest.raises(NonFiniteLoss, match=r"became NaN or infinite at step 8 \(epoch 1; last: cross_entropy=nan\)"):
        train(given, Here())
    assert Storage(given.folder).exists("checkpoints/000000005/complete.json")
    assert not Storage(given.folder).exists("metrics.json")


def test_a_checkpoint_is_not_written_from_a_loss_that_is_not_finite(drawings: Path, tmp_path: Path) -> None:
    given = task(step_of(drawings, Linear(nan_at=2), checkpoint_steps=3), tmp_path)
    with pytest.raises(NonFiniteLoss, match="at step 2 "):
        train(given, Here())
    assert not Storage(given.folder).exists("checkpoints")


def test_a_batch_that_cannot_be_shared_out_is_refused(drawings: Path, tmp_path: Path) -> None:
    here = Here()
    here.world = 4
    with pytest.raises(SettingError, match=r"a batch of 3 samples cannot be shared by 4 workers x 1 accumulations"):
        train(task(step_of(drawings, Linear(), batch_size=3), tmp_path), here)
    with pytest.raises(SettingError, match=r"by 4 workers x 3 accumulations. Use fewer workers"):
        train(task(step_of(drawings, Linear(), batch_size=8, accumulate=3), tmp_path), here)
    with pytest.raises(SettingError, match="a batch of 42 samples"):
        train(task(step_of(drawings, Linear(), batch_size=1000, accumulate=11), tmp_path), here)


def test_data_smaller_than_a_batch_is_one_batch(drawings: Path, tmp_path: Path) -> None:
    method = Kept(Linear())
    given = task(step_of(drawings, method, batch_size=1000, epochs=2), tmp_path)
    train(given, Here())
    assert BUILT[-1].forwards == 2


# -- what goes in --------------------------------------------------------------------------------


def test_training_begins_with_the_weights_of_start_from(drawings: Path, tmp_path: Path) -> None:
    first = task(step_of(drawings, Linear(), lr=0.5), tmp_path / "first")
    train(first, Here())
    still = task(step_of(drawings, Linear(), lr=1e-30, epochs=1), tmp_path / "next", seed=5)
    still = replace(still, start_weights=f"{first.folder}/weights.safetensors")
    train(still, Here())
    for name, value in weights(still).items():
        assert torch.equal(value, weights(first)[name])
        assert not torch.equal(value, initial(still)[name])


def test_values_of_before_epoch_reach_the_batches(drawings: Path, tmp_path: Path) -> None:
    given = task(step_of(drawings, Kept(Relabelled()), epochs=2), tmp_path)
    train(given, Here())
    method, brightness = BUILT[-1], everything(given)["image"].mean((1, 2, 3), dtype=np.float64)
    rank = brightness.argsort(kind="stable").argsort()
    assert method.asked == [0, 1]
    for epoch in range(2):
        for index, label in method.seen[5 * epoch : 5 * epoch + 5]:
            assert [(rank[row] * 3 // 42 + epoch) % 3 for row in index] == label
    drawn = [row for index, _ in method.seen for row in index]
    assert all(row % 2 == 0 for row in drawn)  # odd rows have weight 0
    assert len(set(drawn)) < len(drawn) == 80


def test_a_needed_column_comes_from_one_step(drawings: Path, tmp_path: Path) -> None:
    step = step_of(drawings, classifier.Config(network="alexnet-small", hide="attention"))
    maps = Generate("maps", Means(), step.data)
    place = Storage(str(tmp_path / "made"))
    made = pa.array([[0.0]], pa.list_(pa.float16(), 1))
    write_table(place, "columns/00000.parquet", pa.table({"key": ["a"], "map": made}))
    for columns, found in (((), "0 of the 0"), ((place.uri, place.uri), "2 of the 2")):
        joined = replace(step, data=step.data.with_columns(*[maps] * len(columns)))
        given = replace(task(joined, tmp_path / "step"), columns=columns)
        with pytest.raises(SettingError, match=f"needs the column 'map' of one Generate step; {found} that"):
            Samples(given, Here())


def test_progress_says_how_far_training_is(drawings: Path, tmp_path: Path) -> None:
    given = task(step_of(drawings, Linear(), epochs=3), tmp_path)
    here = Here()
    train(given, here)
    assert str(progress(given)["text"]).startswith("epoch 3/3, done")
    assert progress(given)["history"] == history(given) == here.reported
    assert [row["epoch"] for row in here.reported] == [0, 1, 2]


def test_what_is_left_counts_what_is_before_and_after_the_batches(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """Each of 3 epochs: 30 s before it, 5 batches of 2 s, 60 s of validation."""

    def lasting(name: str, seconds: float) -> None:
        real = getattr(LinearMethod, name)

        def longer(self: LinearMethod, *given: object) -> object:
            clock[0] += seconds
            return real(self, *given)

        monkeypatch.setattr(LinearMethod, name, longer)

    for name, seconds in (("before_epoch", 30), ("forward", 2), ("score", 60)):
        lasting(name, seconds)
    shown: list[str] = []
    try_write = Storage.try_write

    def kept(self: Storage, path: str, data: bytes) -> bool:
        shown.append(json.loads(data)["text"].rpartition(", ")[0])
        return try_write(self, path, data)

    monkeypatch.setattr(Storage, "try_write", kept)
    given = task(step_of(drawings, Linear(), epochs=3, select="last"), tmp_path)
    train(given, Here(stop_after=13))
    assert shown[:3] == [
        "epoch 1/3, step 0/5",
        "epoch 1/3, step 1/5, 0.5 steps/s, about 88 s left",  # validation is not known yet
        "epoch 1/3, step 2/5, 0.5 steps/s, about 86 s left",
    ]
    assert shown[5:7] == [
        "epoch 2/3, step 0/5, 0.5 steps/s, at most 3 min 20 s left",
        "epoch 2/3, step 1/5, 0.5 steps/s, at most 2 min 48 s left",
    ]
    assert shown[-1] == "epoch 3/3, step 3/5, 0.5 steps/s, at most 64 s left"
    shown.clear()
    train(given, Here())
    assert shown == [
        "epoch 3/3, step 3/5",
        "epoch 3/3, step 4/5, 0.5 steps/s, about 2 s left",
        "epoch 3/3, done, 0.5 steps/s",
    ]


def test_finished_training_is_left_as_it_is(drawings: Path, tmp_path: Path) -> None:
    given = task(step_of(drawings, Kept(Linear())), tmp_path)
    train(given, Here())
    before, forwards = weights(given), BUILT[-1].forwards
    Storage(given.folder).delete("metrics.json")  # killed between the last checkpoint and the result
    train(given, Here())
    assert (forwards, BUILT[-1].forwards) == (10, 0)
    assert metrics(given)["epochs"] == 2
    assert all(torch.equal(value, weights(given)[name]) for name, value in before.items())


# -- two ranks -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        pytest.param(Linear(), {"lr": 0.5, "batch_size": 11, "accumulate": 3, "clip_norm": 0.2}, id="accumulated"),
        pytest.param(TwoPhases(), {"lr": 0.5, "batch_size": 7}, id="two phases"),
        pytest.param(Relabelled(), {"lr": 0.5}, id="new labels"),
        pytest.param(Ordered(), {"lr": 0.3}, id="own order"),
        pytest.param(Streamed(), STREAMED, id="streamed"),
    ],
)
def test_two_ranks_equal_one(drawings, tmp_path, two_ranks: Ranks, method, settings) -> None:
    """What the loop itself shares out; tests/methods/test_contract.py has every method."""
    step = step_of(drawings, method, **settings)
    one, two = task(step, tmp_path / "one"), task(step, tmp_path / "two")
    train(one, Here())
    assert two_ranks(two) == DONE
    same(one, two, atol=1e-5)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_ends_both(drawings: Path, tmp_path: Path, two_ranks: Ranks) -> None:
    batches = [rows.tolist() for rows in sampler.order(42, 8)]
    given = task(step_of(drawings, Linear(nan_row=batches[4][3]), epochs=1), tmp_path)
    said = two_ranks(given)
    assert all(line.startswith("The loss became NaN or infinite at step 5 (epoch 0; ") for line in said)


@pytest.mark.slow
def test_two_ranks_validate_the_weights_that_are_kept(drawings: Path, tmp_path: Path, two_ranks: Ranks) -> None:
    """Batch normalisation's running sums differ between ranks until the epoch's end makes them one."""
    method = classifier.Config(network="alexnet-small")
    given = task(step_of(drawings, method, pictures=PAGE, lr=0.005, epochs=1), tmp_path)
    assert two_ranks(given) == DONE
    kept = method.build(given.facts)
    kept.load_state_dict(weights(given))
    scores = Samples(given, Here()).scores(kept.eval(), "validation")
    assert metrics(given)["validation/loss"] == pytest.approx(scores["loss"], rel=1e-4)


@pytest.mark.slow
def test_one_validation_sample_is_enough_for_two_ranks(drawings: Path, tmp_path: Path, two_ranks: Ranks) -> None:
    step = step_of(drawings, Linear(), epochs=1)
    step = replace(step, data=replace(step.data, source=replace(step.data.source, validation=1 / 60)))
    one, two = task(step, tmp_path / "one"), task(step, tmp_path / "two")
    assert read_table(Storage(one.folder), "index.parquet")["split"].to_pylist().count("validation") == 1
    train(one, Here())
    assert two_ranks(two) == DONE
    same(one, two, atol=1e-5)
