"""PostgreSQL for the server: made on first use, on loopback, with passwords, never as root."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psutil

from mvray.errors import ClusterError
from mvray.tracking.server.processes import Service, answers, end_one, free_ports, start

DATABASES = ("mlflow", "mlflow_auth")
OWNER = "mlflow"
DEBIAN = Path("/usr/lib/postgresql")
TIMEOUT_S = 90.0


def binaries() -> Path | None:
    """The folder of PostgreSQL's server programs: on PATH, else the newest of Debian's."""
    if (found := shutil.which("initdb")) and (Path(found).resolve().parent / "postgres").exists():
        return Path(found).resolve().parent
    versions = [path for path in DEBIAN.glob("*/bin") if (path / "postgres").exists() and (path / "initdb").exists()]
    return max(versions, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)], default=None)


def account(folder: Path) -> str | None:
    """Whom PostgreSQL runs as: None for this user; under root, which it refuses, postgres or nobody.

    Raises ClusterError where that user cannot reach ``folder``.
    """
    if os.geteuid() != 0:
        return None
    user = next((name for name in ("postgres", "nobody") if _known(name)), None)
    if user is None:
        raise ClusterError("PostgreSQL refuses to run as root, and there is no user postgres or nobody. Add one.")
    ids = pwd.getpwnam(user)
    for path in reversed(folder.parents):
        if not _may_pass(path, ids.pw_uid, ids.pw_gid):
            raise ClusterError(
                f"PostgreSQL refuses to run as root, and the user {user}, as whom it runs then, may not enter {path}. "
                "Name a folder that it can reach with --folder, as /srv/mlflow-server."
            )
    return user


def _known(user: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False


def _may_pass(path: Path, uid: int, gid: int) -> bool:
    about = path.stat()
    bit = 0o100 if about.st_uid == uid else 0o010 if about.st_gid == gid else 0o001
    return bool(about.st_mode & bit)


class Postgres:
    """The databases below ``folder``/postgres. ``root_password`` and ``password`` are those of postgres and mlflow."""

    def __init__(self, folder: Path, root_password: str, password: str) -> None:
        found = binaries()
        assert found is not None, "the caller has looked"
        self._programs, self._folder, self._user = found, folder, account(folder)
        self._data = folder / "postgres"
        self._root_password, self._password = root_password, password
        self.port = 0

    def start(self) -> Service:
        """Start it and make what is missing; returns when both databases can be used."""
        if not self._data.exists():
            self._make()
        self._end_left()
        (self.port,) = free_ports(1)
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": ""}
        command: list[str | Path] = [self._programs / "postgres", "-D", self._data]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # SIGINT is PostgreSQL's fast shutdown: open connections are closed, data is written.
        service = start("PostgreSQL", command, self._folder, ending=signal.SIGINT, user=self._user)
        try:
            service.wait_until(self._ready, TIMEOUT_S)
            self._make_databases()
        except BaseException:
            service.end()
            raise
        return service

    def uri(self, database: str) -> str:
        """As SQLAlchemy has it, with the driver named; without the password, which `password_file` has."""
        return f"postgresql+psycopg2://{OWNER}@127.0.0.1:{self.port}/{database}"

    def password_file(self) -> str:
        """The content of a PGPASSFILE for `uri`."""
        return f"127.0.0.1:*:*:{OWNER}:{self._password}\n"

    def _make(self) -> None:
        # Under another name until it is whole: one that was ended in the middle is made again.
        fresh = self._folder / "postgres.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", prefix="mvray-") as password:  # readable by its owner alone
            password.write(self._root_password)
            password.flush()
            if self._user:
                shutil.chown(fresh, self._user)
                shutil.chown(password.name, self._user)
            command: list[str | Path] = [
                self._programs / "initdb",
                "-D",
                fresh,
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
            ]
            command += ["--auth=scram-sha-256", f"--pwfile={password.name}"]
            service = start("initdb", command, self._folder, user=self._user)
            if service.process.wait(TIMEOUT_S) != 0:
                raise ClusterError(f"PostgreSQL's initdb failed. {service.last_words()}")
        fresh.rename(self._data)

    def _end_left(self) -> None:
        """End a PostgreSQL that a killed server left, and forget one that is gone; nobody else uses this folder."""
        file = self._data / "postmaster.pid"
        if not file.exists():
            return
        pid = int(file.read_text().split()[0])
        with contextlib.suppress(psutil.Error):
            if str(self._data) in " ".join(psutil.Process(pid).cmdline()):
                end_one(pid, signal.SIGINT)
        file.unlink(missing_ok=True)  # its number may be another process's by now, for which PostgreSQL would not start

    def _ready(self) -> bool:
        import psycopg2  # type: ignore[import-untyped,unused-ignore]

        if not answers(self.port):
            return False
        try:
            self._connect().close()
        except psycopg2.OperationalError as error:
            if "password authentication failed" not in str(error):
                return False  # it starts, or mends what a kill left
            raise ClusterError(f"PostgreSQL does not take its own password: {str(error).strip()}") from error
        return True

    def _connect(self) -> Any:
        import psycopg2  # type: ignore[import-untyped,unused-ignore]

        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=self._root_password, dbname="postgres"
        )
        connection.autocommit = True  # CREATE DATABASE wants to be alone
        return connection

    def _make_databases(self) -> None:
        connection = self._connect()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (OWNER,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE ROLE {OWNER} LOGIN PASSWORD %s", (self._password,))
            for database in DATABASES:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,))
                if cursor.fetchone() is None:
                    cursor.execute(f"CREATE DATABASE {database} OWNER {OWNER}")
        connection.close()


def installed() -> str:
    """PostgreSQL's version, for people; "" where it is not installed."""
    found = binaries()
    if found is None:
        return ""
    return subprocess.run([found / "postgres", "--version"], capture_output=True, text=True, check=True).stdout.strip()
