"""What Ray Tune sees of a search: its trials, where their settings come from, and who hears of its decisions.

A trial of Tune's (TrialProxy) trains nothing and holds no CPU: it hands on to Tune what the real training, in a worker
group of the driver, reports. Ray Tune is imported at the top: this module is for Tune's own processes, and tune.py
imports it once Ray has started.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from mvray.tuning.study import FINISHED, STOPPED, Study, at_epoch

VALUE, EPOCHS = "value", "epochs"
"""What is reported to Tune: the metric of the epoch that the step would select by now, and how many are done."""
PROXY_LOSSES = 3
"""How often a trial's TrialProxy may be lost: a new one begins with the first epoch, which TrialReports still has."""
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that is interrupted before its first epoch has no metric
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # nothing of Tune's is kept
    "RAY_AIR_NEW_OUTPUT": "0",
}


class TrialProxy(tune.Trainable):
    """Ray Tune's trial: it reports to Tune, epoch by epoch, what the real training reports to TrialReports.

    ``config``: the TrialReports actor's name, the trial's ``number``, and how its step selects (study.Selects).
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._scores: Any = ray.get_actor(config["scores"])
        self._number, self._selects = config["number"], config["selects"]
        self._done = 0
        self._last: dict[str, Any] = {}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        rows: Any = ray.get(self._scores.next.remote(self._number, self._done))
        if rows is None:
            return {**self._last, "done": True}
        self._done += 1
        self._last = {VALUE: at_epoch(rows, self._selects), EPOCHS: self._done}
        return self._last


class Training(Protocol):
    """Who trains (tune.Trials)."""

    epochs: int

    def begin(self) -> dict[str, Any] | str: ...
    def note_epoch(self, number: int, epochs: int, value: float) -> None: ...
    def stop(self, number: int, epochs: int) -> None: ...
    def give_up(self, number: int) -> None: ...


class Suggestions(Searcher):
    """Gives Tune the study's trials, each when the cluster has room for its training."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self._training = training

    def suggest(self, trial_id: str) -> Any:
        answer = self._training.begin()
        return {"later": None, "none": self.FINISHED}[answer] if isinstance(answer, str) else answer

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        pass  # the study keeps what matters

    def restore(self, checkpoint_path: str) -> None:
        pass

    def __reduce__(self) -> Any:
        return (object, ())  # Tune pickles it for a restoration that never comes


class Listener(tune.Callback):
    """Called in this process with each result that Tune records and each trial that it ends."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        if EPOCHS in result:
            self._training.note_epoch(trial.config["number"], result[EPOCHS], result[VALUE])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._training.stop(trial.config["number"], (trial.last_result or {}).get(EPOCHS, 0))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._training.give_up(trial.config["number"])

    def __reduce__(self) -> Any:
        return (tune.Callback, ())


def tuner(study: Study, training: Training, place: str) -> tune.Tuner:
    """The Tuner of a search. Its own files go to the local folder ``place``."""
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what goes wrong in a trial is said in one line
    resources = tune.PlacementGroupFactory([{"CPU": 0, this_node(): 0.001}])
    return tune.Tuner(
        tune.with_resources(TrialProxy, resources),
        tune_config=tune.TuneConfig(
            scheduler=scheduler(study, training.epochs),
            search_alg=Suggestions(training),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=place,
            verbose=0,
            callbacks=[Listener(training)],
            failure_config=tune.FailureConfig(max_failures=PROXY_LOSSES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def scheduler(study: Study, epochs: int) -> Any:
    """Tune's scheduler, with the values of the study's trials that ended before already in it."""
    search = study.search
    if search.scheduler != "asha":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    asha = ASHAScheduler(
        time_attr=EPOCHS,
        metric=VALUE,
        mode="max" if search.maximise else "min",
        max_t=max(epochs, search.grace),
        grace_period=search.grace,
        reduction_factor=search.reduction,
    )
    for trial in study.trials:
        if trial.state in (FINISHED, STOPPED):
            past: Any = _PastTrial(f"seen-{trial.number}")
            asha.on_trial_add(None, past)  # type: ignore[arg-type]
            for epoch, value in enumerate(trial.values, start=1):
                asha.on_trial_result(None, past, {EPOCHS: epoch, VALUE: value})  # type: ignore[arg-type]
    return asha


@dataclass(frozen=True)
class _PastTrial:
    """A trial that ended before, as a scheduler knows it."""

    trial_id: str


def this_node() -> str:
    """The resource that only this process's node has: a TrialProxy needs no other."""
    own = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    resources = next(node["Resources"] for node in nodes if node["NodeID"] == own)
    return next(str(name) for name in resources if name.startswith("node:") and "__" not in name)
