"""Pictures of a search, as PNG: Optuna's own plots over the trials of a study."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mvray.experiment import Choice, Search, as_text
from mvray.reports.figures import DPI, WIDTH_PX, empty_figure, figure_png, plain_text
from mvray.tuning import Known, as_optuna

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    Trial = Mapping[str, Any]
    """A trial as `Study.collected` has it."""

FEW = 5
"""The least number of comparable trials for importances."""


def pictures(search: Search, collected: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures of the trials in `Study.collected`, by artifact path; none where no trial has a value.

    Optuna draws by pyplot, whose state is the whole process's: call this from one thread at a time.
    """
    from optuna.visualization import matplotlib as plots

    trials: list[Trial] = collected["trials"]
    if not any(trial["value"] is not None for trial in trials):
        return {}
    step, metric = collected["step"], collected["metric"]
    label = plain_text(metric)
    study = as_study(search, trials)
    return {
        "search/parallel-coordinates.png": _plot(
            f"{step}: settings and {metric}", lambda: plots.plot_parallel_coordinate(study, target_name=label)
        ),
        "search/importance.png": _importance(search, trials, f"{step}: what {metric} depends on"),
        "search/learning-curves.png": _plot(
            f"{step}: trials", lambda: plots.plot_intermediate_values(study), ("epoch", label)
        ),
        "search/best-so-far.png": _plot(
            f"{step}: the best so far", lambda: plots.plot_optimization_history(study, target_name=label)
        ),
    }


def as_study(search: Search, trials: Sequence[Trial]) -> Study:
    """The trials as an Optuna study, under their own numbers: those with a value complete, the others failed.

    A trial that was stopped counts with the value that it reached. An option has its text as its value.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if search.maximise else "minimize")
    by_number = {trial["number"]: trial for trial in trials}
    for number in range(max(by_number) + 1):
        trial = by_number.get(number)
        frozen = None if trial is None else _optuna_trial(search, trial, _epochs_before(by_number, trial))
        study.add_trial(frozen or optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    return study


def _optuna_trial(search: Search, trial: Trial, epochs_before: int) -> FrozenTrial | None:
    import optuna

    if trial["value"] is None:
        return None
    frozen = as_optuna(
        search, Known(trial["number"], trial["settings"], "finished", trial["value"], len(trial["values"]))
    )
    if frozen is None:
        return None
    params, distributions = dict(frozen.params), dict(frozen.distributions)
    for name, domain in search.space:
        if isinstance(domain, Choice):
            options = tuple(plain_text(as_text(option)) for option in domain.options)
            distributions[name] = optuna.distributions.CategoricalDistribution(options)
            params[name] = options[frozen.params[name]]
    by_epoch = {epochs_before + n: value for n, value in enumerate(trial["values"], start=1) if value is not None}
    return optuna.trial.create_trial(
        value=trial["value"], params=params, distributions=distributions, intermediate_values=by_epoch
    )


def _epochs_before(trials: Mapping[int, Trial], trial: Trial) -> int:
    """Epochs that the trials were trained from which this one goes on (population-based training)."""
    parent = trials.get(trial["parent"]) if trial["parent"] is not None else None
    return 0 if parent is None else _epochs_before(trials, parent) + len(parent["values"])


def _plot(title: str, plot: Callable[[], Any], labels: tuple[str, str] | None = None) -> bytes:
    """What Optuna plots, under our title and axis labels and in our size; pyplot's style is afterwards as it was."""
    import matplotlib
    import optuna

    if matplotlib.get_backend(auto_select=False) is None:
        matplotlib.use("agg")  # a notebook keeps its own; a command opens no window
    from matplotlib import pyplot

    with pyplot.style.context("default"), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Attempting to set identical low and high [xy]lims")  # one trial
        figure = plot().figure
        try:
            figure.axes[0].set_title(plain_text(title), loc="left", pad=12)
            figure.axes[0].set_title("")
            if labels is not None:
                figure.axes[0].set_xlabel(labels[0])
                figure.axes[0].set_ylabel(labels[1])
            figure.set_size_inches(WIDTH_PX / DPI, 900 / DPI)
            return figure_png(figure)
        finally:
            pyplot.close(figure)


# -- importance ----------------------------------------------------------------------------------


def _importance(search: Search, trials: Sequence[Trial], title: str) -> bytes:
    """How much of the spread of results each setting explains (fANOVA, Hutter et al. 2014)."""
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization import matplotlib as plots

    study, count = comparable(search, trials)
    if study is None:
        message = f"{count} trials were trained as far as each other, or all came to the same: too few to tell."
        return empty_figure(title, message)
    note = ": few, so take it with care" if count < 4 * FEW else ""
    label = f"fANOVA over {count} trials{note}"
    evaluator = FanovaImportanceEvaluator(seed=search.seed)
    return _plot(title, lambda: plots.plot_param_importances(study, evaluator, target_name=label))


def comparable(search: Search, trials: Sequence[Trial]) -> tuple[Study | None, int]:
    """A study of the results that can be compared, and how many they are; no study where they tell nothing.

    Only results after equally many epochs can be compared: those that the most trials have, of as many epochs as
    possible. In population-based training they are of one generation, since the next one's have been trained longer:
    of the latest that has enough. None with fewer than FEW trials, or where all results are equal.
    """
    most = 0
    for generation, size in _generations(search, trials):
        reached = sorted({len(trial["values"]) for trial in generation if trial["value"] is not None})
        counts = {epochs: sum(len(trial["values"]) >= epochs for trial in generation) for epochs in reached}
        most = max([most, *counts.values()])
        if enough := [epochs for epochs, count in counts.items() if count >= max(FEW, size / 2)]:
            break
    else:
        return None, most
    epochs = max(enough)
    alike = [
        {**trial, "number": number, "values": trial["values"][:epochs], "value": trial["values"][epochs - 1]}
        for number, trial in enumerate(trial for trial in generation if len(trial["values"]) >= epochs)
    ]
    study = as_study(search, alike)
    results = [trial.value for trial in study.trials if trial.value is not None]
    return study if len(set(results)) > 1 else None, len(results)


def _generations(search: Search, trials: Sequence[Trial]) -> list[tuple[Sequence[Trial], int]]:
    """Trials that began alike, the latest first, and how many they are in the end; all in one but for a population."""
    if search.scheduler != "pbt":
        return [(trials, len(trials))]
    members: dict[int, list[Trial]] = {}
    for trial in trials:
        members.setdefault(trial["number"] // search.trials, []).append(trial)
    return [(members[generation], search.trials) for generation in sorted(members, reverse=True)]
