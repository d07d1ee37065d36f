"""Jobs on a cluster through Ray's job API: sent from anywhere, followed, listed, stopped.

The driver of a submitted job is `mvray run` on the cluster's head. It does not depend on the one who submitted it.
"""

from __future__ import annotations

import asyncio
import getpass
import http.client
import ipaddress
import logging
import os
import re
import secrets
import shlex
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mvray.cluster.code_archive import LOCK, CodeArchive
from mvray.cluster.connection import unheard
from mvray.errors import ClusterError, SettingError
from mvray.tracking import loopback, without_password

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
PORTS = {"https": 443, "ray": 10001}
CONNECT_S = 5.0
STOP_WAIT_S = 180
"""How long Ray lets a job that is stopped live on: its steps write a checkpoint (60 s), MLflow gets the rest (60 s)."""
POLL_S = 0.5
PAUSE_S = 3.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
HOW_TO_SEND_ONE = (
    "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token "
    "(`ray get-auth-token` on the head prints it)."
)


@dataclass(frozen=True)
class SubmittedJob:
    """A job on the cluster; times in seconds since 1970, 0 for one that has not begun or ended."""

    id: str
    job: str
    user: str
    state: str
    started_s: float
    ended_s: float
    exit_code: int | None
    message: str


def new_id(job: str) -> str:
    """A readable id that no other submission has: the job's name, the time, six random characters."""
    plain = re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-") or "job"
    return f"{plain[:40]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def entrypoint(words: Sequence[str]) -> str:
    """The shell command that the head runs. exec: the shell must not stand between Ray's signal and the command."""
    return f"exec python -m mvray.cli {shlex.join(words)}"


def environment(names: Sequence[str], environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Variables that go with a job: those in ``names``, and where MLflow is. Also lines to tell the user.

    Raises SettingError for a name that is not set.
    """
    missing = [name for name in names if name not in environ]
    if missing:
        raise SettingError(
            f"--env {missing[0]}: there is no such variable here; expected one that is set. Set it first."
        )
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **{name: environ[name] for name in names}}
    uri = without_password(environ.get("MLFLOW_TRACKING_URI", ""))
    if "MLFLOW_TRACKING_URI" in variables:
        return variables, []
    if uri.startswith(("http://", "https://")) and not _is_loopback(uri):
        return {**variables, "MLFLOW_TRACKING_URI": uri}, []
    if not uri:
        reason = "MLFLOW_TRACKING_URI is not set here: the cluster's own counts, if it has one."
    elif _is_loopback(uri):
        reason = f"{uri} leads to MLflow from this machine alone: it counts if the cluster is here and names no other."
    else:
        reason = "MLFLOW_TRACKING_URI is a store of this machine: the cluster's own counts, if it has one."
    return variables, [f"{reason} The job's log says where its run is."]


def beside(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the note beside the code says of MLflow at a loopback address, which only the head can judge.

    Its address may lead to the head's own MLflow, to nothing, or to the same one as here.
    """
    uri, machine = without_password(environ.get("MLFLOW_TRACKING_URI", "")), loopback()
    return {"mlflow": {"uri": uri, "loopback": machine}} if machine and _is_loopback(uri) else {}


def _is_loopback(uri: str) -> bool:
    """Whether ``uri`` leads to a server of whichever machine it is used on."""
    if not uri.startswith(("http://", "https://")):
        return False
    host = urlsplit(uri).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def use_token() -> None:
    """Send the token that Ray's variables name. Ray reads this when it is imported, which a job file may do."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


class JobClient:
    """The jobs of the cluster whose dashboard is at ``address``; without it, as Ray's variables say.

    Raises ClusterError where it does not answer, wants another token, or runs another Ray.
    """

    def __init__(self, address: str | None = None) -> None:
        configured = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
        self.address = configured or DEFAULT_ADDRESS
        use_token()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        with self._words():
            self.address = _dashboard(self.address)
        # In Ray's client these variables override the arguments.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        with self._words():
            import ray
            from ray.job_submission import JobSubmissionClient

            for name in ("ray.dashboard", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
                logging.getLogger(name).setLevel(logging.ERROR)
            self._client = JobSubmissionClient()
            server_version = self._client._server_ray_version
        if server_version != ray.__version__:
            raise ClusterError(
                f"The cluster at {self.address} runs Ray {server_version}, this machine has {ray.__version__}; "
                f"expected the same. Install Ray {server_version} here, or build the cluster's image from this {LOCK}."
            )

    def submit(
        self,
        archive: CodeArchive,
        words: Sequence[str],
        name: str,
        variables: Mapping[str, str],
        build_environment: bool = False,
    ) -> str:
        """Send the code and start ``mvray WORDS`` on the head. Returns the submission's id."""
        environment: dict[str, Any] = {"env_vars": dict(variables)}
        if build_environment:
            if LOCK not in archive.files:
                raise SettingError(f"--build-environment: {LOCK} is not among what git tracks; expected it at the top.")
            # The file itself and not its lines: with hashes they are more than fits into a process's environment.
            environment["uv"] = {
                "packages": ["-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/" + LOCK],
                "uv_pip_install_options": ["--require-hashes"],
            }
            environment["config"] = {"setup_timeout_seconds": 3600}
        about = {"job": name, "user": _user(), "commit": archive.commit, "options": shlex.join(words[2:])}
        with tempfile.TemporaryDirectory() as folder, self._words():
            file = Path(folder) / "code.zip"
            archive.write(file)
            submitted: str = self._client.submit_job(
                entrypoint=entrypoint(words),
                submission_id=new_id(name),
                runtime_env={**environment, "working_dir": str(file)},
                metadata=about,
            )
        return submitted

    def all(self) -> list[SubmittedJob]:
        """Every submitted job that the cluster remembers, newest first."""
        with self._words():
            jobs = [_submitted(job) for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: -job.started_s)

    def one(self, id_: str) -> SubmittedJob:
        """Raises SettingError where there is no such job."""
        with self._words(f"The cluster at {self.address} has no job {id_}; `mvray jobs` lists what it has."):
            return _submitted(self._client.get_job_info(id_))

    def log(self, id_: str) -> str:
        self.one(id_)
        with self._words():
            text: str = self._client.get_job_logs(id_)
        return text

    def follow(self, id_: str) -> Iterator[str]:
        """The log's text as it grows, until the job has ended; connects again where the connection breaks."""
        import aiohttp

        self.one(id_)
        shown, notice = 0, ""
        while True:
            passed = 0
            try:
                for text in _awaited(self._client.tail_job_logs(id_)):
                    fresh = text[max(0, shown - passed) :]  # a new connection begins at the log's first character
                    passed += len(text)
                    shown, notice = max(shown, passed), ""
                    if fresh:
                        yield fresh
                if self.one(id_).state in ENDED:
                    return
            except (OSError, RuntimeError, aiohttp.ClientError, Unreachable) as error:
                if not notice:
                    notice = f"[the connection is lost ({type(error).__name__}); trying again]\n"
                    yield notice
            time.sleep(PAUSE_S)

    def stop(self, id_: str) -> Iterator[SubmittedJob]:
        """Ask the job to stop; yields its state until it has ended."""
        job = self.one(id_)
        if job.state not in ENDED:
            with self._words():
                self._client.stop_job(id_)
        until = time.monotonic() + STOP_WAIT_S + 30
        while True:
            yield job
            if job.state in ENDED:
                return
            if time.monotonic() > until:
                raise ClusterError(f"{id_} is {job.state} {STOP_WAIT_S} s after it was asked to stop. Ask again.")
            time.sleep(POLL_S)
            job = self.one(id_)

    @contextmanager
    def _words(self, missing: str = "") -> Iterator[None]:
        """Turn errors of Ray's client into ClusterError, and a 404 into SettingError(``missing``) where that is set."""
        try:
            yield
        except (ClusterError, SettingError):
            raise
        except OSError as error:  # of requests, too
            raise Unreachable(_unreachable(self.address, str(error).partition("\n")[0])) from error
        except Exception as error:
            message = str(error).strip()
            first_line = message.partition("\n")[0]
            if type(error).__name__ == "AuthenticationError":
                raise ClusterError(_not_let_in(self.address, message)) from error
            if "No available agent" in message:
                raise ClusterError(
                    f"The head of the cluster at {self.address} has no agent that starts jobs; expected one. Does "
                    "another Ray on that machine hold its port? dashboard_agent.log in Ray's logs there says why it "
                    "ended; start Ray anew with --dashboard-agent-listen-port."
                ) from error
            if missing and "status code 404" in message:
                raise SettingError(missing) from error
            raise ClusterError(
                f"The cluster at {self.address} did not do it ({type(error).__name__}: {first_line}); "
                "expected Ray's dashboard there. Is the address right? `ray status` on the head says whether Ray runs."
            ) from error


class Unreachable(ClusterError):
    """Nobody answers at the cluster's address."""


def _dashboard(address: str) -> str:
    """The URL of the dashboard of the cluster at ``address``: what Ray's own job commands take, and HOST:PORT of the
    dashboard itself. Raises Unreachable, soon, where nobody listens."""
    _reach(address)
    if "://" not in address and address != "auto" and _speaks_http(address):
        return f"http://{address}"
    if "://" in address and not address.startswith("ray://"):
        return address
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # which overrides the argument in Ray's client
    with unheard("gcs_client.cc"), unheard("rpc_client.h"):  # what they warn of is also raised
        from ray.dashboard.utils import get_address_for_submission_client

        logging.getLogger("ray.client_builder").setLevel(logging.ERROR)
        url: str = get_address_for_submission_client(address)
    _reach(url)
    return url


def _speaks_http(address: str) -> bool:
    """Whether a dashboard answers at HOST:PORT, and not a cluster's GCS, whose addresses look the same."""
    connection = http.client.HTTPConnection(address, timeout=CONNECT_S)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _reach(address: str) -> None:
    """Raises Unreachable, soon, where nobody listens at ``address``; Ray's own client waits for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port or PORTS.get(parts.scheme, 8265)
    except ValueError:
        raise ClusterError(f"Found the address {address!r}; expected one as {DEFAULT_ADDRESS}.") from None
    if not parts.hostname or address == "auto":
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_S).close()
    except OSError as error:
        raise Unreachable(_unreachable(address, error.strerror or str(error))) from None


def _unreachable(address: str, reason: str) -> str:
    return (
        f"Nobody answers at {address} ({reason}); expected the dashboard of a Ray cluster. Is the head running, and "
        "the way to it open (`ray dashboard cluster.yaml`, or ssh -L 8265:127.0.0.1:8265)? Else name it: --address URL."
    )


def _not_let_in(address: str, message: str) -> str:
    was_sent = os.environ.get("RAY_AUTH_MODE") == "token"
    is_refused = any(word in message for word in ("403", "Forbidden", "invalid"))
    if is_refused or ("missing or incorrect" in message and was_sent):
        reason = "refused the token that was sent; expected the one that it was started with"
        return f"The cluster at {address} {reason}. {HOW_TO_SEND_ONE}"
    return f"The cluster at {address} asks for a token, and none was sent. {HOW_TO_SEND_ONE}"


def _awaited(texts: Any) -> Iterator[str]:
    """An async iterator's items, one by one."""

    async def following() -> str | None:
        text: str | None = await anext(texts, None)
        return text

    with asyncio.Runner() as runner:  # which ends in order on Ctrl-C, too
        while (text := runner.run(following())) is not None:
            yield text


def _user() -> str:
    """Who submits: a name, or the number of a user whom this machine does not know, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # before Python 3.13, and from then on
        return str(os.getuid())


def _submitted(details: Any) -> SubmittedJob:
    about = details.metadata or {}
    return SubmittedJob(
        id=details.submission_id,
        job=about.get("job", ""),
        user=about.get("user", ""),
        state=str(getattr(details.status, "value", details.status)),
        started_s=(details.start_time or 0) / 1000,
        ended_s=(details.end_time or 0) / 1000,
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )
