"""Jobs on a real Ray head, through its job API, as a user submits, follows, lists and stops them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
from commands import git
from nodes import free_ports
from toys import Linear, step_of, task

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PLANTED = "planted-secret-9f3a"
EPOCHS = 60
JOB = f"""
from mvray import Job
from slow import Slow
from toys import step_of


def job(tiny=False):
    return Job("toys", (step_of("", Slow(dropout=0.2), epochs={EPOCHS}, checkpoint_steps=5, workers=2),))
"""
MINE_JOB = f"""
from mine import Mine
from mvray import Job
from toys import step_of


def job(tiny=False):
    narrow = step_of("", Mine(), "narrow", epochs={EPOCHS}, workers=2)
    wide = step_of("", Mine(), "wide", epochs={EPOCHS}, workers=2, cpus_per_worker=2)
    return Job("mine", (narrow, wide))
"""
MINE = """
import time
from dataclasses import dataclass

from toys import Linear


@dataclass(frozen=True)
class Mine(Linear):
    def build(self, facts):
        method = Linear(dropout=FACTOR * self.dropout).build(facts)
        method.register_forward_pre_hook(lambda *_: time.sleep(0.05))
        return method
"""
SLOW = '''
import time
from dataclasses import dataclass

from toys import Linear


@dataclass(frozen=True)
class Slow(Linear):
    """Its steps take long enough for a command to come in between."""

    def build(self, facts):
        method = super().build(facts)
        method.register_forward_pre_hook(lambda *_: time.sleep(0.05))
        return method
'''

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Head:
    """A Ray cluster of one machine, as `ray start` makes it: its dashboard's address and its process."""

    address: str
    gcs: str
    pid: int
    place: Path

    @property
    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "MLFLOW_"))}
        secrets = {"AWS_SECRET_ACCESS_KEY": PLANTED, "MLFLOW_TRACKING_PASSWORD": PLANTED}
        token = {"RAY_AUTH_TOKEN_PATH": str(self.place / "token"), "RAY_API_SERVER_ADDRESS": self.address}
        return {**kept, **secrets, **token}

    def mvray(self, *words: object, at: str = "repository", **environ: str) -> subprocess.CompletedProcess[str]:
        command = [str(word) for word in (BIN / "mvray", *words)]
        given = {"capture_output": True, "text": True, "timeout": 400, "cwd": self.place / at}
        return subprocess.run(command, env={**self.environ, **environ}, check=False, **given)

    def submit(self, *more: object, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.mvray("submit", "toys_job.py", "--data", self.place / "data", *more, **environ)

    def state(self, id_: str) -> str:
        (line,) = [line for line in self.mvray("jobs").stdout.splitlines() if line.startswith(id_)]
        return line.split()[1]

    def wait_for(self, there: Callable[[], object], id_: str) -> None:
        until = time.monotonic() + 300
        while not there():
            assert time.monotonic() < until, self.mvray("logs", id_).stdout
            time.sleep(0.1)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Iterator[Head]:
    place = tmp_path_factory.mktemp("submit")
    _repository(place / "repository", slow=SLOW, toys_job=JOB)
    shutil.copytree(drawings, place / "data")
    (place / "token").write_text("0123456789abcdef" * 4)
    # Ray's sockets lie below its folder, and their paths have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        (place / "ray").symlink_to(folder)
        process, address, gcs = _start(place, folder)
        try:
            until = time.monotonic() + 240
            while "block forever" not in (said := (place / "log").read_text()):
                assert process.poll() is None, said
                assert time.monotonic() < until, said
                time.sleep(0.2)
            yield Head(address, gcs, process.pid, place)
        finally:
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                each.kill()  # SIGTERM drains the node first, for up to half a minute
            process.wait(timeout=60)


def _start(place: Path, folder: str) -> tuple[subprocess.Popen[bytes], str, str]:
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    ports = dict(zip((*names, "dashboard-agent-grpc-port"), free_ports(5), strict=True))
    options = [part for name, port in ports.items() for part in (f"--{name}", str(port))]
    options += ["--temp-dir", folder, "--dashboard-host", "127.0.0.1", "--num-cpus", "4"]
    options += ["--object-store-memory", str(100 << 20), "--disable-usage-stats"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environ |= {"PYTHONPATH": str(ROOT), "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}
    environ |= {"RAY_AUTH_TOKEN_PATH": str(place / "token"), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = [BIN / "ray", "start", "--head", "--block", *options]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environ, start_new_session=True)
    return process, f"http://127.0.0.1:{ports['dashboard-port']}", f"127.0.0.1:{ports['port']}"


def _repository(root: Path, **files: str) -> None:
    """Python files that git tracks, and a file that it does not."""
    root.mkdir()
    shutil.copy(ROOT / "tests" / "toys.py", root)
    for name, text in files.items():
        (root / f"{name}.py").write_text(text)
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "jobs")
    (root / "untracked.txt").write_text(PLANTED)


def test_stopped_and_submitted_again_it_ends_as_if_never_stopped(
    head: Head, drawings: Path, two_ranks: Callable[..., list[str]], tmp_path: Path
) -> None:
    """On two workers that Ray Train started on the cluster, which was joined."""
    storage = head.place / "runs"
    sent = head.submit("--storage", storage)
    id_ = sent.stdout.strip()
    assert re.fullmatch(r"toys-job-\d{8}-\d{6}-[0-9a-f]{6}", id_), sent.stderr
    assert "Sending 3 files, 0.0 MiB, of commit " in sent.stderr
    assert "Not sent, because git does not track them: untracked.txt." in sent.stderr
    assert f"mvray stop {id_}" in sent.stderr
    said = _interrupted(head, id_)
    assert f"{id_} goes on without this command." in said
    assert f"mvray logs {id_} --follow" in said
    head.wait_for(lambda: list(storage.glob("toy-*/checkpoints/*/complete.json")), id_)
    assert head.state(id_) == "RUNNING"
    stopped = head.mvray("stop", id_)
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stderr.splitlines()[-1].startswith(f"{id_}: STOPPED. The same `mvray submit` goes on")
    assert head.mvray("stop", id_).stderr == f"{id_} had ended before: STOPPED.\n"
    said = head.mvray("logs", id_).stdout
    assert "mvray: interrupted. The same command goes on where it stopped." in said
    assert "Traceback" not in said
    (folder,) = storage.glob("toy-*")
    assert not (folder / "step.json").exists()
    before = max(folder.glob("checkpoints/*/complete.json"))
    written = before.stat().st_mtime_ns
    # The weights of an uninterrupted run, by two ranks without Ray.
    whole = task(step_of(drawings, Linear(dropout=0.2), epochs=EPOCHS, workers=2), tmp_path)
    assert two_ranks(whole) == ["done", "done"]

    again = head.submit("--storage", storage, "--follow")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "toys: 1 steps, 0 finished before, 1 to do." in again.stdout
    assert f"Tracked in MLflow at sqlite:///{storage}/mlflow.db." in again.stdout
    assert again.stderr.splitlines()[-1].endswith(": SUCCEEDED")
    assert not before.exists() or before.stat().st_mtime_ns == written  # it is not made again
    alone = tmp_path / Path(whole.folder).name
    assert (folder / "weights.safetensors").read_bytes() == (alone / "weights.safetensors").read_bytes()
    manifest = json.loads((folder / "step.json").read_text())
    assert manifest["git_commit"] == git(head.place / "repository", "rev-parse", "HEAD")


def test_two_users_at_once_get_what_each_would_get_alone(
    head: Head, drawings: Path, two_ranks: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Other code and settings under the same names, one storage, room for both narrow steps, and for one wide one."""
    storage, factors, settings = head.place / "shared", {"ada": 1, "eve": 2}, {"ada": 0.2, "eve": 0.3}
    for user, factor in factors.items():
        _repository(head.place / user, mine_job=MINE_JOB, mine=MINE.replace("FACTOR", str(factor)))

    def send(user: str) -> str:
        words = ["--data", head.place / "data", "--storage", storage]
        words += [part for step in ("narrow", "wide") for part in ("--set", f"{step}.method.dropout={settings[user]}")]
        said = head.mvray("submit", "mine_job.py", *words, at=user, USER=user, LOGNAME=user)
        assert said.returncode == 0, said.stderr
        return said.stdout.strip()

    with ThreadPoolExecutor() as both:
        sent = dict(zip(factors, both.map(send, factors), strict=True))
    ended = {user: head.mvray("logs", id_, "--follow") for user, id_ in sent.items()}
    listed = {line.split()[0]: line.split()[1:4] for line in head.mvray("jobs").stdout.splitlines()}
    commits, weights = {}, {}
    for user, id_ in sent.items():
        assert ended[user].returncode == 0, ended[user].stdout
        assert listed[id_] == ["SUCCEEDED", "mine_job", user]
        dropout = factors[user] * settings[user]
        alone = task(step_of(drawings, Linear(dropout=dropout), epochs=EPOCHS, workers=2), tmp_path / user)
        assert two_ranks(alone) == ["done", "done"]
        weights[user] = (Path(alone.folder) / "weights.safetensors").read_bytes()
        commits[user] = git(head.place / user, "rev-parse", "HEAD")
    assert weights["ada"] != weights["eve"]
    found = [(json.loads(file.read_text()), file.parent) for file in storage.glob("*/step.json")]
    assert sorted(step["name"] for step, _ in found) == ["narrow", "narrow", "wide", "wide"]
    assert {step["git_commit"] for step, _ in found} == set(commits.values())
    for step, folder in found:
        user = next(user for user, commit in commits.items() if commit == step["git_commit"])
        assert (folder / "weights.safetensors").read_bytes() == weights[user], (user, step["name"])
    said = "".join(each.stdout for each in ended.values())
    assert "wide: waits for " in said
    assert "narrow: waits" not in said


def test_other_versions_are_refused(head: Head) -> None:
    repository = head.place / "repository"
    (repository / "requirements.lock").write_text("ray==2.60.0\nnumpy==1.0.0\ntorch==2.0.1\n")
    git(repository, "add", "requirements.lock")
    storage, tunnel = head.place / "other", "http://127.0.0.1:1"
    sent = head.submit("--storage", storage, "--follow", MLFLOW_TRACKING_URI=tunnel)
    git(repository, "rm", "--quiet", "--force", "requirements.lock")
    assert sent.returncode == 2, sent.stdout
    assert sent.stdout.count("mvray: ") == 1
    assert "The cluster's environment is another one: the head, where this runs has numpy 2." in sent.stdout
    assert "(expected 1.0.0)" in sent.stdout
    assert "Expected the versions of requirements.lock on every node." in sent.stdout
    assert "(exit code 2)" in sent.stderr
    # The cluster is on this machine and has no MLflow of its own, so an address of this machine counts there.
    assert f"{tunnel} leads to MLflow from this machine alone" in sent.stderr
    assert f"Tracked in MLflow at {tunnel}." in sent.stdout


def _interrupted(head: Head, id_: str) -> str:
    """Follow the job until it begins to work, then press Ctrl-C; what is said then."""
    command = [str(BIN / "mvray"), "logs", id_, "--follow"]
    following = subprocess.Popen(command, env=head.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    head.wait_for(lambda: "1 to do" in following.stdout.readline(), id_)
    following.send_signal(signal.SIGINT)
    _, said = following.communicate(timeout=60)
    assert following.returncode == 130
    return said


def test_what_the_cluster_does_not_let_in(head: Head) -> None:
    wrong = head.mvray("jobs", RAY_AUTH_TOKEN="wrong" * 10)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "refused the token that was sent" in wrong.stderr
    none = head.mvray("jobs", RAY_AUTH_TOKEN_PATH="")
    assert (none.returncode, none.stderr.count("\n")) == (2, 1)
    assert "asks for a token, and none was sent. Set RAY_AUTH_MODE=token" in none.stderr
    unknown = head.mvray("logs", "nothing")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "has no job nothing; `mvray jobs` lists" in unknown.stderr


def test_addresses_are_what_ray_takes_them_for(head: Head) -> None:
    """`ray job` takes URLs of dashboards, HOST:PORT of a GCS, and auto; a dashboard's HOST:PORT is a courtesy."""
    # Of a cluster that listens on this machine's loopback alone, and is not the only one here.
    own = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_TMPDIR": str(head.place), "RAY_API_SERVER_ADDRESS": ""}
    dashboard = head.address.removeprefix("http://")
    for address in (head.address, dashboard, head.gcs, "auto"):
        listed = head.mvray("jobs", "--address", address, **own)
        assert (listed.returncode, listed.stdout.split()[:2]) == (0, ["ID", "STATE"]), listed.stderr
        assert head.mvray("jobs", **{**own, "RAY_ADDRESS": address}).stdout == listed.stdout
    none = head.mvray("jobs", "--address", head.gcs, **{**own, "RAY_AUTH_TOKEN_PATH": ""})
    assert (none.returncode, none.stderr.count("\n")) == (2, 1)  # not a word of Ray's core
    assert "asks for a token, and none was sent" in none.stderr
    wrong = head.mvray("jobs", "--address", head.gcs, **own, RAY_AUTH_TOKEN="wrong" * 10)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "refused the token that was sent" in wrong.stderr


def test_it_listens_on_this_machine_alone(head: Head) -> None:
    """All of `ray start`, by the one variable that SECURITY.md names."""
    node = psutil.Process(head.pid)
    listening = {
        (process.name(), connection.laddr.ip.removeprefix("::ffff:"))
        for process in (node, *node.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {name for name, _ in listening} >= {"gcs_server", "raylet"}
    assert {ip for _, ip in listening} == {"127.0.0.1"}


def test_no_secret_is_found_anywhere(head: Head) -> None:
    """The last test: what all of the others left, in the storage, MLflow's store, Ray's logs and its list of jobs."""
    token = {"Authorization": f"Bearer {(head.place / 'token').read_text()}"}
    listed = requests.get(f"{head.address}/api/jobs/", headers=token, timeout=30).text
    assert "toys_job.py" in listed
    kept = [head.place / name for name in ("runs", "other", "shared", "ray")]
    files = [file for place in kept for file in place.resolve().rglob("*") if file.is_file()]
    assert any(file.name == "mlflow.db" for file in files)
    assert any(file.name.startswith("job-driver-toys-job-") for file in files)
    assert not any(file.name == "untracked.txt" for file in files)
    for found in (listed.encode(), *(file.read_bytes() for file in files)):
        assert PLANTED.encode() not in found
        assert token["Authorization"].encode() not in found
