"""A search on Ray Tune: Tune decides which trials go on, the worker groups of this process train them.

    Tune asks for a trial         Suggestions gives the study's next one, and its training begins (a thread here)
    the training tells epochs     to an actor (TrialReports), from which Tune's trial reads them (ray_tune.py)
    Tune stops the trial          the training, which waits for that word at the epochs where it may come, ends with its
                                  checkpoint; its worker group takes the next trial

So a trial that is stopped leaves nothing behind: no worker is ever killed for it, and Tune's own trials hold no CPU.
Nothing of Tune's is kept: a search that is gone on with is built again out of study.json and trials.json.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from mvray.cluster import HEADROOM_CPUS, NODE_ID, Cluster, TrialReports
from mvray.errors import (
    ClusterError,
    DataError,
    Interrupted,
    MvrayError,
    StepFailed,
    StorageFailed,
    StorageRefused,
    TakenOver,
)
from mvray.experiment import Train
from mvray.pipeline import Planned, SearchLog, run_step, train
from mvray.storage import retry
from mvray.tracking import Progress, duration
from mvray.training import SearchTrial, StepProgress
from mvray.tuning.study import FAILED, FINISHED, RUNNING, STOPPED, Study, Trial, at_epoch, brief

ROOM_EVERY_S = 5.0
ENOUGH_FAILED = 3
"""A search whose first trials all fail ends after so many."""
LINES = 8
"""How many running trials have a line of their own."""
MOST_AT_ONCE = 100
"""Trials, each a thread of this process: an autoscaler without a limit has room for any number."""


class Trials:
    """Trains the trials of a study, as many at once as the cluster has room for, at most ``concurrent``."""

    def __init__(
        self, study: Study, cluster: Cluster, log: SearchLog, progress: Progress, count: int, concurrent: int | None
    ) -> None:
        import ray

        self._study, self._cluster, self._log, self._progress = study, cluster, log, progress
        self.epochs = _epochs(study)
        self.total, self._concurrent = study.wanted(count, self.epochs), concurrent
        self._name = f"scores-{uuid.uuid4().hex}"
        # On this node: another one may go, and the trials' epochs with it.
        selector = {NODE_ID: ray.get_runtime_context().get_node_id()}
        actor: Any = ray.remote(num_cpus=0, label_selector=selector)(TrialReports)
        self._scores = actor.options(name=self._name, max_concurrency=1000).remote()
        self._again, self._lock = study.again(), threading.RLock()
        self._stops: dict[int, threading.Event] = {}
        self._lines: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._at_once: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._room, self._looked_at = 1, 0.0
        self._begun_at, self._ended_now = time.monotonic(), 0
        self.fatal: BaseException | None = None

    # -- what Tune asks ------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether no more trials are to begin."""
        return self.fatal is not None or self._cluster.aborted.is_set()

    def room(self) -> int:
        """How many trials are to run at once; nodes may come and go."""
        if time.monotonic() - self._looked_at > ROOM_EVERY_S:
            self._looked_at = time.monotonic()
            self._room = room(self._study.base, self._cluster)
        return min(self._room, self._concurrent or self._room)

    def begin(self) -> dict[str, Any] | str:
        """Begin the next trial; returns the config of its TrialProxy, or "later" or "none"."""
        with self._lock:
            if self.over:
                return "none"
            if len(self._stops) >= self.room():
                return "later"
            if self._again:
                trial: Trial | None = self._again.pop(0)
            elif len(self._study.trials) >= self.total:
                return "none"
            elif not self._study.ready():
                return "later"
            else:
                trial = self._study.next(self.epochs)
            if trial is None:
                self._progress.say(f"All {len(self._study.trials)} settings that the space has are tried.")
                return "none"
            trial.state, trial.reason = RUNNING, ""
            stop = self._stops[trial.number] = threading.Event()
            thread = threading.Thread(target=self._train, args=(trial, stop), name=f"trial-{trial.number}")
            self._threads.append(thread)
            thread.start()
        return {"scores": self._name, "number": trial.number, "selects": self._study.selects}

    def note_epoch(self, number: int, epochs: int, value: float) -> None:
        """Tune has taken note of an epoch."""
        try:
            self._study.note(self._study.trials[number], epochs, value)
        except TakenOver as error:
            self._end_with(error)

    def stop(self, number: int, epochs: int) -> None:
        """Tune is through with a trial that has told it of ``epochs``; one that reached its last ends by itself."""
        with self._lock:
            stop = self._stops.get(number)
        if stop is not None and epochs < self.epochs:
            stop.set()
            self._scores.stop.remote(number)

    def give_up(self, number: int) -> None:
        """Tune gives up a trial, because its TrialProxy was lost again and again."""
        self._end_with(StepFailed(f"Ray Tune lost trial {number}; repeat the command to go on."))

    def _end_with(self, error: BaseException) -> None:
        self.fatal = self.fatal or error
        self._cluster.aborted.set()

    # -- training ------------------------------------------------------------------------------------

    def _train(self, trial: Trial, stop: threading.Event) -> None:
        """Train a trial, in a thread of its own, and note how it ended."""
        import ray

        began_at = time.monotonic()
        state, reason, final = FAILED, "", True
        try:
            planned = self._study.planned(trial, self.epochs)
            trial.id, trial.path = planned.id, planned.path
            self._study.save()
            with self._at_once[planned.path]:
                self._train_or_reuse(trial, planned, stop)
            state = FINISHED
        except Interrupted as error:
            state = STOPPED if stop.is_set() and not self.over else RUNNING
            reason = f"early, after epoch {len(trial.values)} of {self.epochs}" if state == STOPPED else str(error)
        except (ClusterError, StorageFailed, StorageRefused, TakenOver) as error:  # whatever the trial's settings are
            state = RUNNING
            self._end_with(error)
        except MvrayError as error:
            reason, final = str(error).partition("\n")[0], not isinstance(error, StepFailed)
        except BaseException as error:
            state = RUNNING
            self._end_with(error)
        trial.seconds = round(trial.seconds + time.monotonic() - began_at, 3)
        try:
            self._study.end(trial, state, reason if state in (FAILED, STOPPED) else "", final)
        except BaseException as error:  # the same command finds out from the trial's step how it ended
            state = RUNNING
            self._end_with(error)
        try:
            ray.get(self._scores.end.remote(trial.number))
        finally:  # whatever becomes of the cluster, nobody waits for this trial
            with self._lock:
                del self._stops[trial.number]
                self._ended_now += 1
        if state != RUNNING:
            self._say(trial)
            self._check_failing()

    def _train_or_reuse(self, trial: Trial, planned: Planned, stop: threading.Event) -> None:
        import ray

        if planned.finished:
            rows = planned.history()
            ray.get(self._scores.add.remote(trial.number, rows))
            reused = _TrialLog(self._log, trial, self._study, self._cluster)
            reused.finished(self._log.trial(planned, trial.number, reused=True), planned, planned.metrics(), {})
        else:
            self._study.trained.add(trial.number)
            search_trial = SearchTrial(self._name, trial.number, self._waits())
            log = _TrialLog(self._log, trial, self._study, self._cluster)
            line = _TrialLine(self._progress, trial.number, self._lines)
            run_step(planned, self._cluster, log, line, lambda p, c: train.run(p, c, stop, search_trial))
            rows = planned.history()
        how = self._study.selects
        trial.values = [at_epoch(rows[: epoch + 1], how) for epoch in range(len(rows))]

    def _waits(self) -> tuple[int, ...]:
        """After which epochs Tune may stop a trial."""
        search = self._study.search
        if search.scheduler != "asha":
            return ()
        epochs, at = [], search.grace
        while at < self.epochs:
            epochs.append(at)
            at *= search.reduction
        return tuple(epochs)

    def _check_failing(self) -> None:
        ended = [trial for trial in self._study.trials if trial.state != RUNNING]
        failed = [trial for trial in ended if trial.state == FAILED]
        if len(failed) == len(ended) and len(ended) >= min(self.total, max(ENOUGH_FAILED, self._room)):
            message = f"All {len(failed)} trials that ended have failed; the first ({brief(failed[0].settings)}): "
            self._end_with(StepFailed(message + failed[0].reason))

    # -- what people see -----------------------------------------------------------------------------

    def _say(self, trial: Trial) -> None:
        value = f"{self._study.search.metric} {trial.value:.4g}" if trial.values else ""
        how = {FINISHED: f"{duration(trial.seconds)}   {value}", FAILED: f"failed ({trial.reason})"}
        how[STOPPED] = f"stopped {trial.reason}   {value}"
        self._progress.say(f"trial {trial.number}: {how[trial.state]}   ({brief(trial.settings)})")
        best, trials = self._study.best(), self._study.trials
        counts = {f"trials/{state}": sum(t.state == state for t in trials) for state in (FINISHED, STOPPED, FAILED)}
        numbers: dict[str, float] = {name: float(count) for name, count in counts.items()}
        if best is not None:
            numbers[f"best/{self._study.search.metric}"] = best.value
        self._log.log_totals(numbers, sum(counts.values()))

    def line(self) -> str:
        """How far the search is."""
        trials, best = self._study.trials, self._study.best()
        stopped, failed = (sum(t.state == state for t in trials) for state in (STOPPED, FAILED))
        ended = sum(t.state != RUNNING for t in trials)
        notes = [f"{stopped} stopped early"] if stopped else []
        notes += [f"{failed} failed"] if failed else []
        parts = [f"{ended} of {self.total} trials" + (f" ({', '.join(notes)})" if notes else "")]
        with self._lock:
            running = sorted(self._stops)
        if running:
            parts.append("running " + ", ".join(f"{n} ({len(trials[n].values)}/{self.epochs})" for n in running))
        if best is not None:
            parts.append(f"best {best.value:.4g} (trial {best.number})")
        if self._ended_now:
            each_s = (time.monotonic() - self._begun_at) / self._ended_now
            parts.append(f"about {duration(each_s * (self.total - ended))} left")
        return f"search of {self._study.base.name}: " + ", ".join(parts)

    def release(self) -> None:
        """Let go of what waits for Tune's word: the search is over."""
        with self._lock:
            running = list(self._stops)
        for number in running:
            self._scores.stop.remote(number)

    def join(self) -> None:
        """Wait for the trials; then nobody asks their actor any more, else it stays until Python collects garbage."""
        import ray

        for thread in list(self._threads):
            thread.join()
        with contextlib.suppress(ray.exceptions.RayError):  # the cluster is lost, and the actor with it
            ray.kill(self._scores)


class _TrialLog:
    """A trial's life as an MLflow run; the part of RunLog that run_step calls."""

    def __init__(self, log: SearchLog, trial: Trial, study: Study, cluster: Cluster) -> None:
        self._log, self._trial, self._study, self._cluster = log, trial, study, cluster
        self._planned: Planned | None = None

    def started(self, planned: Planned) -> str:
        self._planned = planned
        return self._log.trial(planned, self._trial.number)

    def epochs(self, run: str, planned: Planned, history: list[dict[str, float]]) -> None:
        self._log.epochs(run, planned, history)

    def finished(self, run: str, planned: Planned, metrics: Mapping[str, float], costs: Mapping[str, float]) -> None:
        self._log.epochs(run, planned, planned.history())
        self._log.ended(run, "", "FINISHED", {**costs, **{f"result/{name}": value for name, value in metrics.items()}})

    def failed(self, run: str, error: BaseException, interrupted: bool) -> None:
        if self._planned is not None:
            with contextlib.suppress(OSError, DataError):  # none was told before it failed
                progress = StepProgress.read(self._planned.folder)
                self._log.epochs(run, self._planned, list(progress.history))
        if not isinstance(error, Interrupted) or self._cluster.aborted.is_set():
            self._log.failed(run, error, interrupted)
            return
        reached = f"early, after epoch {len(self._trial.values)}"
        self._log.ended(run, reached, "KILLED", {f"result/{self._study.search.metric}": self._trial.value})


class _TrialLine:
    """A trial's line below the search's: how far it is, at what rate, where; the part of Progress that run_step calls.

    Of many trials at once the first few have one: those of a search must not hide everything else.
    """

    def __init__(self, progress: Progress, number: int, shown: set[int]) -> None:
        self._progress, self._number, self._shown = progress, number, shown

    def show(self, key: str, text: str | None) -> None:
        if text is None:
            self._shown.discard(self._number)
        elif len(self._shown) < LINES:
            self._shown.add(self._number)
        if text is None or self._number in self._shown:
            line = text and f"  trial {self._number}: {text.partition(': ')[2]}"
            self._progress.show(f"trial {self._number}", line)

    def say(self, line: str) -> None:
        """The search says itself how its trials end."""


def room(base: Planned, cluster: Cluster) -> int:
    """How many trials of the step ``base`` the cluster has, or its autoscaler makes, room for at once; at least one."""
    cpus, gpus = cluster.room()
    each_cpus, each_gpus = base.step.room(gpus)
    fits = [(cpus - HEADROOM_CPUS * cluster.is_local) / each_cpus]
    fits += [gpus / each_gpus] if each_gpus else []
    return max(1, int(min(*fits, MOST_AT_ONCE) + 1e-9))


def tune_study(
    study: Study, cluster: Cluster, log: SearchLog, progress: Progress, count: int, concurrent: int | None
) -> None:
    """Train trials until there are ``count``, as many at once as fit, at most ``concurrent``.

    What the step reads must be finished. Where no trial is left to train, no cluster is started.

    Raises StepFailed where all trials fail, ClusterError where none can be trained here, TakenOver where another
    command goes on with the same search, StorageFailed where the storage is away for too long. When this is
    interrupted, the trials that run end with a checkpoint.
    """
    if not study.again() and len(study.trials) >= study.wanted(count, _epochs(study)):
        return
    retry.begin()
    cluster.start(study.job)
    cluster.ready()
    study.claim()
    if threading.current_thread() is threading.main_thread():
        cluster.keep_signals()
    trials = Trials(study, cluster, log, progress, count, concurrent)
    place = tempfile.mkdtemp(prefix="mvray-tune-")
    errors: list[BaseException] = []

    def tuned() -> None:
        try:
            from mvray.tuning.ray_tune import tuner

            tuner(study, trials, place).fit()
        except BaseException as error:
            errors.append(error)

    tuning = threading.Thread(target=tuned, name="tune", daemon=True)
    tuning.start()
    try:
        while tuning.is_alive():
            tuning.join(0.2)
            progress.show("search", trials.line())
            if trials.over:
                trials.release()
    except BaseException:
        retry.give_up()
        cluster.aborted.set()
        while tuning.is_alive():
            trials.release()
            tuning.join(0.5)
        raise
    finally:
        if errors:
            cluster.aborted.set()
        trials.release()
        trials.join()
        progress.show("search", None)
        shutil.rmtree(place, ignore_errors=True)
    if error := trials.fatal or next(iter(errors), None):
        raise error


def _epochs(study: Study) -> int:
    """How many epochs a trial has at most: those of the step that it starts from count."""
    step = study.base.step
    assert isinstance(step, Train)
    return max(1, step.optim.epochs_of(study.base.facts.samples) - train.epochs_before(study.base))
