"""Run a whole job: what is missing, in order, several steps at once where the cluster has room."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from mvray.cluster import Cluster
from mvray.data import as_table, write_table
from mvray.errors import SettingError
from mvray.experiment import BadRecord, Job
from mvray.pipeline import cost as costs
from mvray.pipeline.drivers import DRIVERS, Driver
from mvray.pipeline.manifest import manifest_of
from mvray.pipeline.plan import MANIFEST, Plan, Planned
from mvray.pipeline.step_log import JobLog, ProgressLines, StepLog
from mvray.pipeline.watch import StepWatch
from mvray.storage import retry
from mvray.tracking import Progress, duration

POLL_S = 1.0


def execute(plan: Plan, cluster: Cluster, log: JobLog, progress: Progress, only: str | None = None) -> None:
    """Do every missing step of ``plan``, or ``only`` one step and what it reads.

    A step that fails ends the run with StepFailed once the steps beside it have ended; what was
    finished stays.
    """
    todo = selected_steps(plan, only)
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
                    running[pool.submit(run_step, planned, cluster, log, progress)] = planned
                while not (ended := wait(running, POLL_S, FIRST_COMPLETED).done):
                    cluster.keep_signals()
                for future in ended:
                    planned = running.pop(future)
                    if (error := future.exception()) is not None:
                        waiting.clear()
                        progress.say(f"{planned.title}: stopped ({str(error).partition(chr(10))[0]})")
                        wait(running)
                        future.result()
        except BaseException:
            retry.give_up()
            cluster.aborted.set()  # Ctrl-C: the steps that run end now, and this does not wait for hours
            raise


def check_only(job: Job, only: str | None) -> None:
    """Raises SettingError where the job has no step ``only``."""
    names = sorted({step.name for step in job.walk()})
    if only is not None and only not in names:
        raise SettingError(f"--only {only}: the job {job.name!r} has no such step; it has {', '.join(names)}.")


def selected_steps(plan: Plan, only: str | None) -> list[Planned]:
    """Every step, or those named ``only`` and what they read. Raises as `check_only`."""
    check_only(plan.job, only)
    if only is None:
        return list(plan.steps)
    ids: set[str] = set()

    def add(planned: Planned) -> None:
        ids.add(planned.id)
        for other in planned.inputs.values():
            add(other)

    for planned in plan.steps:
        if planned.name == only:
            add(planned)
    return [planned for planned in plan.steps if planned.id in ids]


def _startable(waiting: dict[str, Planned], running: list[Planned], cluster: Cluster) -> Iterator[Planned]:
    """Steps whose inputs are there and for which the cluster has room beside what runs already."""
    ready = [p for p in waiting.values() if all(input_.finished for input_ in p.inputs.values())]
    if not ready:
        return
    cpus, gpus = cluster.room() if running or len(ready) > 1 else (0.0, 0.0)
    rooms = [planned.step.room(gpus) for planned in running]
    for planned in ready:
        room = planned.step.room(gpus)
        fits = all(sum(other[i] for other in rooms) + room[i] <= (cpus, gpus)[i] for i in (0, 1) if room[i])
        if fits or not rooms:
            rooms.append(room)
            yield planned


def run_step(
    planned: Planned, cluster: Cluster, log: StepLog, progress: ProgressLines, driver: Driver | None = None
) -> None:
    """Execute one step, by ``driver`` where one is given, and write its manifest."""
    started = time.monotonic()
    key = planned.id
    run = log.started(planned)
    try:
        _write_inputs(planned)
        with StepWatch(planned, run, log, progress, cluster):
            metrics = (driver or DRIVERS[type(planned.step)])(planned, cluster)
        seconds = time.monotonic() - started
        planned.folder.insist("metrics.json", json.dumps(metrics).encode())
        unreadable = _unreadable(planned)
        _write_quarantine(planned, unreadable)
        for record in unreadable:
            progress.say(f"{planned.title}: left out: {record.location}: {record.reason}")
        cost = costs.total(planned.folder)
        manifest = manifest_of(planned, seconds, run, cost)
        log.finished(run, planned, metrics, costs.as_metrics(cost))
        planned.folder.insist(MANIFEST, json.dumps(manifest, indent=1).encode())
        progress.say(f"{planned.title}: {duration(seconds)}   {_brief(planned, metrics)}")
    except BaseException as error:
        log.failed(run, error, interrupted=cluster.aborted.is_set())
        raise
    finally:
        progress.show(key, None)


def _brief(planned: Planned, metrics: dict[str, float]) -> str:
    """The two or three numbers that a person wants to see at once."""
    names = [n for n in metrics if n.startswith("validation/") or (n.count("/") == 1 and n.endswith("accuracy"))]
    shown = [f"{name} {metrics[name]:.3f}" for name in names[:3]]
    return ", ".join(shown or [f"{name} {value:g}" for name, value in list(metrics.items())[:3]])


def _write_inputs(planned: Planned) -> None:
    """The rows that the step works on, and what was left out of them with its reason."""
    write_table(planned.folder, "index.parquet", planned.rows())
    _write_quarantine(planned, _unreadable(planned))


def _unreadable(planned: Planned) -> list[BadRecord]:
    """The samples that the step, so far, could not decode."""
    records: list[BadRecord] = []
    for entry in planned.folder.list("unreadable"):
        records += [BadRecord(*item) for item in planned.folder.read_json(entry.path, dict).items()]
    return records


def _write_quarantine(planned: Planned, unreadable: list[BadRecord]) -> None:
    """Write quarantine.parquet: what was left out while indexing, then what was ``unreadable``."""
    if bad := [*planned.index.bad, *unreadable]:
        write_table(planned.folder, "quarantine.parquet", as_table(bad))
