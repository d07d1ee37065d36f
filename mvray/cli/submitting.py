"""mvray submit | jobs | logs | stop: jobs on a cluster, from anywhere."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvray.cli.jobs import run_options
from mvray.cli.options import FAILED, INTERRUPTED, STORAGE, job_of, same_options
from mvray.cli.searching import check_options
from mvray.errors import DataError, SettingError
from mvray.storage import Storage

if TYPE_CHECKING:
    from mvray.cluster import CodeArchive, JobClient, SubmittedJob


def add(commands: Any) -> None:
    submit = commands.add_parser("submit", help="run a job on a cluster; it goes on without this machine")
    run_options(submit)
    submit.add_argument("--tune", action="store_true", help="the job's search (mvray tune) instead of the job")
    submit.add_argument("--trials", type=int, metavar="N", help="with --tune: trials in all")
    submit.add_argument("--concurrent", type=int, metavar="N", help="with --tune: trials at once")
    _address(submit)
    submit.add_argument("--follow", action="store_true", help="show the log until the job ends")
    submit.add_argument("--env", action="append", default=[], metavar="NAME", help="pass this variable too")
    submit.add_argument("--build-environment", action="store_true", help="Ray installs requirements.lock on every node")
    submit.add_argument("--code-limit", type=float, metavar="MIB", help="most that git may track (default: 50)")
    submit.set_defaults(command=_submit)

    jobs = commands.add_parser("jobs", help="list the jobs of a cluster")
    _address(jobs)
    jobs.set_defaults(command=_jobs)

    logs = commands.add_parser("logs", help="show what a job on a cluster said")
    logs.add_argument("id", metavar="ID", help="as mvray jobs lists it")
    logs.add_argument("--follow", action="store_true", help="go on until the job ends")
    _address(logs)
    logs.set_defaults(command=_logs)

    stop = commands.add_parser("stop", help="stop a job on a cluster; what runs writes a checkpoint")
    stop.add_argument("id", metavar="ID", help="as mvray jobs lists it")
    _address(stop)
    stop.set_defaults(command=_stop)


def _address(parser: argparse.ArgumentParser) -> None:
    text = "the cluster, as for `ray job`: http://HOST:8265 (its dashboard), HOST:6379 (its GCS) or auto (default: "
    text += "RAY_API_SERVER_ADDRESS, RAY_ADDRESS, http://127.0.0.1:8265)"
    parser.add_argument("--address", metavar="ADDRESS", help=text)


def words_of(options: argparse.Namespace, job: str) -> list[str]:
    """The command that the cluster's head runs: ``run`` or ``tune`` with the options of ``submit``.

    Raises SettingError or DataError for a place that is on this machine alone.
    """
    _check_places(options)
    words = ["tune" if options.tune else "run", job, *same_options(options)]
    names = ("trials", "concurrent", "workers") if options.tune else ("only", "workers")
    for name in names:
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", str(value)]
    return words


def _check_job(options: argparse.Namespace) -> str:
    """The job's name. Raises, here and not in minutes, what `mvray run` or `mvray tune` would raise on the head."""
    if not options.tune:
        if options.trials is not None or options.concurrent is not None:
            raise SettingError("--trials and --concurrent are of a search; expected --tune beside them.")
        return job_of(options, options.only).name
    if options.only is not None:
        raise SettingError(
            f"--only {options.only}: a search trains one step, with what that reads; expected no --only beside --tune."
        )
    from mvray.tuning import study

    check_options(options)
    job = job_of(options)
    search, _ = study.check(job)
    if search.scheduler == "pbt" and options.trials is not None:
        replace(search, trials=options.trials)  # a population has a least size
    return job.name


def _check_places(options: argparse.Namespace) -> None:
    if options.storage == STORAGE or not _is_everywhere(options.storage):
        storage = "no --storage" if options.storage == STORAGE else f"--storage {options.storage}"
        raise SettingError(
            f"Found {storage}; the results of a submitted job must lie where every node of the cluster can write. "
            "Expected --storage s3://BUCKET/PREFIX, or the absolute path of a folder that all nodes share."
        )
    if options.data and not _is_everywhere(options.data):
        raise DataError(
            f"--data {options.data} is a folder of this machine; the cluster cannot read it. Expected "
            "s3://BUCKET/PREFIX, or the absolute path of a folder that all nodes share."
        )
    for place in (options.storage, options.data):
        if place:
            Storage(place)  # refuses what is no place, and keys in an address


def _is_everywhere(place: str) -> bool:
    return place.startswith("s3://") or Path(place).is_absolute() or place.startswith("file:///")


def _submit(options: argparse.Namespace) -> int:
    from mvray.cluster import LIMIT_MIB, JobClient, beside, environment, pack, use_token

    use_token()
    archive = pack(options.job, options.code_limit if options.code_limit is not None else LIMIT_MIB)
    words = words_of(options, archive.job)
    name = _check_job(options)
    variables, notes = environment(options.env, os.environ)
    archive = replace(archive, note={**archive.note, **beside(os.environ)})
    cluster = JobClient(options.address)
    _say(sending(archive))
    if archive.untracked:
        more = f" and {len(archive.untracked) - 3} more" if len(archive.untracked) > 3 else ""
        _say(f"Not sent, because git does not track them: {', '.join(archive.untracked[:3])}{more}.")
    for note in notes:
        _say(note)
    id_ = cluster.submit(archive, words, name, variables, options.build_environment)
    print(id_, flush=True)
    if options.follow:
        return _follow(cluster, id_)
    _say(_how_to_go_on(id_, options.address))
    return 0


def sending(archive: CodeArchive) -> str:
    """What is sent, for people."""
    text = f"Sending {len(archive.files)} files, {archive.bytes / 2**20:.1f} MiB"
    if commit := archive.commit:
        text += f", of commit {commit.rstrip('+')[:12]}{' with changes' if commit.endswith('+') else ''}"
    return f"{text} ..."


def _how_to_go_on(id_: str, address: str | None) -> str:
    at = f" --address {shlex.quote(address)}" if address else ""
    return f"Follow it:  mvray logs {id_} --follow{at}\nStop it:    mvray stop {id_}{at}"


def _follow(cluster: JobClient, id_: str) -> int:
    """Print the log until the job ends. Ctrl-C ends this, not the job."""
    try:
        for text in cluster.follow(id_):
            sys.stdout.write(text)
            sys.stdout.flush()
        return _ended(cluster.one(id_))
    except KeyboardInterrupt:
        _say(f"\n{id_} goes on without this command.\n{_how_to_go_on(id_, cluster.address)}")
        return INTERRUPTED


def _ended(job: SubmittedJob) -> int:
    _say(f"{job.id}: {job.state}" + (f" (exit code {job.exit_code})" if job.exit_code else ""))
    if job.state == "FAILED" and job.exit_code is None:
        _say(job.message[-2000:])  # Ray could not start it
    return {"SUCCEEDED": 0, "STOPPED": INTERRUPTED}.get(job.state, job.exit_code or FAILED)


def _jobs(options: argparse.Namespace) -> int:
    from mvray.cluster import JobClient

    print(as_table(JobClient(options.address).all(), time.time()))
    return 0


def as_table(jobs: list[SubmittedJob], now_s: float) -> str:
    """The jobs as lines, newest first."""
    from mvray.tracking import duration

    rows = [("ID", "STATE", "JOB", "USER", "SINCE", "DURATION")]
    for job in jobs:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started_s)) if job.started_s else ""
        lasted = duration((job.ended_s or now_s) - job.started_s) if job.started_s else ""
        rows.append((_shown(job.id), job.state, _shown(job.job), _shown(job.user), since, lasted))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) if jobs else "No jobs were submitted to this cluster."


def _shown(name: str) -> str:
    """What others wrote, without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:80]


def _logs(options: argparse.Namespace) -> int:
    from mvray.cluster import JobClient

    cluster = JobClient(options.address)
    if options.follow:
        return _follow(cluster, options.id)
    sys.stdout.write(cluster.log(options.id))
    return 0


def _stop(options: argparse.Namespace) -> int:
    from mvray.cluster import ENDED, JobClient

    cluster, was_said = JobClient(options.address), False
    for job in cluster.stop(options.id):
        if job.state in ENDED and not was_said:
            _say(f"{job.id} had ended before: {job.state}.")
            return 0
        if not was_said:
            _say(f"{job.id} was asked to stop; steps that run write a checkpoint first.")
            was_said = True
    _say(f"{job.id}: {job.state}. The same `mvray submit` goes on where it stopped.")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
