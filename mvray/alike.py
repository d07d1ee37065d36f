"""Whether every node has the same versions of what decides results.

What is expected is in the note beside code that `mvray submit` sent (shipment.py): the lock file's versions. For a
job that was started on a cluster's machine itself, it is what that machine has.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mvray.errors import ClusterError
from mvray.manifest import NOTE, shipped
from mvray.shipment import reference

TASK_TIMEOUT_S = 120


def differences(expected: Mapping[str, str], found: Mapping[str, str | None]) -> list[str]:
    """What ``found`` has in another version than ``expected``, in words. Builds ("+cu128") of a version are alike."""
    said = []
    for name, version in expected.items():
        other = found.get(name)
        if other is None:
            said.append(f"no {name} (expected {version})")
        elif other.partition("+")[0] != version.partition("+")[0]:
            said.append(f"{name} {other} (expected {version})")
    return said


def here(names: Mapping[str, str]) -> dict[str, str | None]:
    """The versions that this process would import."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name) if name != "python" else "{}.{}".format(*sys.version_info[:2])
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def check_nodes() -> None:
    """Ask every node of the joined cluster, this one too. Raises ClusterError that names what differs where."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    note = shipped() or reference(None)
    expected = _expected(note)
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    ask = ray.remote(num_cpus=0)(here)
    asked = {
        node["NodeManagerAddress"]: ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        ).remote(expected)
        for node in nodes
    }
    found = {"the head, where this runs": here(expected)}
    for address, answer in asked.items():
        try:
            found[f"node {address}"] = ray.get(answer, timeout=TASK_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"Node {address} runs no task within {TASK_TIMEOUT_S} s ({type(error).__name__}: {error}); expected "
                "one that can. Is mvray's environment installed there? `mvray doctor` on the head says more."
            ) from None
    said = [f"{place} has {', '.join(other)}" for place, has in found.items() if (other := differences(expected, has))]
    if said:
        raise ClusterError(_refusal("; ".join(said), note["versions_of"]))


def check_here() -> None:
    """As check_nodes, in a worker of submitted code: on a node that came later. Raises ClusterError."""
    folder = next((path for path in sys.path if path and (Path(path) / NOTE).is_file()), None)
    note = shipped(Path(folder)) if folder else None
    if note and (said := differences(expected := _expected(note), here(expected))):
        import socket

        raise ClusterError(_refusal(f"node {socket.gethostname()} has {', '.join(said)}", note["versions_of"]))


def _expected(note: Mapping[str, Any]) -> dict[str, str]:
    return {"python": note["python"], **note["versions"]}


def _refusal(said: str, source: str) -> str:
    return (
        f"The cluster's environment is another one: {said}. Expected the versions of {source} on every node. Build the "
        "image again from it, or submit with --build-environment, which makes that environment on every node."
    )
