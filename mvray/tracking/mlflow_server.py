"""MLflow's own server with users and passwords (`mvray ui --server`), over addresses that are given.

    FOLDER/             one such server; another start over it has the same users and passwords
      admin_password    of the user admin, readable by its owner alone
      secrets.json      the same and what signs forms, made once
      auth.ini          MLflow's settings of users
      address           where it answers, while it runs
      mlflow.db  users.db  artifacts/   runs, users and files, unless other addresses are given
      mlflow.log

It listens on loopback unless another ``--host`` is given. A killed server blocks nothing: the next start ends what it
left running.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil

from mvray.errors import ClusterError, DataError, SettingError
from mvray.tracking.mlflow_store import SQLITE, without_password
from mvray.tracking.mlflow_ui import BACKEND_VARIABLE, LOOPBACK, SERVER_VARIABLES, free_port, page
from mvray.tracking.redact import redacted
from mvray.tracking.sqlite_file import make_mlflow_tables, make_whole

ADMIN = "admin"
FIRST_START_S = 300.0
"""MLflow's first start makes a hundred tables; with a slow disk and busy cores that takes long."""
ENDING_S = 20.0
LOG_CHARACTERS = 2000
MARK = "MVRAY_SERVER_FOLDER"
"""In the environment of the server's processes, so that a later start finds those that a killed one left."""

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
    process: subprocess.Popen[bytes]
    log: Path

    def last_words(self) -> str:
        """The end of its log, without passwords."""
        text = redacted(self.log.read_text(errors="replace")[-LOG_CHARACTERS:].strip())
        return f"The end of {self.log}:\n{text}" if text else f"It wrote nothing to {self.log}."


def serve(folder: Path, host: str = "127.0.0.1", port: int = 5000, backend_store: str = "", artifacts: str = "") -> int:
    """Run the server of ``folder`` until Ctrl-C or SIGTERM; returns the exit code.

    ``port`` is where to start looking for a free one. ``backend_store`` is a database's address as SQLAlchemy has it,
    which keeps runs and users; ``artifacts`` is where pictures and files go, a folder or s3://..., with AWS's own
    conventions for keys. Both lie in ``folder`` where they are not given. Raises SettingError where
    ``backend_store`` has a password, ClusterError where something is missing or does not start.
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
        print("MLflow is starting; the first time takes a minute ...", flush=True)
        with running(folder, host, port, backend_store, artifacts) as server:
            print("\n".join(_introduction(server)), flush=True)
            server.process.wait()
            raise ClusterError(f"MLflow has ended. {server.last_words()}")
    except KeyboardInterrupt:
        return 0


@contextmanager
def running(
    folder: Path, host: str = "127.0.0.1", port: int = 5000, backend_store: str = "", artifacts: str = ""
) -> Iterator[Server]:
    """As `serve`: the server from when it answers; it ends with the block."""
    backend_store = _checked(backend_store)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with _alone(folder):
        _end_processes_of(folder)
        passwords = _passwords(folder)
        backend_store = backend_store or f"{SQLITE}{folder / 'mlflow.db'}"
        environ = _environ(folder, backend_store, passwords)
        _make_databases(folder, backend_store, environ)
        port = free_port(host, port)
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
        command += ["--host", host, "--port", str(port)]
        command += ["--artifacts-destination", artifacts or str(folder / "artifacts")]
        if "MLFLOW_WORKERS" not in os.environ:
            command += ["--workers", "1"]
        with _started(command, folder, environ) as (process, log):
            address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104  compared only
            server = Server(address, folder / "admin_password", process, log)
            _wait_until_healthy(server)
            (folder / "address").write_text(address)
            try:
                yield server
            finally:
                (folder / "address").unlink(missing_ok=True)


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
        message = error.read().decode(errors="replace").partition("Error:")[0].replace("\n", " ")[:300]
        raise ClusterError(
            f"The server at {address} did not make the user {name!r}: {error}. It says: {message}"
        ) from None
    except (OSError, HTTPException) as error:
        raise ClusterError(f"No server answers at {address}: {error}.") from error


def _introduction(server: Server) -> list[str]:
    return [
        f"MLflow keeps runs at {page(server.address)} (Ctrl-C ends it)",
        f"User {ADMIN}; its password is in {server.password_file}.",
        "Others get their own user: mvray ui --server --add-user NAME",
        "Jobs log there after:",
        f"    export MLFLOW_TRACKING_URI={server.address}",
        f"    export MLFLOW_TRACKING_USERNAME={ADMIN}",
        f'    export MLFLOW_TRACKING_PASSWORD="$(cat {server.password_file})"',
    ]


def _checked(backend_store: str) -> str:
    """The database's address: that of the option, where command lines show it, or the variable's."""
    if re.search("://[^@]*:[^@]*@", backend_store) or "***" in without_password(backend_store):
        raise SettingError(
            "Found a password in --backend-store; expected an address without one, as command lines are seen by "
            f"everyone on this machine. Set {BACKEND_VARIABLE} to the whole address instead, or give the password as "
            "the database's own tools take it (PostgreSQL: PGPASSWORD or ~/.pgpass)."
        )
    address = backend_store or os.environ.get(BACKEND_VARIABLE, "")
    modules = {"flask_wtf": "'mlflow[auth]'"}
    if re.match(r"postgres(ql)?(\+psycopg2)?://", address):
        modules["psycopg2"] = "psycopg2-binary"
    missing = [package for module, package in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ClusterError(
            f"A tracking server needs what is not installed here: {', '.join(missing)}. Install it: "
            f"pip install {' '.join(missing)}."
        )
    # SQLAlchemy 2.1 takes another driver unasked.
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", address)


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


def _passwords(folder: Path) -> dict[str, str]:
    """The admin's password and the key that signs forms, made at first use."""
    file = folder / "secrets.json"
    if not file.exists():
        _write_private(file, json.dumps({name: secrets.token_urlsafe(24) for name in ("admin", "flask")}))
    passwords: dict[str, str] = json.loads(file.read_text())
    if not (folder / "admin_password").exists():
        _write_private(folder / "admin_password", passwords["admin"] + "\n")
    return passwords


def _write_private(file: Path, text: str) -> None:
    """Write a file that its owner alone can read, whole or not at all."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    fresh.replace(file)


def _users_store(folder: Path, backend_store: str) -> str:
    """Where users are kept: in a given database itself, so that another machine over it knows them, too."""
    return f"{SQLITE}{folder / 'users.db'}" if backend_store.startswith(SQLITE) else backend_store


def _environ(folder: Path, backend_store: str, passwords: dict[str, str]) -> dict[str, str]:
    """The environment of `mlflow server`. Passwords are there or in files: command lines are seen by everyone."""
    uri = _users_store(folder, backend_store).replace("%", "%%")  # configparser's
    _write_private(folder / "auth.ini", AUTH_SETTINGS.format(uri=uri, admin=ADMIN))
    own = {
        BACKEND_VARIABLE: backend_store,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": passwords["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": passwords["flask"],
        **SERVER_VARIABLES,
        MARK: str(folder),
    }
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        own["MLFLOW_S3_ENDPOINT_URL"] = endpoint  # MLflow's name for it
    # A server is no client: what leads this shell to another server is not for it.
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING_")} | own


def _make_databases(folder: Path, backend_store: str, environ: dict[str, str]) -> None:
    """SQLite's files, whole; a database server keeps MLflow's half-made tables apart by itself."""
    if not backend_store.startswith(SQLITE):
        return

    def make_users(file: Path) -> None:
        # Its module starts the whole server when it is imported, so not in this process.
        command = [sys.executable, "-m", "mlflow.server.auth", "db", "upgrade", "--url", f"{SQLITE}{file}"]
        process = subprocess.run(command, env=environ, capture_output=True, text=True)
        if process.returncode:
            raise ClusterError(f"MLflow could not make {folder / 'users.db'}:\n{process.stderr[-LOG_CHARACTERS:]}")

    with ThreadPoolExecutor() as pool:  # seconds each, at the first start
        users = pool.submit(make_whole, folder / "users.db", make_users)
        make_whole(Path(backend_store.removeprefix(SQLITE)), make_mlflow_tables)
    users.result()


@contextmanager
def _started(
    command: list[str], folder: Path, environ: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The process of ``command`` and its log; ended in order with the block, or killed after 20 s."""
    log = folder / "mlflow.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C reaches mvray alone, which ends it in order
        )
    try:
        yield process, log
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            main = psutil.Process(process.pid)
            _end([main, *main.children(recursive=True)], ENDING_S)
        process.wait()


def _end_processes_of(folder: Path) -> None:
    """End what a killed server of this ``folder`` left running."""
    remaining = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == str(folder):
                remaining.append(process)
    _end(remaining, 5.0)


def _end(processes: list[psutil.Process], timeout_s: float) -> None:
    """Ask the processes to end; kill those that are there after ``timeout_s``."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=timeout_s)


def _wait_until_healthy(server: Server, timeout_s: float = FIRST_START_S, poll_s: float = 0.1) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if server.process.poll() is not None:
            raise ClusterError(f"MLflow ended while it started. {server.last_words()}")
        try:
            with urlopen(f"{server.address}/health", timeout=5) as answer:  # noqa: S310  our own server
                if answer.status == 200:
                    return
        except (OSError, HTTPException):
            time.sleep(poll_s)
    raise ClusterError(f"MLflow did not answer within {timeout_s:.0f} s. {server.last_words()}")


def _basic(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
