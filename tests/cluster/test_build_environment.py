"""`mvray submit --build-environment` on a head and a node, neither of which has made the environment before.

A package that nothing else needs stands for the lock file's 6.9 GiB, and an environment of Python that borrows all the
rest for the image's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import git
from nodes import Net, net_of_nodes

ROOT = Path(__file__).parents[2]
MVRAY = Path(sys.executable).parent / "mvray"
JOB = """
from mvray import Job
from needy import Needy
from toys import step_of


def job(tiny=False):
    return Job("needy", (step_of("", Needy(), epochs=1, workers=1),))
"""
NEEDY = """
from dataclasses import dataclass

from toys import Linear


@dataclass(frozen=True)
class Needy(Linear):
    def build(self, facts):
        import waitress  # which nothing has but the environment
        assert "runtime_resources" in waitress.__file__

        return super().build(facts)
"""
pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    image = tmp_path / "image"  # Ray copies all of it for an environment that it makes
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", image], check=True)
    (packages,) = image.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    with net_of_nodes(cpus=2, dashboard=True) as net:
        for number in (1, 2):
            path = f"{image / 'bin'}:{net.environ['PATH']}"
            net.start(number, prefix=(str(image / "bin/python"),), PATH=path)
        yield net


def test_every_node_makes_the_environment_and_is_waited_for(net: Net, drawings: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    shutil.copy(ROOT / "tests/toys.py", repository)
    for name, text in (("job.py", JOB), ("needy.py", NEEDY)):
        (repository / name).write_text(text)
    # One package of ours with its hashes, for every system.
    locked = (ROOT / "requirements.lock").read_text().partition("\nwaitress==")[2].partition("    #")[0]
    (repository / "requirements.lock").write_text("waitress==" + locked.replace("; sys_platform == 'win32' ", ""))
    git(repository, "init", "--quiet")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "jobs")
    options = ["--data", drawings, "--storage", tmp_path / "runs", "--build-environment", "--follow"]
    command = [str(part) for part in (MVRAY, "submit", "job.py", *options)]
    said = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False, timeout=600)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "Waiting for 2 nodes: where the environment of requirements.lock is not there yet" in said.stdout
    assert list((tmp_path / "runs").glob("toy-*/step.json"))
