"""What a search says, and which settings it tries: without Ray."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mvray import Job
from mvray.api import load_job
from mvray.errors import DataError, SettingError
from mvray.experiment.overrides import replaced
from mvray.experiment.search_space import Choice, Integers, LogUniform, Search, Uniform, set_line
from mvray.pipeline import plan
from mvray.storage.storage import Storage
from mvray.tuning import study
from mvray.tuning.suggest import STARTUP, Known, as_optuna, bred, distribution, drawn, explored, suggest

JOBS = Path(__file__).parents[2] / "jobs"
SPACE = (("a", Uniform(0.1, 0.9)), ("b", LogUniform(1e-4, 1.0)), ("c", Choice(("x", "y"))), ("d", Integers(1, 9)))
SEARCH = Search("step", SPACE, "validation/accuracy")


def tried(search: Search, count: int, value: Any = lambda settings: 0.5) -> list[Known]:
    """``count`` trials one after the other, each trained to the end."""
    known: list[Known] = []
    for number in range(count):
        settings = suggest(search, number, known)
        assert settings is not None
        known.append(Known(number, settings, "finished", value(settings), 4))
    return known


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Choice(("x",)), "two or more different values"),
        (lambda: Choice(("x", "x")), "two or more different values"),
        (lambda: Uniform(1.0, 1.0), "low < high"),
        (lambda: Uniform(0.0, math.inf), "low < high"),
        (lambda: LogUniform(0.0, 1.0), "a low above 0"),
        (lambda: Integers(0, 5, log=True), "with log from 1 on"),
        (lambda: Search("s", (), "m"), "one or more settings"),
        (lambda: Search("s", (("a", Uniform(0, 1)),) * 2, "m"), "each once"),
        (lambda: Search("s", (("a", (1, 2)),), "m"), "expected Choice, Uniform, LogUniform or Integers"),  # type: ignore[arg-type]
        (lambda: replace(SEARCH, sampler="best"), "expected one of tpe, random, grid"),
        (lambda: replace(SEARCH, scheduler="hyperband"), "expected one of asha, pbt, none"),
        (lambda: replace(SEARCH, sampler="grid"), "which no grid can go through"),
        (lambda: replace(SEARCH, trials=0), "search.trials is 0; expected 1 or more"),
        (lambda: replace(SEARCH, grace=0), "search.grace is 0"),
        (lambda: replace(SEARCH, reduction=1), "search.reduction is 1"),
        (lambda: replace(SEARCH, scheduler="pbt", trials=1), "a population of 2 or more"),
    ],
)
def test_what_cannot_be_searched_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_draws_are_readable_and_inside() -> None:
    random = Random(0)
    for _, domain in SPACE:
        for _ in range(200):
            value = domain.draw(random)
            for made in (value, domain.near(value, random)):
                if isinstance(domain, Choice):
                    assert made in domain.options
                else:
                    low, high = domain.ends
                    assert low <= made <= high
                    assert len(f"{made:g}".replace("0.", "").lstrip("0").split("e")[0]) <= 5
    assert {type(Integers(1, 3).draw(random)) for _ in range(5)} == {int}
    assert Integers(3, 9).near(5, Random(1)) in (4, 6)


def test_orders_of_magnitude_are_equally_likely() -> None:
    random = Random(0)
    drawn_ = [LogUniform(1e-4, 1.0).draw(random) for _ in range(4000)]
    counts = Counter(math.floor(math.log10(value)) for value in drawn_)
    assert all(abs(counts[power] - 1000) < 120 for power in (-4, -3, -2, -1))
    whole = Counter(Integers(1, 4, log=True).draw(random) for _ in range(4000))
    assert whole[1] > whole[2] > whole[3] > whole[4] > 0


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_repeated_search_suggests_the_same(sampler: str) -> None:
    search = replace(SEARCH, sampler=sampler)
    whole = tried(search, 12, lambda s: s["a"])
    again = list(whole[:5])  # killed after five, and repeated
    for number in range(5, 12):
        settings = suggest(search, number, again)
        assert settings is not None
        again.append(Known(number, settings, "finished", settings["a"], 4))
    assert [trial.settings for trial in again] == [trial.settings for trial in whole]
    assert [trial.settings for trial in tried(replace(search, seed=1), 3)] != [t.settings for t in whole[:3]]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_is_drawn_at_random_does_not_depend_on_results(sampler: str) -> None:
    search = replace(SEARCH, sampler=sampler)
    known = tried(search, STARTUP)
    late = [Known(trial.number, trial.settings) for trial in known[:2]]  # the others are not even known
    assert [suggest(search, number, late) for number in range(2, STARTUP)] == [t.settings for t in known[2:]]


def test_tpe_does_not_depend_on_the_order_in_which_trials_ended() -> None:
    known = tried(SEARCH, 9, lambda s: s["a"])
    assert suggest(SEARCH, 9, known[::-1]) == suggest(SEARCH, 9, known)


@pytest.mark.parametrize(("maximise", "side"), [(True, 1), (False, -1)])
def test_tpe_finds_better_settings_than_chance(maximise: bool, side: int) -> None:
    space = (("a", Uniform(0.0, 1.0)), ("b", LogUniform(1e-4, 1.0)))

    def value(settings: dict[str, Any]) -> float:
        return -side * (abs(settings["a"] - 0.7) + abs(math.log10(settings["b"]) + 2) / 4)

    best = {}
    for sampler in ("tpe", "random"):
        search = Search("s", space, "m", maximise, sampler=sampler)
        late = [side * trial.value for trial in tried(search, 40, value)[20:]]
        best[sampler] = sum(late) / len(late)
    assert best["tpe"] > best["random"] + 0.1


def test_a_grid_is_gone_through_in_order_and_ends() -> None:
    search = Search("s", (("c", Choice(("x", "y"))), ("d", Integers(1, 3))), "m", sampler="grid")
    assert [tuple(t.settings.values()) for t in tried(search, 6)] == [
        ("x", 1), ("x", 2), ("x", 3), ("y", 1), ("y", 2), ("y", 3),
    ]  # fmt: skip
    assert suggest(search, 6, tried(search, 6)) is None


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_nothing_is_tried_twice_and_a_small_space_ends(sampler: str) -> None:
    search = Search("s", (("c", Choice(("x", "y", None, 3))), ("d", Integers(1, 3))), "m", sampler=sampler)
    known = tried(search, 12)
    assert len({repr(trial.settings) for trial in known}) == 12
    assert suggest(search, 12, known) is None


def test_trials_as_optuna_has_them() -> None:
    from optuna.trial import TrialState

    settings = {"a": 0.5, "b": 0.01, "c": "y", "d": 3}
    made = {
        ended: as_optuna(SEARCH, Known(0, settings, ended, 0.7, 2)) for ended in ("", "finished", "stopped", "failed")
    }
    assert made["failed"] is None
    assert as_optuna(SEARCH, Known(0, settings, "finished", math.nan, 2)) is None
    states = [made[ended].state for ended in ("", "finished", "stopped")]  # type: ignore[union-attr]
    assert states == [TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED]
    assert made["stopped"].intermediate_values == {2: 0.7}  # type: ignore[union-attr]
    assert made["finished"].params == {"a": 0.5, "b": 0.01, "c": 1, "d": 3}  # type: ignore[union-attr]
    assert distribution(LogUniform(0.1, 1.0)).log  # type: ignore[attr-defined]


# -- population-based training -------------------------------------------------------------------

PBT = replace(SEARCH, scheduler="pbt", trials=8)


def test_the_worst_quarter_takes_over_from_the_best() -> None:
    before = [Known(n, drawn(PBT, n), "finished", 0.1 * n, 2) for n in range(8)]
    made = {number: bred(PBT, number, before) for number in range(8, 16)}
    assert {number: parent for number, (parent, _) in made.items() if number >= 10} == {n: n - 8 for n in range(10, 16)}
    assert all(made[n][1] == before[n - 8].settings for n in range(10, 16))
    assert {made[8][0], made[9][0]} <= {6, 7}
    assert made[8][1] not in [trial.settings for trial in before]
    assert made == {number: bred(PBT, number, before) for number in range(8, 16)}


def test_a_member_that_failed_is_replaced() -> None:
    before = [Known(n, drawn(PBT, n), "failed" if n == 7 else "finished", 0.1 * n, 2) for n in range(8)]
    assert bred(PBT, 15, before)[0] in (5, 6)
    assert bred(replace(PBT, maximise=False), 14, before)[0] == 0 or bred(PBT, 14, before)[0] == 6


def test_explored_settings_are_near_or_drawn_anew() -> None:
    settings = {"a": 0.5, "b": 0.01, "c": "x", "d": 5}
    made = [explored(PBT, settings, Random(seed)) for seed in range(200)]
    near = sum(one["a"] in (0.4, 0.6) for one in made)
    assert 120 < near < 180  # three quarters of 200
    assert {one["c"] for one in made} == {"x", "y"}


# -- against a job -------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["arcface", "deepcluster", "gradcam_masking", "object_abn", "object_abn_segmented"])
@pytest.mark.parametrize("tiny", [True, False])
def test_every_search_of_a_job_fits_it(file: str, tiny: bool) -> None:
    search, step = study.check(load_job(JOBS / f"{file}.py", tiny, None))
    assert search.step == step.name
    assert search.grace < step.optim.epochs


def gradcam(**changes: Any) -> Job:
    job = load_job(JOBS / "gradcam_masking.py", True, None)
    assert job.search is not None
    return replace(job, search=replace(job.search, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "nothing"}, "expected a Train step of 'gradcam_masking': phase1, "),
        ({"step": "cams"}, "expected a Train step"),
        ({"space": (("method.probabilty", Uniform(0, 1)),)}, "did you mean 'probability'"),
        ({"space": (("method.probability", Uniform(0, 2)),)}, "method.probability is 2"),
        ({"space": (("data.source.train", Uniform(0.5, 0.6)),)}, "changes what 'masked' reads"),
        ({"metric": "validation/recall"}, "'masked' has validation/accuracy, "),
        ({"metric": "accuracy"}, "search.metric is 'accuracy'"),
    ],
)
def test_a_search_that_does_not_fit_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        study.check(gradcam(**changes))


def test_a_job_without_a_search_says_so() -> None:
    with pytest.raises(SettingError, match="has no search; give it one"):
        study.check(replace(gradcam(), search=None))
    with pytest.raises(SettingError, match="has no search"):
        replaced(replace(gradcam(), search=None), {"search.trials": 3})


def test_generations_need_a_constant_rate() -> None:
    job = replaced(gradcam(scheduler="pbt"), {"masked.optim.schedule": "cosine"})
    with pytest.raises(SettingError, match="expected a constant rate"):
        study.check(job)


def test_a_search_is_set_like_other_settings() -> None:
    job = replaced(gradcam(), {"search.trials": "3", "search.sampler": "random", "search.scheduler": "none"})
    assert job.search is not None
    assert (job.search.trials, job.search.sampler, job.search.scheduler) == (3, "random", "none")
    with pytest.raises(SettingError, match=r"search.trials is 0"):
        replaced(gradcam(), {"search.trials": "0"})


def test_the_best_settings_can_be_typed() -> None:
    import shlex

    line = set_line(
        "masked", {"method.fill": "mean", "method.area": (0.1, 0.4), "method.dropout": None, "method.x": "a b"}
    )
    assert line == (
        "--set masked.method.fill=mean --set masked.method.area=0.1,0.4 --set masked.method.dropout=none "
        "--set 'masked.method.x=a b'"
    )
    odd = "it's $HOME"
    assert shlex.split(set_line("masked", {"method.x": odd})) == ["--set", f"masked.method.x={odd}"]
    settings = {
        "method.probability": 0.3333,
        "method.threshold": 1e-05,
        "method.area": (0.1, 0.4),
        "method.dropout": None,
    }
    words = [word for word in shlex.split(set_line("masked", settings)) if word != "--set"]
    typed = replaced(gradcam(), dict(word.split("=", 1) for word in words))  # type: ignore[arg-type]
    assert typed == replaced(gradcam(), {f"masked.{name}": value for name, value in settings.items()})


def test_a_study_that_is_damaged_is_named(drawings: Path, tmp_path: Path) -> None:
    job = load_job(Path(__file__).parents[1] / "searched.py", False, str(drawings))
    base = plan.make(job, Storage(str(tmp_path))).of(job.steps[0], 0)
    made = study.Study(job, base)
    made.save()
    assert study.Study(job, base).trials == []
    for file, content in (("trials.json", "[{}]"), ("trials.json", "[1]"), ("study.json", "{}"), ("study.json", "")):
        made.folder.write(file, content.encode())
        with pytest.raises(DataError, match=f"{file} is not as mvray has written it"):
            study.Study(job, base)
