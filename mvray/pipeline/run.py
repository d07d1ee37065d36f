"""Run a whole job: what is missing, in order, several steps at once where the cluster has room."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from mvray.cluster import Cluster, needs
from mvray.data import as_table, write_table
from mvray.errors import DataError, SettingError
from mvray.experiment import BadRecord, Generate, Measure, Train
from mvray.pipeline import cost as costs
from mvray.pipeline import generate, measure, train
from mvray.pipeline.manifest import manifest_of
from mvray.pipeline.plan import MANIFEST, Plan, Planned
from mvray.pipeline.step_log import JobLog, ProgressLines, StepLog
from mvray.storage import retry
from mvray.tracking import Progress, duration

Work = Callable[[Planned, Cluster], dict[str, float]]
WORK: dict[type, Work] = {
    Train: train.run,
    Generate: generate.run,
    Measure: measure.run,
}
POLL_S = 1.0


def execute(plan: Plan, cluster: Cluster, log: JobLog, progress: Progress, only: str | None = None) -> None:
    """Do every missing step of ``plan``, or ``only`` one step and what it reads.

    A step that fails ends the run with StepFailed once the steps beside it have ended; what was
    finished stays.
    """
    todo = chosen(plan, only)
    waiting = {planned.path: planned for planned in todo if not planned.finished}
    for planned in todo:
        if planned.finished:
            log.reused(planned)
    if not waiting:
        return
    for planned in waiting.values():
        planned.check()
    retry.begin()
    cluster.start(plan.job)
    running: dict[Future[None], Planned] = {}
    with ThreadPoolExecutor(max_workers=16, thread_name_prefix="step") as pool:
        try:
            while waiting or running:
                for planned in _startable(waiting, list(running.values()), cluster):
                    del waiting[planned.path]
                    running[pool.submit(do, planned, cluster, log, progress)] = planned
                while not (done := wait(running, POLL_S, FIRST_COMPLETED).done):
                    cluster.keep_signals()
                for future in done:
                    planned = running.pop(future)
                    if (error := future.exception()) is not None:
                        waiting.clear()
                        progress.say(f"{_title(planned)}: stopped ({str(error).partition(chr(10))[0]})")
                        wait(running)
                        future.result()
        except BaseException:
            retry.give_up()
            cluster.aborted.set()  # Ctrl-C: the steps that run end now, and this does not wait for hours
            raise


def chosen(plan: Plan, only: str | None) -> list[Planned]:
    """Every step, or those named ``only`` and what they read. Raises SettingError where there is none."""
    if only is None:
        return list(plan.steps)
    names = sorted({planned.name for planned in plan.steps})
    if only not in names:
        raise SettingError(f"--only {only}: the job {plan.job.name!r} has no such step; it has {', '.join(names)}.")
    wanted: set[str] = set()

    def add(planned: Planned) -> None:
        wanted.add(planned.id)
        for other in planned.inputs.values():
            add(other)

    for planned in plan.steps:
        if planned.name == only:
            add(planned)
    return [planned for planned in plan.steps if planned.id in wanted]


def _startable(waiting: dict[str, Planned], running: list[Planned], cluster: Cluster) -> Iterator[Planned]:
    """Steps whose inputs are there and for which the cluster has room beside what runs already."""
    ready = [p for p in waiting.values() if all(given.finished for given in p.inputs.values())]
    if not ready:
        return
    cpus, gpus = cluster.room() if running or len(ready) > 1 else (0.0, 0.0)
    held = [needs(planned.step, gpus) for planned in running]
    for planned in ready:
        wanted = needs(planned.step, gpus)
        fits = all(sum(h[i] for h in held) + wanted[i] <= (cpus, gpus)[i] for i in (0, 1) if wanted[i])
        if fits or not held:
            held.append(wanted)
            yield planned


def _title(planned: Planned) -> str:
    return f"{planned.name} (seed {planned.seed})"


def do(planned: Planned, cluster: Cluster, log: StepLog, progress: ProgressLines, work: Work | None = None) -> None:
    """Execute one step, by ``work`` where it is given, and write its manifest."""
    started = time.monotonic()
    key = planned.id
    run = log.started(planned)
    try:
        _write_inputs(planned)
        with _watching(planned, run, log, progress, cluster):
            metrics = (work or WORK[type(planned.step)])(planned, cluster)
        seconds = time.monotonic() - started
        planned.folder.insist("metrics.json", json.dumps(metrics).encode())
        for record in _quarantine(planned)[len(planned.index.bad) :]:
            progress.say(f"{_title(planned)}: left out: {record.location}: {record.reason}")
        cost = costs.total(planned.folder)
        manifest = manifest_of(planned, seconds, run, cost)
        log.finished(run, planned, metrics, costs.as_metrics(cost))
        planned.folder.insist(MANIFEST, json.dumps(manifest, indent=1).encode())
        progress.say(f"{_title(planned)}: {duration(seconds)}   {_brief(planned, metrics)}")
    except BaseException as error:
        log.failed(run, error, interrupted=cluster.aborted.is_set())
        raise
    finally:
        progress.show(key, None)


def _brief(planned: Planned, metrics: dict[str, float]) -> str:
    """The two or three numbers that a person wants to see at once."""
    wanted = [n for n in metrics if n.startswith("validation/") or (n.count("/") == 1 and n.endswith("accuracy"))]
    shown = [f"{name} {metrics[name]:.3f}" for name in wanted[:3]]
    return ", ".join(shown or [f"{name} {value:g}" for name, value in list(metrics.items())[:3]])


def _write_inputs(planned: Planned) -> None:
    """The rows that the step works on, and what was left out of them with its reason."""
    write_table(planned.folder, "index.parquet", planned.rows())
    _quarantine(planned)


def _quarantine(planned: Planned) -> list[BadRecord]:
    """Everything that was left out so far, while indexing and while decoding; also as quarantine.parquet."""
    bad = list(planned.index.bad)
    for entry in planned.folder.list("unreadable"):
        bad += [BadRecord(*item) for item in planned.folder.read_json(entry.path, dict).items()]
    if bad:
        write_table(planned.folder, "quarantine.parquet", as_table(bad))
    return bad


@contextlib.contextmanager
def _watching(planned: Planned, run: str, log: StepLog, progress: ProgressLines, cluster: Cluster) -> Iterator[None]:
    """Follow the step's progress.json: the line on the terminal, each epoch to MLflow as it comes, what it costs."""
    ended, told = threading.Event(), [""]
    meter = costs.Meter(planned.folder, getattr(planned.step, "scale", None))
    held: tuple[float, float] = (0.0, 0.0)

    def look() -> tuple[float, float]:
        try:
            seen = planned.folder.read_json("progress.json", dict)
        except FileNotFoundError:
            progress.show(planned.id, None)
            return 0.0, 0.0  # until the first word of its workers a step waits for room, and holds nothing
        progress.show(planned.id, f"{_title(planned)}: {seen['text']}")
        if bool(trouble := seen.get("trouble", "")) != bool(told[-1]):  # once, whichever checkpoint it is
            told.append(trouble)
            progress.say(f"{_title(planned)}: {trouble or 'Checkpoints are stored again.'}")
        log.epochs(run, planned, seen.get("history", []))
        cpus, gpus = needs(planned.step, cluster.gpus(), seen.get("workers"))
        return seen.get("cpus", cpus), seen.get("gpus", gpus)

    def watch() -> None:
        nonlocal held
        while not ended.wait(POLL_S):
            # A storage may fail now and then: the next one will do.
            with contextlib.suppress(OSError, DataError):
                held = look()
            meter.read(*held)

    planned.folder.delete("progress.json")
    watcher = threading.Thread(target=watch, name="watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        with contextlib.suppress(OSError, DataError):
            held = look()
        meter.read(*held)
        meter.keep()
