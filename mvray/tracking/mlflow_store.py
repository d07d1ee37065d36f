"""An MLflow store, as the receiver of a delivery: each event becomes calls that can be repeated without harm.

MLflow takes seconds to import, so it is imported when the first event is there, in the delivery's thread.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import psutil

from mvray.tracking.outbox import Away, Event, Refused, content_of
from mvray.tracking.redact import DATABASES
from mvray.tracking.sqlite_file import make_mlflow_tables, make_whole

STEP_ID, REUSED, HANDLE = "mvray.step_id", "mvray.reused", "mvray.handle"
HOST, PID, PROCESS_STARTED = "mvray.host", "mvray.pid", "mvray.process_started"

TRAINING_PAGES = "?workflowType=machine_learning"
"""Without this in the address, MLflow opens its pages for language models, where runs are hard to find."""

PARAM_CHARACTERS, TAG_CHARACTERS, KEY_CHARACTERS, DIGEST_CHARACTERS = 6000, 8000, 250, 36
PARAMS_PER_CALL, METRICS_PER_CALL = 100, 1000
SQLITE: Final = "sqlite:///"
FINAL = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")
"""MLflow's error codes that a repetition cannot mend."""
NOT_LET_IN = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")
"""Those that another password or permission mends."""


def _named_by_environment(uri: str) -> str:
    """A server's address without user and password, which become MLflow's variables: its errors name addresses."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return without_password(uri)


class MlflowStore:
    """An MLflow store, reached on first use. Taking an event a second time changes nothing."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: Any = None
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, str] = {}

    def _connect(self) -> Any:
        # MLflow takes these from variables alone. Its own retries would block for minutes; the delivery retries itself.
        for name, value in (
            ("HTTP_REQUEST_MAX_RETRIES", "1"),
            ("HTTP_REQUEST_TIMEOUT", "30"),
            ("DISABLE_TELEMETRY", "true"),
            ("SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ):
            os.environ.setdefault(f"MLFLOW_{name}", value)
        from mlflow.tracking import MlflowClient

        for noisy in ("mlflow", "alembic", "urllib3.connectionpool"):  # the delivery says it once
            logging.getLogger(noisy).setLevel(logging.ERROR)
        if self._uri.startswith(SQLITE):
            make_whole(Path(self._uri.removeprefix(SQLITE)), make_mlflow_tables)
        return MlflowClient(_named_by_environment(self._uri))

    def take(self, events: list[Event], files: Path) -> None:
        """Pass events of one kind and run on to MLflow. Raises Refused where repeating cannot help."""
        self._client = self._client or self._connect()
        from mlflow.exceptions import MlflowException

        try:
            self._take(events, events[0], files)
        except MlflowException as error:
            if error.error_code in FINAL:
                raise Refused(str(error)) from error
            if error.error_code in NOT_LET_IN:
                raise Away(not_let_in(self._uri, error.error_code == "PERMISSION_DENIED")) from error
            raise
        except OSError as error:  # files are sent by requests, which raises these
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status in (401, 403):
                raise Away(not_let_in(self._uri, status == 403)) from error
            raise
        except (AttributeError, KeyError, TypeError) as defect:  # ours or MLflow's; it would fail for ever
            raise Refused(repr(defect)) from defect

    def _take(self, events: list[Event], first: Event, files: Path) -> None:
        match first["kind"]:
            case "stale":
                self._close_stale()
            case "start":
                self._start(first)
            case "metrics":
                self._metrics(events)
            case "tags":
                for key, value in first["tags"].items():
                    self._client.set_tag(self._run(first), _key(key), _cut(value, TAG_CHARACTERS))
            case "data":
                self._data(first)
            case "file":
                self._file(first, files)
            case "end":
                self._client.set_terminated(self._run(first), first["status"], int(1000 * first["time_s"]))

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                self._experiments[name] = self._client.create_experiment(name, _artifacts_of(self._uri, name))
            else:
                if experiment.lifecycle_stage == "deleted":
                    self._client.restore_experiment(experiment.experiment_id)
                self._experiments[name] = experiment.experiment_id
        return self._experiments[name]

    def _run(self, event: Event) -> str:
        run_id = self._find(event["run"], event["experiment"])
        if run_id is None:
            raise Refused("the store has no such run")
        return run_id

    def _find(self, handle: str, experiment: str) -> str | None:
        # Every run carries its handle as a tag, so that a run whose creation was not confirmed is found.
        if handle not in self._runs:
            runs = self._client.search_runs([self._experiment(experiment)], f"tags.`{HANDLE}` = '{handle}'")
            if not runs:
                return None
            self._runs[handle] = runs[0].info.run_id
        return self._runs[handle]

    def _start(self, event: Event) -> None:
        from mlflow.entities import Param

        run_id = self._find(event["run"], event["experiment"])
        if run_id is None:
            tags = dict(event["tags"])
            if event["parent"]:
                tags["mlflow.parentRunId"] = self._run({**event, "run": event["parent"]})
            if tags.get(REUSED) == "true":
                tags |= self._original(tags[STEP_ID])
            tags = {_key(key): _cut(value, TAG_CHARACTERS) for key, value in tags.items()}
            start_ms = int(1000 * event["time_s"])
            created = self._client.create_run(self._experiment(event["experiment"]), start_ms, tags, event["name"])
            run_id = self._runs[event["run"]] = created.info.run_id
        params = [Param(_key(key), _cut(value, PARAM_CHARACTERS)) for key, value in event["params"].items()]
        for first in range(0, len(params), PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=params[first : first + PARAMS_PER_CALL])

    def _original(self, step_id: str) -> dict[str, str]:
        """Tags that link a reused step to the run that made it, if this store has that run."""
        finished = self._search(f"attributes.status = 'FINISHED' and tags.`{STEP_ID}` = '{step_id}'")
        computed = [run for run in finished if REUSED not in run.data.tags]
        if not computed:
            return {}
        info = computed[0].info
        link = f"#/experiments/{info.experiment_id}/runs/{info.run_id}{TRAINING_PAGES}"
        server = without_password(self._uri).rstrip("/") + "/" if self._uri.startswith("http") else ""
        note = f"Not computed again: made by [{info.run_name}]({link})."
        return {"mvray.made_by": info.run_id, "mvray.made_by_url": server + link, "mlflow.note.content": note}

    def _search(self, query: str) -> list[Any]:
        everywhere = [experiment.experiment_id for experiment in self._client.search_experiments()]
        return list(self._client.search_runs(everywhere, query, order_by=["attributes.start_time ASC"]))

    def _metrics(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        run_id = self._run(events[0])
        flat = [
            Metric(_key(key), value, int(1000 * event["measured_s"]), event["step"])
            for event in events
            for key, value in event["values"].items()
        ]
        for first in range(0, len(flat), METRICS_PER_CALL):
            self._client.log_batch(run_id, metrics=flat[first : first + METRICS_PER_CALL])

    def _data(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source, facts = json.dumps({"uri": event["source"]}), json.dumps(event["facts"])
        dataset = Dataset(event["name"], event["fingerprint"][:DIGEST_CHARACTERS], "mvray", source, profile=facts)
        context = [InputTag("mlflow.data.context", event["context"])]
        self._client.log_inputs(self._run(event), [DatasetInput(dataset, context)])

    def _file(self, event: Event, files: Path) -> None:
        path, content = Path(event["path"]), content_of(event, files)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise Refused(f"{event['path']!r} is no path below a run's artifacts")
        # MLflow names an artifact after its local file.
        target = files / f"{content.name}.named" / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(content, target)
        self._client.log_artifact(self._run(event), str(target), str(path.parent) if path.parent.name else None)
        shutil.rmtree(target.parent)

    def _close_stale(self) -> None:
        """Close as KILLED the runs that processes of this host left open when they died."""
        for run in self._search(f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'"):
            if not _alive(int(run.data.tags[PID]), float(run.data.tags[PROCESS_STARTED])):
                with _unless_forbidden():
                    self._kill(run, self._last_sign_ms(run))

    def _kill(self, run: Any, end_ms: int) -> None:
        run_id = run.info.run_id
        for child in self._search(f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{run_id}'"):
            self._kill(child, end_ms)
        self._client.set_terminated(run_id, "KILLED", end_ms)

    def _last_sign_ms(self, run: Any) -> int:
        history = self._client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
        return max([int(run.info.start_time), *(int(metric.timestamp) for metric in history)])


@contextlib.contextmanager
def _unless_forbidden() -> Iterator[None]:
    """Another person's runs may be closed to us: they are not worth holding up our own."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise


def not_let_in(uri: str, known: bool) -> str:
    """Why a server takes nothing from us: a user who may not (``known``), or one whom it does not know."""
    from mlflow.utils.credentials import read_mlflow_creds

    user, server = read_mlflow_creds().username, without_password(uri)
    if known:
        return f"The server at {server} does not let the user {user!r} log there. Ask who runs it for the permission."
    if not user:
        return (
            f"The server at {server} wants a user and a password, and none is given. "
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )
    return (
        f"The server at {server} refuses the user {user!r} with the password given. "
        "Correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
    )


def _alive(pid: int, started_s: float) -> bool:
    try:
        return bool(abs(psutil.Process(pid).create_time() - started_s) < 1)
    except psutil.NoSuchProcess:
        return False


def folder_of(sqlite_uri: str) -> Path:
    return Path(sqlite_uri.removeprefix(SQLITE)).resolve().parent


def _artifacts_of(uri: str, experiment: str) -> str | None:
    """Where an experiment's files go: beside an SQLite store; a server decides for itself."""
    folder = re.sub(r"[^\w.-]|^\.{1,2}$", "_", experiment)
    return str(folder_of(uri) / "mlartifacts" / folder) if uri.startswith(SQLITE) else None


def without_password(uri: str) -> str:
    """``uri`` without user and password, and without secrets in the query of a database's address."""
    if re.match(DATABASES, uri, re.IGNORECASE):
        uri = re.sub(r"(?<=://)[^:/]*:(?:(?:(?!\?\w+=).)*|[^@]*)@", "", uri)
        uri = re.sub(r"(?i)(?<=[?&])(\w*(?:pass|pwd|secret|token|odbc_connect)\w*)=[^&]*", r"\1=***", uri)
    return re.sub(r"(?<=://)[^/]*@", "", uri)


def _key(name: str) -> str:
    """``name`` with the characters that MLflow takes in keys."""
    return re.sub(r"[^\w. :/-]", "_", name, flags=re.ASCII)[:KEY_CHARACTERS]


def _cut(value: str, characters: int) -> str:
    note = f" ... (cut; {len(value)} characters in all)"
    return value if len(value) <= characters else value[: characters - len(note)] + note
