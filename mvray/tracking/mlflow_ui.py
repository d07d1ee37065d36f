"""The run store seen from outside: whether it answers, and MLflow's own pages over it (`mvray ui`)."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

from mvray.errors import ClusterError, DataError, SettingError
from mvray.tracking.mlflow_store import SQLITE, TRAINING_PAGES, folder_of, not_let_in, without_password
from mvray.tracking.redact import redacted

LOOPBACK = ("127.0.0.1", "localhost")
PORTS_TRIED = 50
BACKEND_VARIABLE = "MLFLOW_BACKEND_STORE_URI"
"""Names the database to MLflow's server; no argument, as those are seen by all on the machine."""
SERVER_VARIABLES = {
    # Its job runners are for language models, keep a core each busy and outlive the server.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def ui(uri: str, host: str = "127.0.0.1", port: int = 5000) -> int:
    """Show the runs of the store ``uri`` until Ctrl-C, and return the exit code.

    ``port`` is where to start looking for a free one. Raises SettingError where ``host`` is not loopback, as
    there are no passwords, DataError where nothing was tracked yet and ClusterError where MLflow does not start.
    """
    if uri.startswith("http"):
        print(f"The runs are kept by a server: open {page(without_password(uri))}")
        return 0
    if host not in LOOPBACK:
        raise SettingError(
            f"--host {host}: without passwords MLflow is shown to this machine alone ({', '.join(LOOPBACK)}). Add "
            f"--server for one with users and passwords, or come by SSH: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE."
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("MLflow is starting ...", flush=True)
    try:
        with served(uri, host, port) as (server, address):
            print(f"The runs of {without_password(uri)} are shown at {page(address)} (Ctrl-C ends it)", flush=True)
            return server.wait()
    except KeyboardInterrupt:
        return 0


def page(address: str) -> str:
    """Where a person looks at the runs of the MLflow server at ``address``."""
    return f"{address.rstrip('/')}/#/experiments{TRAINING_PAGES}"


@contextmanager
def served(uri: str, host: str = "127.0.0.1", port: int = 5000) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """An MLflow server over the store ``uri``, from when it answers: its process and address. Ends with the block."""
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        raise DataError(f"Nothing has been tracked at {uri} yet. Run a job first: mvray run JOB.")
    port = free_port(host, port)
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            _command(uri, host, port),
            env={**os.environ, **SERVER_VARIABLES, BACKEND_VARIABLE: uri},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            address = f"http://{host}:{port}"
            _wait_for(server, address)
            if server.poll() is not None:
                log.seek(0)
                raise ClusterError(f"MLflow ended while it started:\n{redacted(log.read().decode()[-2000:])}")
            yield server, address
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _command(uri: str, host: str, port: int) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    if uri.startswith(SQLITE):
        command += ["--artifacts-destination", str(folder_of(uri) / "mlartifacts")]
    return [*command, "--host", host, "--port", str(port)]


def _wait_for(server: subprocess.Popen[bytes], address: str) -> None:
    """Until the server answers or has ended."""
    while server.poll() is None:
        try:
            check(address)
            return
        except ClusterError:
            time.sleep(0.3)


def free_port(host: str, first: int) -> int:
    """``first``, or the next port that nobody listens on."""
    for port in range(first, first + PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return port
            except OSError:
                continue
    raise ClusterError(
        f"Ports {first} to {first + PORTS_TRIED - 1} of {host} are all taken. Give another one with --port."
    )


def check(uri: str) -> str:
    """Say which MLflow store is at ``uri``. Raises ClusterError where none answers, or one that cannot be written."""
    if uri.startswith("http"):
        return _check_server(uri)
    if not uri.startswith(SQLITE):
        return f"{without_password(uri)} (a database; not tried)"
    folder = next(path for path in (folder_of(uri), *folder_of(uri).parents) if path.exists())
    if not os.access(folder, os.W_OK):
        raise ClusterError(f"{folder} cannot be written, so SQLite cannot keep runs there.")
    file = Path(uri.removeprefix(SQLITE))
    if not file.exists():
        return f"SQLite in {folder_of(uri)}, made by the first run"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=5)) as database:
            database.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        raise ClusterError(f"{file} cannot be written: {error}.") from error
    return f"SQLite in {folder_of(uri)}"


def _check_server(uri: str) -> str:
    address = without_password(uri).rstrip("/")
    try:
        with urlopen(f"{address}/version", timeout=5) as answer:  # noqa: S310  check() saw that it is http
            version = answer.read(100).decode(errors="replace").strip()
    except HTTPError as error:
        if error.code != 401:
            raise ClusterError(f"No MLflow server answers at {address}: {error}.") from error
        version = _version_for_us(uri)
    except (OSError, HTTPException) as error:
        raise ClusterError(f"No MLflow server answers at {address}: {error}.") from error
    if not re.match(r"\d+\.\d+", version):
        raise ClusterError(f"What answers at {address} is not MLflow; it says {version!r}.")
    return f"MLflow {version} at {address}"


def _version_for_us(uri: str) -> str:
    """The server's answer to our user and password, which are read where MLflow reads them."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        credentials_of: Any = get_default_host_creds  # MLflow's own has no types
        ask: Any = http_request
        answer = ask(
            credentials_of(uri.rstrip("/")), "/version", "GET", timeout=10, max_retries=0, raise_on_status=False
        )
    except MlflowException as error:
        raise ClusterError(f"No MLflow server answers at {without_password(uri)}: {error}.") from error
    if answer.status_code in (401, 403):
        raise ClusterError(not_let_in(uri, answer.status_code == 403))
    return str(answer.text[:100]).strip()
