"""The value objects of a job, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import pytest

from mvray import Job
from mvray.data.readers.folder import Folder
from mvray.errors import SettingError
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Data, Generate, Measure, Optim, Scale, Step, Train
from mvray.generators import gradcam
from mvray.methods import classifier

PAGES = Data(Folder(root="pages"))
FIRST = Train("first", classifier.Config(), PAGES)
MAPS = Generate("maps", gradcam.Config(of=FIRST), PAGES.train)
NEXT = Train("next", classifier.Config(hide="attention"), PAGES.with_columns(MAPS), start_from=FIRST)
SCORE = Measure("score", PAGES.test.with_columns(Generate("look", gradcam.Config(of=NEXT), PAGES.test)), ())


def names(job: Job) -> list[str]:
    return [step.name for step in job.walk()]


def test_inputs_come_before_what_reads_them_and_every_step_once() -> None:
    assert names(Job("job", (SCORE,))) == ["first", "maps", "next", "look", "score"]
    assert names(Job("job", (SCORE, FIRST, NEXT))) == ["first", "maps", "next", "look", "score"]
    assert names(Job("job", (NEXT, MAPS))) == ["first", "maps", "next"]
    assert names(Job("job", ())) == []


def test_inputs_are_what_a_step_points_at() -> None:
    assert FIRST.inputs == ()
    assert MAPS.inputs == (FIRST,)
    assert MAPS.of is FIRST
    assert NEXT.inputs == (MAPS, FIRST)
    assert SCORE.inputs == SCORE.data.columns


def test_a_name_belongs_to_one_step() -> None:
    other = replace(FIRST, optim=Optim(lr=0.5))
    with pytest.raises(SettingError, match="Two different steps are named 'first'"):
        Job("job", (FIRST, other))
    with pytest.raises(SettingError, match="Two different steps are named 'maps'"):
        Job("job", (NEXT, replace(FIRST, name="maps")))
    assert names(Job("job", (FIRST, replace(FIRST)))).count("first") >= 1  # equal: the same step, written twice


@pytest.mark.parametrize("seeds", [(), (0, 0), (1, -1)])
def test_seeds_are_different_numbers_from_0_on(seeds: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=r"seeds is .*; expected one or more different numbers from 0 on"):
        Job("job", (FIRST,), seeds=seeds)


def test_data_is_cut_and_joined_without_changing_it() -> None:
    assert PAGES.splits == ()
    assert [data.splits for data in (PAGES.train, PAGES.validation, PAGES.test)] == [
        ("train",),
        ("validation",),
        ("test",),
    ]
    assert PAGES.only("test", "shifted").splits == ("test", "shifted")
    assert PAGES.with_columns(MAPS).with_columns(MAPS).columns == (MAPS, MAPS)
    assert PAGES.columns == ()
    with pytest.raises(FrozenInstanceError):
        PAGES.splits = ("train",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pictures(channels=2), r"channels is 2; expected 1 \(grey\) or 3 \(colour\)"),
        (lambda: Pictures(crop_scale=(0.0, 1.0)), "crop_scale is .*; expected 0 < least <= most <= 1"),
        (lambda: Pictures(crop_scale=(0.9, 0.5)), "crop_scale"),
        (lambda: Pictures(crop_scale=(0.5, 1.5)), "crop_scale"),
        (lambda: Optim(name="lion"), "optim.name is 'lion'; expected one of sgd, adam, adamw"),
        (lambda: Optim(schedule="cyclic"), "optim.schedule is 'cyclic'; expected one of constant, cosine, step, poly"),
        (lambda: Optim(precision="fp8"), "optim.precision is 'fp8'; expected one of auto, float32, bf16"),
        (lambda: Optim(epochs=0), "optim.epochs is 0; expected a value above 0"),
        (lambda: Optim(batch_size=-4), "optim.batch_size is -4; expected a value above 0"),
        (lambda: Optim(lr=0.0), "optim.lr is 0.0; expected a value above 0"),
        (lambda: Optim(lr=math.nan), "optim.lr is nan; expected a value above 0"),
        (lambda: Optim(accumulate=0), "optim.accumulate is 0; expected a value above 0"),
        (lambda: Optim(patience=0), "optim.patience is 0; expected a value above 0"),
        (lambda: Optim(momentum=-0.1), "optim.momentum is -0.1; expected 0 or more"),
        (lambda: Scale(workers=0), "scale.workers is 0; expected a value above 0"),
        (lambda: Scale(checkpoint_steps=0), "scale.checkpoint_steps is 0; expected a value above 0"),
        (lambda: Scale(loader_workers=-1), "scale.loader_workers is -1; expected 0 or more"),
        (lambda: Pictures(height=0), "pictures.height is 0; expected a value above 0"),
        (lambda: Data(Folder(), max_bad_fraction=-1), "data.max_bad_fraction is -1; expected 0 or more"),
        (lambda: Folder(train=math.nan), "source.train is nan; expected a share"),
    ],
)
def test_values_that_cannot_be_are_refused(make, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_a_step_says_what_it_reads() -> None:
    with pytest.raises(TypeError):
        Step("abstract")
