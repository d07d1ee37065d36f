"""A real PostgreSQL for tests: on loopback, with passwords, never as root."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import psycopg2
from nodes import free_ports
from processes import Service, start

OWNER, DATABASE = "mlflow", "mlflow"
DEBIAN = Path("/usr/lib/postgresql")


def binaries() -> Path | None:
    """The folder of PostgreSQL's server programs: on PATH, else the newest of Debian's."""
    if (program := shutil.which("initdb")) and (Path(program).resolve().parent / "postgres").exists():
        return Path(program).resolve().parent
    versions = [path for path in DEBIAN.glob("*/bin") if (path / "postgres").exists() and (path / "initdb").exists()]
    return max(versions, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)], default=None)


def _account() -> str | None:
    """Whom PostgreSQL runs as: None for this user; under root, which it refuses, postgres or nobody."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


class Postgres:
    """A database ``mlflow`` of the user ``mlflow`` below ``folder``, which PostgreSQL's user must be able to enter."""

    def __init__(self, folder: Path, root_password: str, password: str) -> None:
        programs = binaries()
        assert programs is not None, "the caller has looked"
        self._programs, self._folder, self._user = programs, folder, _account()
        self._data = folder / "postgres"
        self._root_password, self.password = root_password, password
        (self.port,) = free_ports(1)

    def start(self) -> Service:
        """Returns when the database can be used."""
        if not self._data.exists():
            self._make()
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": ""}
        command: list[str | Path] = [self._programs / "postgres", "-D", self._data]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # SIGINT is PostgreSQL's fast shutdown: open connections are closed, data is written.
        service = start("PostgreSQL", command, self._folder, ending=signal.SIGINT, user=self._user)
        try:
            service.wait_until(self._answers)
            self._make_database()
        except BaseException:
            service.end()
            raise
        return service

    @property
    def uri(self) -> str:
        """As SQLAlchemy has it, without the password."""
        return f"postgresql://{OWNER}@127.0.0.1:{self.port}/{DATABASE}"

    def _make(self) -> None:
        self._data.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", prefix="mvray-") as password:  # readable by its owner alone
            password.write(self._root_password)
            password.flush()
            if self._user:
                shutil.chown(self._data, self._user)
                shutil.chown(password.name, self._user)
            command: list[str | Path] = [self._programs / "initdb", "-D", self._data, "-U", "postgres", "-E", "UTF8"]
            command += ["--locale=C.UTF-8", "--auth=scram-sha-256", f"--pwfile={password.name}"]
            service = start("initdb", command, self._folder, user=self._user)
            assert service.process.wait(90) == 0, service.log.read_text()

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg2.OperationalError:  # it starts, or mends what a kill left
            return False
        return True

    def _connect(self) -> Any:
        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=self._root_password, dbname="postgres"
        )
        connection.autocommit = True  # CREATE DATABASE wants to be alone
        return connection

    def _make_database(self) -> None:
        connection = self._connect()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE ROLE {OWNER} LOGIN PASSWORD %s", (self.password,))
                cursor.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
        connection.close()
