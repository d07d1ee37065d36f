"""Training that was interrupted ends where the uninterrupted one does: to the byte."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from toys import BUILT, TINY, Here, Kept, Killed, Linear, Relabelled, TwoPhases, step_of, task

from mvray.errors import StepFailed
from mvray.experiment.contracts import MethodConfig
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Train
from mvray.methods import classifier
from mvray.storage.local import LocalFiles
from mvray.storage.storage import Storage
from mvray.training.checkpoint import Checkpoints
from mvray.training.environment import Local
from mvray.training.loop import train
from mvray.training.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")
NETWORK = classifier.Config(network="alexnet-small", hide="random", fill="noise")
STEPS, EPOCH, INTERVAL = 15, 5, 3
"""Of a whole run, of an epoch, between checkpoints: those are written at steps 3, 5, 8, 10, 13, 15."""


def step(root: Path, method: MethodConfig, **settings: object) -> Train:
    """A step that uses whatever has a state: momentum, dropout, augmentation, a schedule, several epochs."""
    network = isinstance(getattr(method, "of", method), classifier.Config)
    pictures = Pictures(48, 32, 1, flip=True, crop_scale=(0.6, 1.0)) if network else replace(TINY, flip=True)
    given = {"epochs": 3, "schedule": "cosine", "weight_decay": 0.01, "lr": 0.005 if network else 0.5}
    return step_of(root, method, pictures=pictures, **{**given, **settings})


def result(given: Task) -> tuple[bytes, list[dict[str, float]], dict[str, float]]:
    """The selected weights to the byte, and every number that is not a speed."""
    folder = Storage(given.folder)
    rows, metrics = json.loads(folder.read("history.json")), json.loads(folder.read("metrics.json"))
    for row in (*rows, metrics):
        del row["samples_per_s"]
    return folder.read("weights.safetensors"), rows, metrics


def killed(given: Task, at: int) -> int:
    """Train until the method is killed in its forward number ``at``; returns the steps that were finished."""
    method = given.step.method
    assert isinstance(method, Kept)
    with pytest.raises(Killed):
        train(replace(given, step=replace(given.step, method=replace(method, kill_at=at))), Here())
    writers_end()
    return BUILT[-1].forwards - 1


def writers_end() -> None:
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


@pytest.mark.parametrize("steps", [1, 5, 6, 13])
def test_asked_to_stop_it_goes_on_where_it_was(drawings: Path, tmp_path: Path, steps: int) -> None:
    """Dropout, batch normalisation, crops, hidden rectangles and momentum all go on as if nothing had been."""
    whole, broken = (task(step(drawings, Kept(NETWORK)), tmp_path / name) for name in ("whole", "broken"))
    train(whole, Here())
    train(broken, Here(stop_after=steps))  # it looks after every step; after an epoch's last one, once it was validated
    assert BUILT[-1].forwards == steps
    assert not Storage(broken.folder).exists("metrics.json")
    train(broken, Here())
    assert BUILT[-1].forwards == STEPS - steps
    assert result(broken) == result(whole)


def test_an_epoch_of_one_batch_is_stopped_after_it(drawings: Path, tmp_path: Path) -> None:
    settings = {"batch_size": 1000, "epochs": 4, "select": "last"}
    method = Kept(Linear(dropout=0.3))
    whole, broken = (task(step(drawings, method, **settings), tmp_path / name) for name in ("whole", "broken"))
    train(whole, Here())
    train(broken, Local(lambda: BUILT[-1].forwards == 2))
    assert BUILT[-1].forwards == 2
    assert not Storage(broken.folder).exists("metrics.json")
    checkpoints = Checkpoints(Storage(broken.folder))
    assert checkpoints.names() == ["000000002"]
    assert checkpoints.load("000000002")[1]["state"]["epoch"] == 2
    train(broken, Here())
    assert BUILT[-1].forwards == 2
    assert result(broken) == result(whole)


def test_asked_to_stop_after_the_last_epoch_it_is_finished(drawings: Path, tmp_path: Path) -> None:
    given = task(step(drawings, Kept(Linear()), batch_size=1000, epochs=2), tmp_path)
    train(given, Local(lambda: BUILT[-1].forwards == 2))
    assert result(given)[2]["epochs"] == 2


@pytest.mark.slow
def test_killed_at_any_step_it_repeats_less_than_an_interval(drawings: Path, tmp_path: Path) -> None:
    method = Kept(Linear(dropout=0.3))
    whole = task(step(drawings, method), tmp_path / "whole")
    train(whole, Here())
    for at in range(1, STEPS + 1):
        broken = task(step(drawings, method, checkpoint_steps=INTERVAL), tmp_path / f"killed{at}")
        before = killed(broken, at)
        train(broken, Here())
        assert result(broken) == result(whole), f"killed in step {at}"
        assert before == at - 1
        assert 0 <= before + BUILT[-1].forwards - STEPS < INTERVAL, f"killed in step {at}"


def test_killed_twice(drawings: Path, tmp_path: Path) -> None:
    method = Kept(Linear(dropout=0.3))
    whole, broken = (task(step(drawings, method, checkpoint_steps=4), tmp_path / name) for name in ("whole", "broken"))
    train(whole, Here())
    killed(broken, 8)  # checkpoints at 4, 5 (epoch 1), 9, 10, ...
    killed(broken, 6)
    train(broken, Here())
    assert BUILT[-1].forwards == 5
    assert result(broken) == result(whole)


@pytest.mark.slow
def test_killed_between_any_two_files(drawings, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is written whole or not at all, so these are all the states that a kill can leave behind."""
    write, left = LocalFiles._write, [0]

    def dying(self: LocalFiles, path: str, data: bytes) -> None:
        if path != "progress.json":
            left[0] -= 1
            if left[0] == 0:
                raise Killed
        write(self, path, data)

    method = Linear(dropout=0.3)
    whole = task(step(drawings, method), tmp_path / "whole")
    train(whole, Here())
    files = 0
    while True:
        broken = task(step(drawings, method, checkpoint_steps=INTERVAL), tmp_path / f"file{files}")
        left[0] = files + 1
        with monkeypatch.context() as patched:
            patched.setattr(LocalFiles, "_write", dying)
            try:
                train(broken, Here())
                break
            except Killed:
                writers_end()
        assert not Storage(broken.folder).exists("metrics.json")
        train(broken, Here())
        assert result(broken) == result(whole), f"killed before file {files}"
        files += 1
    assert files == 6 * 3 + 3  # six checkpoints; weights, history, metrics


def test_it_goes_on_from_the_checkpoint_before_a_damaged_one(drawings: Path, tmp_path: Path) -> None:
    method = Kept(Linear(dropout=0.3))
    settings = {"checkpoint_steps": INTERVAL, "select": "accuracy"}
    whole, broken = (task(step(drawings, method, **settings), tmp_path / name) for name in ("whole", "broken"))
    train(whole, Here())
    killed(broken, 9)
    folder = Storage(broken.folder)
    assert [entry.path for entry in folder.list("checkpoints")] == [f"checkpoints/{n:09d}" for n in (5, 8)]
    folder.write("checkpoints/000000008/model.safetensors", b"damaged")
    train(broken, Here())
    assert BUILT[-1].forwards == STEPS - EPOCH
    assert result(broken) == result(whole)
    said = json.loads(folder.read("progress.json"))["trouble"]
    assert said.startswith(f"{broken.folder}/checkpoints/000000008/model.safetensors is damaged (")
    assert said.endswith("). Going on from checkpoint 000000005.")


def test_killed_after_an_epoch_was_reported(drawings: Path, tmp_path: Path) -> None:
    class Dying(Here):
        def report(self, task: Task, metrics: Mapping[str, float]) -> bool:
            if metrics["epoch"] == self.dies_after:
                raise Killed
            return True

    whole, broken = (task(step(drawings, Kept(Linear(dropout=0.3))), tmp_path / name) for name in ("whole", "broken"))
    train(whole, Here())
    for epoch in range(3):
        here = Dying()
        here.dies_after = epoch
        with pytest.raises(Killed):
            train(broken, here)
        writers_end()
    train(broken, Here())
    assert BUILT[-1].forwards == 0  # each epoch had been kept
    assert result(broken) == result(whole)


def test_patience_is_remembered(drawings: Path, tmp_path: Path) -> None:
    script = (0.5, 0.4, 0.3, 0.2, 0.1)
    broken = task(step(drawings, Kept(Linear(script=script)), epochs=5, patience=2), tmp_path)
    killed(broken, EPOCH + 3)
    broken = replace(broken, step=replace(broken.step, method=Linear(script=script[1:])))
    train(broken, Here())
    assert result(broken)[2]["epochs"] == 3
    assert result(broken)[2]["best_epoch"] == 0


def test_every_phase_has_its_optimiser_again(drawings: Path, tmp_path: Path) -> None:
    whole, broken = (task(step(drawings, TwoPhases(), name="adam"), tmp_path / name) for name in ("whole", "broken"))
    train(whole, Here())
    train(broken, Here(stop_after=7))
    train(broken, Here())
    assert result(broken) == result(whole)


def test_values_of_before_epoch_are_kept(drawings: Path, tmp_path: Path) -> None:
    """Labels drawn at random for the running epoch are not drawn again in the middle of it."""
    method = Kept(Relabelled(random=True))
    whole, broken = (task(step(drawings, method, lr=0.1), tmp_path / name) for name in ("whole", "broken"))
    train(whole, Here())
    seen = BUILT[-1].seen
    train(broken, Here(stop_after=6))
    assert BUILT[-1].asked == [0, 1]
    train(broken, Here())
    assert BUILT[-1].asked == [2]
    assert BUILT[-1].seen == seen[6:]
    assert result(broken) == result(whole)


def test_whoever_lost_the_folder_writes_no_more(drawings: Path, tmp_path: Path) -> None:
    given = task(step(drawings, Linear()), tmp_path)
    Storage(given.folder).write("attempt", b"another")
    with pytest.raises(StepFailed, match="Another mvray run has taken over"):
        train(given, Here())
    assert not Storage(given.folder).exists("checkpoints")
    assert not Storage(given.folder).exists("weights.safetensors")


# -- two ranks -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_ranks_go_on_where_they_were(drawings, tmp_path, two_ranks: Callable[..., list[str]]) -> None:
    """Each rank has its own dropout, in the middle of an epoch too."""
    given = step(drawings, NETWORK, checkpoint_steps=2)
    whole, broken = task(given, tmp_path / "whole"), task(given, tmp_path / "broken")
    assert two_ranks(whole) == ["done", "done"]
    assert two_ranks(broken, stop_at=7) == ["done", "done"]
    assert not Storage(broken.folder).exists("metrics.json")
    assert two_ranks(broken) == ["done", "done"]
    assert result(broken) == result(whole)


@pytest.mark.slow
def test_two_ranks_stop_together_after_an_epoch_of_one_batch(drawings, tmp_path, two_ranks) -> None:
    given = step(drawings, Linear(dropout=0.3), batch_size=1000, epochs=4, select="last")
    whole, broken = task(given, tmp_path / "whole"), task(given, tmp_path / "broken")
    assert two_ranks(whole) == ["done", "done"]
    assert two_ranks(broken, stop_at=2) == ["done", "done"]
    assert not Storage(broken.folder).exists("metrics.json")
    assert Checkpoints(Storage(broken.folder)).names() == ["000000002"]
    assert two_ranks(broken) == ["done", "done"]
    assert result(broken) == result(whole)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_another_number_of_ranks_goes_on(drawings, tmp_path, two_ranks: Callable[..., list[str]], first: int) -> None:
    given = step(drawings, Linear(), checkpoint_steps=2, batch_size=7)
    whole, broken = task(given, tmp_path / "whole"), task(given, tmp_path / "broken")
    train(whole, Here())
    if first == 1:
        train(broken, Here(stop_after=7))
        assert two_ranks(broken) == ["done", "done"]
    else:
        assert two_ranks(broken, stop_at=7) == ["done", "done"]
        train(broken, Here())
    for row, expected in zip(result(broken)[1], result(whole)[1], strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
