"""Pictures of the same validation samples after each epoch: which they are, and that training does not notice."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import Here, Linear, Shown, step_of, task, weights

from mvray import Job
from mvray.errors import DataError
from mvray.pipeline import plan
from mvray.reports import epoch_sheet
from mvray.storage.storage import Storage
from mvray.training import pictures
from mvray.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


def losses(folder: str) -> list[tuple[float, float]]:
    rows = json.loads(Storage(folder).read("history.json"))
    return [(row["train/cross_entropy"], row["validation/accuracy"]) for row in rows]


def test_losses_are_the_same_with_pictures_and_without_and_after_a_stop(drawings: Path, tmp_path: Path) -> None:
    with_dropout = {"dropout": 0.5}
    plain = task(step_of(drawings, Linear(**with_dropout), epochs=3), tmp_path / "plain")
    shown, broken = (
        task(step_of(drawings, Shown(**with_dropout), epochs=3), tmp_path / n) for n in ("shown", "broken")
    )
    train(plain, Here())
    train(shown, Here())
    train(broken, Here(stop_after=7))
    train(broken, Here())
    assert losses(shown.folder) == losses(plain.folder) == losses(broken.folder)
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(shown)[name])
        assert torch.equal(value, weights(broken)[name])
    assert not Storage(plain.folder).exists("pictures")
    for epoch in range(3):
        names, kept = pictures.read(Storage(shown.folder), epoch)
        assert list(kept) == ["picture", "class", "negative"]
        assert len(set(names)) == len(kept["picture"]) == 4
        assert (kept["negative"] == 255 - kept["picture"]).all()
        for name, values in pictures.read(Storage(broken.folder), epoch)[1].items():
            assert np.array_equal(values, kept[name])
    assert pictures.read(Storage(shown.folder), 3) == ([], {})


def test_a_long_training_keeps_few_and_large_ones_get_small(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task(step_of(drawings, Shown(), epochs=4), tmp_path)
    monkeypatch.setattr(pictures, "MOST_EPOCHS", 2)
    monkeypatch.setattr(pictures, "LONGEST_PX", 6)
    train(made, Here())
    kept = {entry.path for entry in Storage(made.folder).list("pictures")}
    assert kept == {f"pictures/{epoch:06d}.npz" for epoch in (0, 2, 3)}
    shapes = {name: values.shape for name, values in pictures.read(Storage(made.folder), 3)[1].items()}
    picture = shapes["picture"]
    assert max(picture[2:]) == 6
    assert shapes["class"] == (4, *picture[2:])


def test_the_sheet_of_an_epoch(drawings: Path, tmp_path: Path) -> None:
    step = step_of(drawings, Shown(), epochs=1)
    train(task(step, tmp_path), Here())
    planned = plan.make(Job("toys", (step,)), Storage(str(tmp_path))).of(step, 0)
    assert epoch_sheet.draw(planned, 1) is None
    sheet = epoch_sheet.draw(planned, 0)
    assert sheet is not None
    assert Image.open(io.BytesIO(sheet)).width >= 1500
    planned.folder.write("pictures/000000.npz", b"PK")
    with pytest.raises(DataError, match=r"pictures/000000.npz"):
        epoch_sheet.draw(planned, 0)


def test_a_method_says_how_many_samples_each_worker_needs(drawings: Path, tmp_path: Path) -> None:
    class Pairs(Linear):
        kind = "toy_pairs"
        least_share = 2  # type: ignore[assignment]

    step = step_of(drawings, Linear(), batch_size=4, workers=3)
    step.check_shared(42, 3)
    step = replace(step, method=Pairs())
    step.check_shared(42, 2)
    with pytest.raises(Exception, match="shared by 3 workers x 1 accumulations, of at least 2 samples each"):
        step.check_shared(42, 3)
