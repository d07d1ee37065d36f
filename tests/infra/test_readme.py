"""infra/README.md walked from an empty account to the first job and down again.

Its blocks run one after the other in one shell, whose programs are stand-ins that write down how they were called. What
was called is then held against the real programs' own options, the stack's outputs and the templates' placeholders.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from account import ROOT, Stack, script

pytestmark = pytest.mark.slow  # a shell and many programs

README = (ROOT / "infra/README.md").read_text()
PROGRAMS = ("aws", "docker", "git", "kubectl", "mvray", "python", "ray")
STAND_IN = f"""#!{sys.executable}
import json, os, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "python" and words[0] == "-c":
    os.execv(sys.executable, [name, *words])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([name, *words]) + "\\n")
text = " ".join(words)
if "get-secret-value" in text:
    print('{{"password": "the-password"}}' if "MlflowAdminSecret" in text else "the-token")
elif "describe-stacks" in text:
    print("first second" if "OperatorPolicies" in text else "out-" + text.split("OutputKey==")[1].split("'")[1])
elif name == "kubectl" and "secret mvray " in text:
    print("dGhlLXRva2Vu")
elif name == "git":
    print("0123456789ab")
"""


def blocks(heading: str) -> str:
    """The commands below a heading, in order."""
    section = re.split(rf"^## {heading}\n", README, flags=re.MULTILINE)[1].split("\n## ")[0]
    return "\n".join(re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the steps were walked: on AWS, then on Kubernetes in the same shell."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / ".venv/bin").mkdir(parents=True)
    for name in PROGRAMS:
        (folder / ".venv/bin" / name).write_text(STAND_IN)
        (folder / ".venv/bin" / name).chmod(0o755)
    up, down = blocks("From an empty AWS account to the first job").split("ray down")
    text = "\n".join(["set -eu", up, blocks("Kubernetes"), f"ray down{down}"])
    path = f"{folder}/.venv/bin:{os.environ['PATH']}"
    environ = {"PATH": path, "HOME": str(folder), "CALLS": str(folder / "calls")}
    done = subprocess.run(["bash", "-c", text], cwd=folder, env=environ, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def calls(home: Path, *start: str) -> Iterator[list[str]]:
    """The words of every call that begins so."""
    for line in (home / "calls").read_text().splitlines():
        words = json.loads(line)
        if words[: len(start)] == list(start):
            yield words


def test_every_output_is_one_of_the_stack(home: Path, stack: Stack) -> None:
    asked = {words[-1].split("'")[1] for words in calls(home, "aws", "cloudformation", "describe-stacks")}
    assert asked >= {"Bucket", "Repository", "TrackingUri", "OperatorPolicies"}
    assert asked <= set(stack.outputs)


def test_the_stack_takes_the_parameters_and_the_templates_the_values(home: Path, stack: Stack) -> None:
    deployed = [
        words[words.index("--parameter-overrides") + 1 :] for words in calls(home, "aws", "cloudformation", "deploy")
    ]
    given = [pair.split("=")[0] for pairs in deployed for pair in pairs]
    assert given == ["SshCidr", "MlflowTag"]
    assert set(given) <= set(stack.template["Parameters"])
    fill = script("fill")
    filled = list(calls(home, "python", "infra/fill.py"))
    assert [words[2] for words in filled] == ["cluster.yaml", "infra/kubernetes/raycluster.yaml"]
    for words in filled:
        own = {words[n + 1].split("=")[0] for n, word in enumerate(words) if word == "--set"}
        assert set(fill.left_in((ROOT / words[2]).read_text())) <= {*stack.outputs, *own, "Region"}


def test_the_images_are_those_that_are_taken(home: Path) -> None:
    built = [(words[words.index("--target") + 1], words[-2]) for words in calls(home, "docker", "build")]
    assert built == [("gpu", "out-Repository:0123456789ab"), ("mlflow", "out-MlflowRepository:0123456789ab")]
    assert [words[-1] for words in calls(home, "docker", "push")] == [tag for _, tag in built]


def test_the_secrets_are_files_of_their_owner(home: Path) -> None:
    import configparser

    folder = home / ".mvray-cluster"
    assert (folder / "auth_token").read_text() == "the-token"
    found = configparser.ConfigParser()
    found.read(folder / "mlflow_credentials")
    assert dict(found["mlflow"]) == {
        "mlflow_tracking_username": "admin",
        "mlflow_tracking_password": "the-password",
    }
    assert folder.stat().st_mode & 0o077 == 0
    assert not [file for file in folder.iterdir() if file.stat().st_mode & 0o077]


def test_mvray_and_ray_take_their_options(home: Path) -> None:
    from ray.scripts.scripts import cli

    from mvray.cli import _parser

    ours = list(calls(home, "mvray"))
    assert [words[1] for words in ours] == ["sample", "submit"]
    for words in ours:
        _parser().parse_args(words[1:])
    for _, name, *options in calls(home, "ray"):
        cli.commands[name].make_context(name, options)
    for command in re.findall(r"`(?:\.venv/bin/)?ray ((?:dashboard|get-head-ip) [^`]*)`", README):
        name, *options = command.split()
        cli.commands[name].make_context(name, options)


def test_what_was_given_to_people_is_taken_before_the_stack_goes(home: Path) -> None:
    """AWS does not delete a policy that somebody has."""
    given = [words[-1] for words in calls(home, "aws", "iam", "attach-group-policy")]
    assert given == ["first", "second"]
    assert [words[-1] for words in calls(home, "aws", "iam", "detach-group-policy")] == given
    assert [words[1:3] for words in calls(home, "aws")][-1] == ["cloudformation", "delete-stack"]


def test_the_trial_on_one_machine_is_a_shell_script() -> None:
    text = blocks("A trial on one machine")
    assert subprocess.run(["bash", "-n", "-c", text], capture_output=True, timeout=60).returncode == 0
    (run,) = re.findall(r"^mvray (run .*)$", text, re.MULTILINE)
    from mvray.cli import _parser

    given = _parser().parse_args(run.split())
    assert f"mvray sample comics {given.data}\n" in text, "the data is made first"
