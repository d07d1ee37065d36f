"""The images and the compose file, without a Docker here: their text, their packages, and the scripts they run."""

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

DOCKERFILE = (ROOT / "infra/Dockerfile").read_text()
SCHEMA = json.loads(gzip.decompress((Path(__file__).parent / "schemas/compose-2021.json.gz").read_bytes()))


def pins(path: str) -> dict[str, set[str]]:
    """Names in a lock file, and the versions (a name may have one for each Python)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", (ROOT / path).read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def stages() -> dict[str, str]:
    """The text of each stage, by name."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return {
        name: f"FROM {base}\n{text}" for base, name, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    }


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
    assert re.search(r"^ARG DETECTRON2=[0-9a-f]{40}$", DOCKERFILE, re.MULTILINE)
    assert "FORCE_CUDA=1" in stages()["detectron2"]


def test_the_compilers_cuda_is_that_of_torch() -> None:
    compiler = re.search(r"^ARG CUDA=nvidia/cuda:(\d+\.\d+)", DOCKERFILE, re.MULTILINE)
    assert compiler is not None
    (runtime,) = pins("infra/requirements.lock")["nvidia-cuda-runtime"]
    assert runtime.startswith(f"{compiler[1]}.")


def test_images_run_as_a_user_and_hold_no_build_tools() -> None:
    found = stages()
    assert {"gpu", "cpu", "mlflow"} <= set(found)
    for name in ("gpu", "cpu", "mlflow"):
        users = re.findall(r"^USER (\S+)$", found[name], re.MULTILINE)
        assert users == ["1000"], "a number: Kubernetes checks runAsNonRoot by it"
    for name in ("base", "mlflow"):
        assert "build-essential" not in found[name]
        assert "pip install" not in found[name]
    installed = set(found["base"].split("rm -rf")[0].split())
    assert {"rsync", "openssh-client"} <= installed, "Ray's launcher wants them"
    assert "wget" in installed, "KubeRay before 1.6 probes every pod with it, and none would ever be ready"
    assert "tini" in installed
    assert "--uid 1000" in found["base"]
    assert not re.search(r":latest\b", DOCKERFILE)
    assert all("--require-hashes" in line for line in DOCKERFILE.splitlines() if ".lock" in line and "uv pip" in line)


def test_what_the_dockerfile_copies_is_there_and_is_sent() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        copied |= set(line.split()[:-1])
    assert copied == sent
    assert all((ROOT / path).exists() for path in copied)


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "infra/compose.yaml").read_text()))


def test_compose_schema() -> None:
    given = compose()
    assert given.pop("name") == "mvray"
    jsonschema.Draft7Validator(SCHEMA).validate(given)
    given["services"]["s3"]["port"] = ["8333"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate(given)


def test_compose_is_closed_and_waits_for_what_it_needs() -> None:
    given = compose()
    services = given["services"]
    assert set(services) == {"postgres", "s3", "bucket", "mlflow"}
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(ports) == ["127.0.0.1:5000:5000", "127.0.0.1:8333:8333"]
    assert given["networks"]["inside"] == {"internal": True}
    assert services["postgres"]["networks"] == ["inside"]
    for name, service in services.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|JWT|^AWS_ACCESS_KEY_ID$", key):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?run python infra/secrets_env.py infra/.env first\}", value), (
                    name,
                    key,
                )
        for needed, how in service.get("depends_on", {}).items():
            check = services[needed]
            assert how["condition"] == "service_completed_successfully" or "test" in check["healthcheck"], name
    assert "HEALTHCHECK" in stages()["mlflow"]
    volumes = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert volumes == set(given["volumes"])


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
