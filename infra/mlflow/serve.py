"""MLflow's server as the images run it: PostgreSQL, S3, authentication. Settings are environment variables.

DATABASE_HOST, DATABASE_NAME, DATABASE_USER, DATABASE_PASSWORD and, where wanted, DATABASE_OPTIONS (``sslmode=require``)
name the database; ARTIFACTS is the place of artifacts, ``s3://bucket/mlflow``. MLFLOW_AUTH_ADMIN_USERNAME and
MLFLOW_AUTH_ADMIN_PASSWORD make the first administrator, MLFLOW_FLASK_SERVER_SECRET_KEY signs its forms, and
MLFLOW_SERVER_ALLOWED_HOSTS names the hosts under which people reach it. MLFLOW_HOST and MLFLOW_PORT are where it
listens, by default port 5000 of all the container's addresses; MLFLOW_WORKERS is the number of its processes, 1.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

WANTED = (
    "DATABASE_HOST",
    "DATABASE_NAME",
    "DATABASE_USER",
    "DATABASE_PASSWORD",
    "ARTIFACTS",
    "MLFLOW_AUTH_ADMIN_USERNAME",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
)
AUTH_SETTINGS = """\
[mlflow]
default_permission = EDIT
database_uri = {uri}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""
"""EDIT: an experiment is a job, and whoever runs it logs there. Deleting it stays with the one who made it."""


def database_uri(environ: dict[str, str]) -> str:
    """The address of the database, whatever letters its password has. SQLAlchemy 2.1 takes another driver unasked."""
    user, password = quote(environ["DATABASE_USER"], safe=""), quote(environ["DATABASE_PASSWORD"], safe="")
    options = f"?{environ['DATABASE_OPTIONS']}" if environ.get("DATABASE_OPTIONS") else ""
    return f"postgresql+psycopg2://{user}:{password}@{environ['DATABASE_HOST']}/{environ['DATABASE_NAME']}{options}"


def auth_config(environ: dict[str, str]) -> str:
    """MLflow's own settings of users; they lie in the same database, so that a new container knows them."""
    return AUTH_SETTINGS.format(uri=database_uri(environ).replace("%", "%%"))  # configparser's


def allowed_hosts(given: str) -> str:
    """The hosts as given and in lower case: clients send names so, MLflow compares letters, and AWS's have capitals."""
    hosts = [host.strip() for host in given.split(",")]
    return ",".join(dict.fromkeys([*hosts, *(host.lower() for host in hosts)]))


def main() -> None:
    """Becomes the server."""
    environ = dict(os.environ)
    missing = [name for name in WANTED if not environ.get(name)]
    if missing:
        sys.exit(f"The MLflow server wants these environment variables, which are unset: {', '.join(missing)}.")
    config = Path(tempfile.mkdtemp()) / "auth.ini"
    config.touch(mode=0o600)
    config.write_text(auth_config(environ))
    environ["MLFLOW_AUTH_CONFIG_PATH"] = str(config)
    environ["MLFLOW_BACKEND_STORE_URI"] = database_uri(environ)  # not an argument: those are seen by all on the machine
    environ.setdefault("MLFLOW_HOST", "0.0.0.0")  # noqa: S104  within a container
    environ.setdefault("MLFLOW_PORT", "5000")
    environ.setdefault("MLFLOW_WORKERS", "1")  # each imports MLflow anew, and the container has one core
    # Its job runners are for language models, keep a core each busy and outlive the server.
    environ |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    if "MLFLOW_SERVER_ALLOWED_HOSTS" in environ:
        environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = allowed_hosts(environ["MLFLOW_SERVER_ALLOWED_HOSTS"])
    for name in ("DATABASE_PASSWORD", "DATABASE_USER"):
        del environ[name]
    command = ["mlflow", "server", "--app-name", "basic-auth", "--artifacts-destination", environ["ARTIFACTS"]]
    os.execvpe(command[0], command, environ)  # noqa: S606


if __name__ == "__main__":
    main()
