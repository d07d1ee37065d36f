"""What a job means here and now: ids, folders, states, and data that will not do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from toys import Linear, step_of

from mvray import Job
from mvray.data.readers.folder import Folder
from mvray.errors import DataError, SettingError
from mvray.experiment.steps import Data, Generate, Measure, Train
from mvray.generators import gradcam, instance_masks
from mvray.generators.segmenters import mask_rcnn
from mvray.pipeline import plan
from mvray.storage.storage import Storage


def job(root: Path, **source: float) -> Job:
    data = Data(Folder(root=str(root), **source))
    first = Train("first", Linear(), data)
    look = Generate("look", gradcam.Config(of=first), data.test)
    return Job("job", (Measure("score", data.test.with_columns(look), ()),), seeds=(0, 1))


@pytest.fixture
def copied(drawings: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawings, tmp_path / "copied"))


def ids(made: plan.Plan) -> dict[tuple[str, int], str]:
    return {(planned.name, planned.seed): planned.id for planned in made.steps}


def test_every_step_is_planned_for_every_seed(drawings: Path, tmp_path: Path) -> None:
    made = plan.make(job(drawings), Storage(str(tmp_path)))
    assert [(p.name, p.seed) for p in made.steps] == [
        (name, seed) for seed in (0, 1) for name in ("first", "look", "score")
    ]
    assert len({planned.id for planned in made.steps}) == 6
    look = made.of(made.job.steps[0].data.columns[0], 1)
    assert (look.name, look.seed, look.inputs["first"].seed) == ("look", 1, 1)
    assert look.path == f"look-{look.id}"
    assert look.folder.uri == f"{tmp_path}/look-{look.id}"
    assert len(list(made.indexes())) == 1
    assert list(tmp_path.iterdir()) == []  # planning changes nothing


def test_what_no_training_comes_before_is_planned_once(drawings: Path, tmp_path: Path) -> None:
    """Masks by given weights or from files do not depend on a seed: they are made once for all."""
    data, file = Data(Folder(root=str(drawings))), tmp_path / "w.pth"
    file.write_bytes(b"weights")
    found = Generate("found", instance_masks.Config(mask_rcnn.Config(weights=str(file))), data)
    train = Train("phase1", Linear(), data.with_columns(found))
    score = Measure("score", data.test.with_columns(Generate("look", gradcam.Config(of=train), data.test)), ())
    for seeds in ((0, 1), (3, 4)):
        made = plan.make(Job("job", (score,), seeds=seeds), Storage(str(tmp_path / "runs")))
        assert sorted((p.name, p.seed) for p in made.steps) == sorted(
            [("found", 0), *((name, seed) for name in ("look", "phase1", "score") for seed in seeds)]
        )
        masks = made.of(found, seeds[1])
        assert masks is made.of(found, seeds[0])
        assert all(made.of(train, seed).inputs["found"] is masks for seed in seeds)
        assert len({made.of(train, seed).id for seed in seeds}) == 2


def test_training_never_sees_the_test_pictures(drawings: Path, tmp_path: Path) -> None:
    first, look, score = plan.make(job(drawings), Storage(str(tmp_path))).steps[:3]
    assert set(first.rows()["split"].to_pylist()) == {"train", "validation"}
    assert set(look.rows()["split"].to_pylist()) == {"test"}
    assert (len(first.rows()), len(look.rows()), len(score.rows())) == (48, 12, 12)
    keys = set(first.rows()["key"].to_pylist())
    assert not keys & set(look.rows()["key"].to_pylist())


def test_a_step_goes_from_missing_to_finished(drawings: Path, tmp_path: Path) -> None:
    made = plan.make(job(drawings), Storage(str(tmp_path)))
    first = made.steps[0]
    assert (first.state, first.finished, first.metrics()) == ("missing", False, {})
    first.folder.write("metrics.json", b'{"accuracy": 0.5}')
    assert (first.state, first.finished, first.metrics()) == ("partial", False, {})
    first.folder.write("step.json", b'{"name": "first"}')
    assert (first.state, first.finished, first.metrics()) == ("finished", True, {"accuracy": 0.5})
    assert first.manifest() == {"name": "first"}
    assert [p.name for p in made.missing()] == ["look", "score", "first", "look", "score"]
    again = plan.make(job(drawings), Storage(str(tmp_path)))
    assert again.steps[0].finished


def test_ids_are_of_the_data_not_of_its_place(drawings: Path, copied: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "runs"))
    before = ids(plan.make(job(drawings), storage))
    made = plan.make(job(copied), storage)
    assert ids(made) == before

    rows = made.steps[0].index.rows.to_pylist()
    tested = next(row["location"] for row in rows if row["split"] == "test")
    with (copied / tested).open("ab") as file:
        file.write(b" ")
    after = ids(plan.make(job(copied), storage))
    assert {name for name in after if after[name] != before[name]} == {
        (n, s) for n in ("look", "score") for s in (0, 1)
    }


def test_splits_that_training_needs(drawings: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there are no validation samples for step 'first' \(42 samples in all\)"):
        plan.make(job(drawings, validation=0), Storage(str(tmp_path)))
    with pytest.raises(DataError, match="there are no train samples for step 'first'"):
        plan.make(job(drawings, train=0), Storage(str(tmp_path)))


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "most", "said"),
    [
        (4, 1, 4, ""),
        (4, 1, 5, "a batch of 4 samples cannot be shared by 5 workers x 1 acc"),
        (9, 3, 3, ""),
        (8, 3, 3, "a batch of 8 samples cannot be shared by 3 workers x 3 acc"),
        (1000, 1, 42, ""),
        (1000, 1, 43, "a batch of 42 samples cannot be shared by 43 workers"),
    ],
)
def test_a_batch_must_do_for_the_most_workers(
    drawings: Path, tmp_path: Path, batch_size: int, accumulate: int, most: int, said: str
) -> None:
    """Before a run starts anything, not hours later when there is room for one more; reports do not care."""
    step = step_of(drawings, Linear(), batch_size=batch_size, accumulate=accumulate, workers=most, min_workers=1)
    (planned,) = plan.make(Job("job", (step,)), Storage(str(tmp_path))).steps
    if said:
        with pytest.raises(SettingError, match=f"Step 'toy': {said}"):
            planned.check()
    else:
        planned.check()


def test_too_much_bad_data_is_refused_before_anything_starts(copied: Path, tmp_path: Path) -> None:
    for number in range(3):
        (copied / "ada" / f"{number:02d}.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"Found 3 of 60 files unreadable \(5.0%\); expected at most 1.0%"):
        plan.make(job(copied), Storage(str(tmp_path / "runs")))
    given = job(copied)
    first = given.steps[0].data.columns[0].generator.of
    patient = replace(first, data=replace(first.data, max_bad_fraction=0.06))
    made = plan.make(Job("job", (patient,)), Storage(str(tmp_path / "runs")))
    assert sorted(record.location for record in made.steps[0].index.bad) == [f"ada/0{i}.png" for i in range(3)]
    assert json.dumps(made.steps[0].index.classes) == '["ada", "ben", "cleo"]'
