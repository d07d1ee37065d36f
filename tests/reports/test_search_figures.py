"""A search's pictures and its part of the page: out of trials that are written down here."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image

from mvray.experiment.search_space import Choice, LogUniform, Search, Uniform
from mvray.reports import page as pages
from mvray.reports import search_table
from mvray.reports.search_figures import comparable, pictures

pytestmark = pytest.mark.slow  # pictures, half a second each

SPACE = (("a", Uniform(0.0, 1.0)), ("b", LogUniform(1e-4, 1.0)), ("c", Choice(("x", "y"))))
SEARCH = Search("step", SPACE, "validation/accuracy")


def found(values: list[list[float | None]], states: str = "", **more: Any) -> dict[str, Any]:
    """What `Study.collected` gives for trials with these values by epoch; state f(inished), s(topped) or F(ailed)."""
    draw = np.random.default_rng(0)
    names = {"f": "finished", "s": "stopped", "F": "failed"}
    trials = []
    for number, line in enumerate(values):
        settings = {"a": draw.random(), "b": 10 ** -(4 * draw.random()), "c": "xy"[number % 2]}
        value = max((v for v in line if v is not None), default=None)
        known = {"number": number, "settings": settings, "values": list(line), "value": value, "parent": None}
        state = names[(states or "f" * len(values))[number]]
        trials.append({**known, "state": state, "seconds": 2.0, "path": f"step-{number}", "reason": "<no>"})
    measured = [trial for trial in trials if trial["value"] is not None]
    best = max(measured, key=lambda trial: trial["value"])["number"] if measured else None
    about = {"step": "step", "metric": "validation/accuracy", "maximise": True, "scheduler": "asha", "id": "1"}
    space = {name: str(domain) for name, domain in SPACE}
    return {**about, "space": space, "trials": trials, "best": best, "set": "--set step.a=0.5", **more}


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def importances(search: Search, collected: dict[str, Any]) -> tuple[dict[str, float], int]:
    study, count = comparable(search, collected["trials"])
    if study is None:
        return {}, count
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=search.seed)
    return optuna.importance.get_param_importances(study, evaluator=evaluator), count


@pytest.mark.parametrize(
    "values",
    [
        [[0.5]],
        [[0.1, 0.4], [0.3], [None, 0.2], [], [0.2, 0.3], [0.5, 0.1], [0.7, 0.2]],
    ],
)
def test_every_search_has_its_pictures(values: list[list[float | None]]) -> None:
    states = "".join("F" if not line else "s" if len(line) == 1 else "f" for line in values)
    drawn = pictures(SEARCH, found(values, states))
    assert {name.partition("/")[0] for name in drawn} == {"search"}
    assert len(drawn) == 4
    for content in drawn.values():
        shown = pixels(content)
        assert min(shown.shape[:2]) > 300
        assert (shown < 250).any(2).mean() > 0.001, "nothing is drawn"


def test_without_a_value_there_is_nothing_to_show() -> None:
    assert pictures(SEARCH, found([[], []], "FF")) == {}


def test_the_setting_that_matters_explains_the_spread() -> None:
    made = found([[0.0]] * 40)
    for trial in made["trials"]:
        trial["values"] = [trial["settings"]["a"]]
        trial["value"] = trial["values"][0]
    shares, count = importances(SEARCH, made)
    assert count == 40
    assert next(iter(shares)) == "a"
    assert shares["a"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)


def test_only_results_of_equally_many_epochs_are_compared() -> None:
    """Thirty trials were stopped after one epoch, where b decides; what the rest reach later is another thing."""
    made = found([[0.0]] * 30 + [[0.0, 5.0 + n] for n in range(10)], "s" * 30 + "f" * 10)
    for trial in made["trials"]:
        trial["values"][0] = float(np.log(trial["settings"]["b"]))
    shares, count = importances(SEARCH, made)
    assert count == 40
    assert max(shares, key=lambda name: shares[name]) == "b"
    assert importances(SEARCH, found([[0.1], [0.2]])) == ({}, 2)  # too few
    assert importances(SEARCH, found([[0.5]] * 20)) == ({}, 20)  # all alike


def test_only_members_of_one_generation_are_compared() -> None:
    """Generations of a population are trained longer and longer: in this one b decides, and a over all of them."""
    population = replace(SEARCH, scheduler="pbt", trials=20)
    made = found([[0.0]] * 63)  # the last generation has but three
    for trial in made["trials"]:
        generation = trial["number"] // 20
        trial["settings"]["a"] = (generation + trial["settings"]["a"]) / 4
        trial["values"] = [100.0 * generation + float(np.log(trial["settings"]["b"]))]
        trial["value"] = trial["values"][0]
    shares, count = importances(population, made)
    assert count == 20
    assert max(shares, key=lambda name: shares[name]) == "b"
    assert importances(SEARCH, made)[1] == 63
    assert importances(replace(population, trials=4), made) == ({}, 4)  # too few members to tell


def test_the_page_shows_trials_best_first_and_their_pictures() -> None:
    made = found([[0.5], [0.9], [], [0.7]], "sfFf")
    assert [trial["number"] for trial in search_table.ranked(made)] == [1, 3, 0, 2]
    page = pages.as_html(
        {"job": "toys", "steps": [], "table": {"rows": []}, "search": made}, None, pictures(SEARCH, made)
    )
    assert page.count('src="data:image/png;base64,') == 4
    assert "--set step.a=0.5" in page
    assert "failed: &lt;no&gt;" in page
    assert page.index("step-1") < page.index("step-3") < page.index("step-0") < page.index("step-2")
    text = search_table.as_text(made)
    assert text.startswith("Search of step: 4 trials (2 to the end, 1 stopped early, 1 failed), 8 s of training.")
    assert text.endswith("Best: trial 1, validation/accuracy 0.9000, with --set step.a=0.5")
