"""The images' packages, the compose file and the scripts that they run, without a Docker here."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import jsonschema
import psutil
import pytest
import yaml
from account import ROOT
from nodes import free_ports

SCHEMA = json.loads(gzip.decompress((Path(__file__).parent / "schemas/compose-2021.json.gz").read_bytes()))


def pins(path: str) -> dict[str, set[str]]:
    """Names in a lock file, and the versions (a name may have one for each Python)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", (ROOT / path).read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize("lock", ["infra/requirements.lock", "infra/mlflow/requirements.lock"])
def test_images_have_the_versions_that_are_tested(lock: str) -> None:
    """After a change of requirements.lock the images' are made again: infra/README.md has the command."""
    tested, image = pins("requirements.lock"), pins(lock)
    assert image
    assert {name: versions for name, versions in image.items() if not versions <= tested.get(name, set())} == {}
    assert not {"pytest", "moto", "cfn-lint", "ruff", "mypy", "hdbscan"} & set(image)
    assert "--hash=sha256:" in (ROOT / lock).read_text()


def test_every_dependency_is_in_the_image() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    names = {re.split(r"[\[<>=!~ ]", line)[0] for line in wanted}
    assert names <= set(pins("infra/requirements.lock"))
    assert {"mlflow", "psycopg2-binary", "boto3"} <= set(pins("infra/mlflow/requirements.lock"))


def test_detectron2_changes_nothing_that_mvray_has_but_setuptools() -> None:
    """Its compiled half is built beside them; it still imports pkg_resources, which newer setuptools do not have."""
    image, more = pins("infra/requirements.lock"), pins("infra/detectron2/requirements.lock")
    changed = {name for name, versions in more.items() if name in image and not versions <= image[name]}
    assert changed == {"setuptools"}
    assert "torch" not in more


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "infra/compose.yaml").read_text()))


def test_compose_schema() -> None:
    given = compose()
    assert given.pop("name") == "mvray"
    jsonschema.Draft7Validator(SCHEMA).validate(given)
    given["services"]["s3"]["port"] = ["8333"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate(given)


def test_compose_is_reached_from_this_machine_alone() -> None:
    settings = compose()
    ports = [port for service in settings["services"].values() for port in service.get("ports", [])]
    assert sorted(ports) == ["127.0.0.1:5000:5000", "127.0.0.1:8333:8333"]
    assert settings["networks"]["inside"] == {"internal": True}
    assert settings["services"]["postgres"]["networks"] == ["inside"]


@pytest.mark.slow
def test_the_s3_server_of_compose_shows_others_its_keys_port_alone(tmp_path: Path) -> None:
    """The command and the variables of compose.yaml, on other ports: the master gives tokens to whoever reaches it."""
    service = compose()["services"]["s3"]
    parts = ("master", "volume", "filer", "s3")
    names = [f"-{part}.port{kind}" for part in parts for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    moved = [line for line in service["command"] if not line.startswith(("-s3.port=", "-dir="))]
    command = [
        *moved,
        f"-dir={tmp_path}",
        "-master.telemetry=false",
        *(f"{name}={port}" for name, port in ports.items()),
    ]
    environ = {name: f"of-{name}" for name in service["environment"]}
    with (tmp_path / "log").open("wb") as log:
        weed = subprocess.Popen(
            [Path(sys.executable).parent / "weed", *command], env={**os.environ, **environ}, stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + 90
        while status(f"http://127.0.0.1:{ports['-s3.port']}/healthz") != 200:
            assert weed.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.2)
        listening = [c.laddr for c in psutil.Process(weed.pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert {laddr.port for laddr in listening} <= set(ports.values())
        elsewhere = {laddr.port for laddr in listening if laddr.ip != "127.0.0.1"}
        assert elsewhere == {ports["-s3.port"], ports["-s3.port.grpc"]}
        assert status(f"http://127.0.0.1:{ports['-s3.port']}/") == 403
        of = {part: f"http://127.0.0.1:{ports[f'-{part}.port']}" for part in parts}
        for part, method, path in [
            ("master", "GET", "/col/delete?collection=mvray"),
            ("master", "GET", "/dir/assign?collection=mvray"),
            ("master", "POST", "/submit"),
            ("filer", "DELETE", "/buckets/mvray?recursive=true"),
            ("filer", "POST", "/buckets/mvray/x"),
            ("volume", "DELETE", "/1,01637037d6"),
            ("volume", "POST", "/1,01637037d6"),
        ]:
            assert status(of[part] + path, method) in (401, 404), (part, method, path)
        with grpc.insecure_channel(f"127.0.0.1:{ports['-s3.port.grpc']}") as channel:
            ask = channel.unary_unary("/messaging_pb.SeaweedS3IamCache/ListPolicies")
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                ask(b"", timeout=20)
    finally:
        weed.kill()  # its data goes too; ending in order takes it half a minute
        weed.wait()


def status(address: str, method: str = "GET") -> int:
    """What is answered there; 0 where nothing is."""
    try:
        with urlopen(Request(address, method=method), timeout=20) as answer:  # noqa: S310  our own server
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_secrets_are_drawn_once(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    command = [sys.executable, ROOT / "infra/secrets_env.py", path]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    drawn = dict(line.split("=", 1) for line in text.splitlines())
    wanted = set(re.findall(r"\$\{([A-Z_]+):\?", (ROOT / "infra/compose.yaml").read_text()))
    assert set(drawn) == wanted
    assert len(set(drawn.values())) == len(drawn)
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 2
    assert "stays as it is" in again.stderr
    assert path.read_text() == text
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/infra/.env" in ignored
    assert "/cluster.local.yaml" in ignored


def serve() -> ModuleType:
    spec = importlib.util.spec_from_file_location("infra_serve", ROOT / "infra/mlflow/serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_any_password_reaches_the_database(tmp_path: Path) -> None:
    import configparser

    from sqlalchemy import make_url

    environ = {
        "DATABASE_HOST": "db:5432",
        "DATABASE_NAME": "mlflow",
        "DATABASE_USER": "m@x",
        "DATABASE_PASSWORD": "a/b:c@d%40e ?#",
        "DATABASE_OPTIONS": "sslmode=require",
    }
    config = configparser.ConfigParser()
    config.read_string(serve().auth_config(environ))
    for address in (serve().database_uri(environ), config["mlflow"]["database_uri"]):
        url = make_url(address)
        assert (url.username, url.password, url.host) == ("m@x", environ["DATABASE_PASSWORD"], "db")
        assert url.query == {"sslmode": "require"}


def test_the_server_says_what_is_unset() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "infra/mlflow/serve.py"], env={}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "DATABASE_PASSWORD" in done.stderr
    assert "Traceback" not in done.stderr
