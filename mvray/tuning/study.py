"""A search's trials: which there are, what is known of them, and how they are kept.

    <storage>/study-<step>-<id>/study.json    what is searched
    <storage>/study-<step>-<id>/trials.json   each trial: settings, step, state, the metric after each epoch, time

A trial is the searched Train step with other settings: the same step, of the same id and in the same folder, as
`mvray run --set` would have it. In population-based training it is a generation of a member: a Train step over a few
epochs that starts from the weights of one of the generation before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from threading import RLock
from typing import Any

from mvray.errors import SettingError, TakenOver
from mvray.experiment import LAST, Job, Search, Train, as_text, described, replaced, set_line
from mvray.pipeline import Planned
from mvray.storage import Storage
from mvray.tracking import now
from mvray.tuning.suggest import Known, Settings, bred, drawn, suggest

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"


@dataclass
class Trial:
    """``values`` has, for each epoch, the metric of the epoch that the step would select by then.

    ``path`` is the step's folder below the storage. ``parent`` is the trial whose weights it started from
    (population-based training). One that failed for a reason that would not hold again is not ``final``.
    """

    number: int
    settings: Settings
    parent: int | None = None
    state: str = RUNNING
    id: str = ""
    path: str = ""
    values: list[float] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""
    final: bool = True

    @property
    def value(self) -> float:
        return self.values[-1] if self.values else math.nan

    @property
    def known(self) -> Known:
        ended = "" if self.state == RUNNING else self.state
        return Known(self.number, self.settings, ended, self.value, len(self.values))


@dataclass(frozen=True)
class Selects:
    """``metric`` is what trials are compared by; the step selects its epoch by ``select`` ("" for the last)."""

    metric: str
    select: str = ""
    maximise: bool = True


def selects(search: Search, step: Train) -> Selects:
    last = step.select == LAST or search.scheduler == "pbt"
    return Selects(search.metric, "" if last else f"validation/{step.select}", step.select_max)


def at_epoch(rows: Sequence[dict[str, float]], how: Selects) -> float:
    """The metric of the epoch that would be selected after the epochs ``rows``; NaN where it has none."""
    selected = rows[-1]
    if how.select:
        sign = 1 if how.maximise else -1
        usable = [row for row in rows if not math.isnan(row.get(how.select, math.nan))] or [rows[0]]
        selected = max(usable, key=lambda row: sign * row.get(how.select, math.nan))
    return selected.get(how.metric, math.nan)


def check(job: Job) -> tuple[Search, Train]:
    """The job's search and the step that it searches. Raises SettingError for what cannot be searched."""
    search = job.search
    if search is None:
        raise SettingError(f"The job {job.name!r} has no search; give it one: Job(..., search=Search(...)).")
    trained = [step.name for step in job.walk() if isinstance(step, Train)]
    if search.step not in trained:
        raise SettingError(
            f"search.step is {search.step!r}; expected a Train step of {job.name!r}: {', '.join(trained)}."
        )
    step = _step(job, search.step)
    for name, domain in search.space:
        for value in domain.ends:
            changed = _step(replaced(job, {f"{search.step}.{name}": value}), search.step)
            if changed.inputs != step.inputs or changed.data.source != step.data.source:
                raise SettingError(
                    f"search.space has {name}, which changes what {search.step!r} reads; expected settings of the "
                    "step itself, such as method.* or optim.*."
                )
    metrics = [f"validation/{score}" for score in step.method.scores]
    if search.metric not in metrics:
        raise SettingError(f"search.metric is {search.metric!r}; {search.step!r} has {', '.join(metrics)}.")
    if search.scheduler == "pbt" and (step.optim.schedule != "constant" or step.optim.warmup_epochs):
        raise SettingError(
            f"search.scheduler is 'pbt' and {search.step}.optim.schedule is {step.optim.schedule!r}; expected a "
            "constant rate without warm-up, since each generation is trained by itself. Search optim.lr instead."
        )
    return search, step


def _step(job: Job, name: str) -> Train:
    step = next(step for step in job.walk() if step.name == name)
    assert isinstance(step, Train)
    return step


class Study:
    """The trials of a search. ``base`` is the searched step as the job has it. May be used from any thread.

    A new epoch is stored at most once in ``save_every_s`` seconds: the trial's own checkpoint has its epochs too.
    """

    def __init__(self, job: Job, base: Planned, save_every_s: float = 5.0) -> None:
        assert job.search is not None
        self.job, self.base, self.search = job, base, job.search
        assert isinstance(base.step, Train)
        self.selects = selects(job.search, base.step)
        self.id = _identity(job, base)
        self.name = f"study-{base.name}-{self.id}"
        self.folder: Storage = base.storage.child(self.name)
        self.trials: list[Trial] = []
        self.trained: set[int] = set()
        """Trials that this process has trained: others were finished before, or by another command."""
        self._save_every_s, self._saved_at, self._attempt = save_every_s, 0.0, ""
        self._lock = RLock()
        with contextlib.suppress(FileNotFoundError):
            stored = self.folder.read_json("study.json", dict)
            if not isinstance(stored.get("trials"), int):
                raise self.folder.damaged("study.json", "it does not say how many trials there are")
            if self.search.scheduler == "pbt":
                self.search = replace(self.search, trials=stored["trials"])
        with contextlib.suppress(FileNotFoundError):
            self.trials = self._stored()

    def _stored(self) -> list[Trial]:
        items = self.folder.read_json("trials.json", list)
        try:
            return [_read(item, self.search) for item in items]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.folder.damaged("trials.json", f"{type(error).__name__} {error}") from error

    def checked(self, trials: int | None) -> int:
        """How many trials are asked for. Raises SettingError where a population would have to change its size."""
        if trials is None:
            return self.search.trials
        if self.search.scheduler == "pbt":
            if self.trials and trials != self.search.trials:
                raise SettingError(
                    f"--trials {trials}: this search has a population of {self.search.trials}, which cannot change. "
                    f"Use --trials {self.search.trials}, or begin another: --set search.seed={self.search.seed + 1}."
                )
            self.search = replace(self.search, trials=trials)
        return trials

    def summary(self, trials: int) -> str:
        """What there is to do, for people."""
        ended = sum(trial.state != RUNNING for trial in self.trials)
        if self.search.scheduler == "pbt":
            return f"a population of {trials}, {ended} trainings ended before"
        return f"{trials} trials, {ended} ended before"

    def again(self) -> list[Trial]:
        """Trials to go on with: those that ran when the search ended, and those that may work a second time."""
        return [t for t in self.trials if t.state == RUNNING or (t.state == FAILED and not t.final)]

    def wanted(self, trials: int, epochs: int) -> int:
        """How many trials there are in the end: of population-based training, ``trials`` in each generation."""
        return trials * self.generations(epochs) if self.search.scheduler == "pbt" else trials

    def generations(self, epochs: int) -> int:
        return max(1, -(-epochs // self.search.grace))

    def next(self, epochs: int) -> Trial | None:
        """A new trial; None where all settings have been tried. Call `ready` before."""
        with self._lock:
            number, past = len(self.trials), [trial.known for trial in self.trials]
            trial: Trial | None
            if self.search.scheduler == "pbt":
                generation = number // self.search.trials
                if generation == 0:
                    trial = Trial(number, drawn(self.search, number))
                else:
                    before = past[(generation - 1) * self.search.trials : generation * self.search.trials]
                    parent, settings = bred(self.search, number, before)
                    trial = Trial(number, settings, parent)
            else:
                settings_or_none = suggest(self.search, number, past)
                trial = None if settings_or_none is None else Trial(number, settings_or_none)
            if trial is not None:
                self.trials.append(trial)
                self.save()
            return trial

    def ready(self) -> bool:
        """Whether what the next trial depends on is known: in population-based training, the generation before."""
        if self.search.scheduler != "pbt":
            return True
        first = len(self.trials) // self.search.trials * self.search.trials
        return all(trial.state != RUNNING for trial in self.trials[:first])

    def planned(self, trial: Trial, epochs: int) -> Planned:
        """The Train step of a trial. ``epochs`` are those of the searched step itself.

        Raises UserError where settings do not fit together, or not to the data.
        """
        names = {f"{self.search.step}.{name}": value for name, value in trial.settings.items()}
        step = _step(replaced(self.job, names), self.search.step)
        step.method.check(self.base.facts)
        step.check_shared(self.base.facts.samples, step.scale.workers)
        if self.search.scheduler != "pbt":
            return self.base.changed(step)
        generation = trial.number // self.search.trials
        short = replace(step.optim, epochs=min(self.search.grace, epochs - generation * self.search.grace))
        short = replace(short, patience=None)
        step = replace(step, optim=short, select=LAST, count_start_epochs=False)
        if trial.parent is None:
            return self.base.changed(step)
        parent = self.planned(self.trials[trial.parent], epochs)
        assert isinstance(parent.step, Train)
        columns = {generated.name: self.base.inputs[generated.name] for generated in step.data.columns}
        return replace(self.base, inputs={**columns, parent.name: parent}).changed(
            replace(step, start_from=parent.step)
        )

    def note(self, trial: Trial, epochs: int, value: float) -> None:
        """A trial has ended an epoch. Raises TakenOver as `save`; what cannot be stored now is stored later."""
        with self._lock:
            if epochs == len(trial.values) + 1:
                trial.values.append(float(value))
                if time.monotonic() - self._saved_at > self._save_every_s:
                    self._saved_at = time.monotonic()
                    with contextlib.suppress(OSError):
                        self._check_attempt()
                        self.folder.try_write("trials.json", self._rows())

    def end(self, trial: Trial, state: str, reason: str = "", final: bool = True) -> None:
        with self._lock:
            trial.state, trial.reason, trial.final = state, reason, final
            self.save()

    def best(self) -> Trial | None:
        """The best trial that has a value: of those trained to the end, where there are any."""
        with self._lock:
            usable = [t for t in self.trials if t.state in (FINISHED, STOPPED) and not math.isnan(t.value)]
            finished = [t for t in usable if t.state == FINISHED]
            return min(finished or usable, key=lambda t: (self.search.order(t.value), t.number), default=None)

    def claim(self) -> None:
        """From now on this process works on the search; another one that does ends when it has something to save."""
        with self._lock:
            self._attempt = uuid.uuid4().hex
            self.folder.insist("attempt", self._attempt.encode())
            with contextlib.suppress(FileNotFoundError):
                self.trials = self._stored()  # the other process may have gone on meanwhile

    def _check_attempt(self) -> None:
        if self._attempt and self.folder.read("attempt").decode(errors="replace") != self._attempt:
            raise TakenOver(f"Another mvray tune has taken over {self.folder.uri}; this one ends.")

    def save(self) -> None:
        """Raises TakenOver where another command has claimed the search, StorageFailed where it cannot be stored."""
        with self._lock:
            self._saved_at = time.monotonic()
            self._check_attempt()
            if not self.folder.exists("study.json"):
                self.folder.insist("study.json", json.dumps(self.about(), indent=1).encode())
            self.folder.insist("trials.json", self._rows())

    def _rows(self) -> bytes:
        return json.dumps(_without_nan([asdict(trial) for trial in self.trials]), indent=1).encode()

    def about(self) -> dict[str, Any]:
        search = self.search
        plain = ("metric", "maximise", "sampler", "scheduler", "trials", "grace", "reduction", "seed")
        about = {"id": self.id, "job": self.job.name, "step": search.step, "base": self.base.id, "created_at": now()}
        space = {name: str(domain) for name, domain in search.space}
        return {**about, "space": space, **{name: getattr(search, name) for name in plain}}

    def collected(self) -> dict[str, Any]:
        """The search in a report: {"step", "metric", "maximise", "space", "trials": [...], "best", "set"}."""
        best = self.best()
        about = {name: self.about()[name] for name in ("id", "step", "metric", "maximise", "scheduler", "space")}
        about |= {"sampler": self.search.sampler, "path": self.folder.uri}
        trials = [{**asdict(trial), "value": trial.value if trial.values else None} for trial in self.trials]
        return {
            **about,
            "trials": _without_nan(trials),
            "best": None if best is None else best.number,
            "set": None if best is None else set_line(self.search.step, best.settings),
        }


def brief(settings: Settings) -> str:
    """Settings for a line of text, by the last part of their names."""
    return ", ".join(f"{name.rpartition('.')[2]} {as_text(value)}" for name, value in settings.items())


def _identity(job: Job, base: Planned) -> str:
    """What is searched: the step without the searched settings, the space, and how."""
    search = job.search
    assert search is not None
    lowest = {f"{search.step}.{name}": domain.ends[0] for name, domain in search.space}
    content = {
        "step": base.changed(_step(replaced(job, lowest), search.step)).id,
        "search": described(search, lambda step: step.name),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _read(item: dict[str, Any], search: Search) -> Trial:
    space = dict(search.space)
    settings = {name: _typed(space[name].values, value) for name, value in item["settings"].items()}
    values = [math.nan if value is None else float(value) for value in item["values"]]
    return Trial(**{**item, "settings": settings, "values": values})


def _typed(values: tuple[Any, ...], value: Any) -> Any:
    """``value`` as the space has it: JSON has no tuples."""
    return tuple(value) if isinstance(value, list) and tuple(value) in values else value


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
