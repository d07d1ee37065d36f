"""Whether every node has the same versions of what decides results.

What is expected is in the note beside code that `mvray submit` sent (code_archive.py): the lock file's versions. For a
job that was started on a cluster's machine itself, it is what that machine has. Nodes have the Python of the head,
which decides the lock file's markers; that of the machine that submitted does not matter.
"""

from __future__ import annotations

import platform
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.specifiers import SpecifierSet

from mvray.cluster.code_archive import LOCK, reference
from mvray.errors import ClusterError
from mvray.experiment import NOTE, shipped
from mvray.tracking import duration

TASK_TIMEOUT_S = 120.0


def differences(expected: Mapping[str, str], installed: Mapping[str, str | None]) -> list[str]:
    """What is ``installed`` in another version than ``expected``. Builds ("+cu128") of a version are alike."""
    phrases = []
    for name, version in expected.items():
        other = installed.get(name)
        if other is None:
            phrases.append(f"no {name} (expected {version})")
        elif other.partition("+")[0] != version.partition("+")[0]:
            phrases.append(f"{name} {other} (expected {version})")
    return phrases


def installed_versions(names: Mapping[str, str]) -> dict[str, str | None]:
    """The versions that this process would import."""
    installed: dict[str, str | None] = {}
    for name in names:
        try:
            installed[name] = metadata.version(name) if name != "python" else _python()
        except metadata.PackageNotFoundError:
            installed[name] = None
    return installed


def check_nodes() -> None:
    """Ask every node of the joined cluster, this one too. Raises ClusterError that names what differs where."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    note = shipped() or reference(None)
    _check_python(note["python"])
    expected = {"python": _python(), **versions_here(note)}
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    ask = ray.remote(num_cpus=0)(installed_versions)
    pending = {
        node["NodeManagerAddress"]: ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        ).remote(expected)
        for node in nodes
    }
    versions = {"the head, where this runs": installed_versions(expected)}
    for address, answer in _answers(pending):
        versions[f"node {address}"] = answer
    phrases = [
        f"{place} has {', '.join(other)}" for place, has in versions.items() if (other := differences(expected, has))
    ]
    if phrases:
        raise ClusterError(_refusal("; ".join(phrases), note["versions_of"]))


def _answers(pending: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str | None]]]:
    """What the nodes answer, by address. A node that has yet to make the job's environment has Ray's time for it."""
    import ray

    setup_s = _environment_s(ray.get_runtime_context().runtime_env)
    wait_s = TASK_TIMEOUT_S + setup_s
    until = time.monotonic() + wait_s
    if setup_s:
        print(
            f"Waiting for {len(pending)} nodes: where the environment of {LOCK} is not there yet it is made now, for "
            f"at most {duration(setup_s)}.",
            file=sys.stderr,
            flush=True,
        )
    for address, answer in pending.items():
        try:
            yield address, ray.get(answer, timeout=max(0.0, until - time.monotonic()))
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise ClusterError(
                f"Node {address} cannot make the environment of {LOCK} ({error}); expected that it reaches the "
                "package registry and has room for it. Submit again to try again, or build it into the cluster's image."
            ) from None
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"Node {address} runs no task within {duration(wait_s)} ({type(error).__name__}: {error}); expected "
                "one that can. Is mvray's environment installed there? `mvray doctor` on the head says more."
            ) from None


def _environment_s(environment: Mapping[str, Any]) -> float:
    """For how long Ray lets a node make the packages of a job's environment; 0 where it is the image's."""
    if "uv" not in environment:
        return 0.0
    return float(environment["config"]["setup_timeout_seconds"])


def check_here() -> None:
    """As check_nodes, in a worker of submitted code: on a node that came later. Raises ClusterError."""
    folder = next((path for path in sys.path if path and (Path(path) / NOTE).is_file()), None)
    note = shipped(Path(folder)) if folder else None
    # Of Python there is nothing to compare here: Ray starts no node with another one than the head's.
    if note and (phrases := differences(expected := versions_here(note), installed_versions(expected))):
        raise ClusterError(_refusal(f"node {socket.gethostname()} has {', '.join(phrases)}", note["versions_of"]))


def versions_here(note: Mapping[str, Any]) -> dict[str, str]:
    """The versions of a note that hold for this process's Python and system."""
    return {name: version for name, version, marker in note["versions"] if not marker or Marker(marker).evaluate()}


def _python() -> str:
    return "{}.{}".format(*sys.version_info[:2])


def _check_python(allowed: str) -> None:
    if not SpecifierSet(allowed).contains(python := platform.python_version(), prereleases=True):
        raise ClusterError(
            f"The head has Python {python}; mvray expects {allowed}. Build the cluster's image with one of these."
        )


def _refusal(text: str, source: str) -> str:
    return (
        f"The cluster's environment is another one: {text}. Expected the versions of {source} on every node. Build the "
        "image again from it, or submit with --build-environment, which makes that environment on every node."
    )
