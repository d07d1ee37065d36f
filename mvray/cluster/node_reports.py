"""What the nodes of a cluster say of themselves, for `mvray doctor`."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

TASK_TIMEOUT_S = 60


@dataclass(frozen=True)
class NodeReport:
    """A node: its address, CPUs and GPUs, the versions that it has, or why it ran no task ("" where it did)."""

    address: str
    cpus: float
    gpus: float
    versions: Mapping[str, str]
    error: str = ""


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Be a driver of the cluster at ``address`` for a while. Raises what Ray raises, of many kinds, where it cannot."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def node_reports(timeout_s: float = TASK_TIMEOUT_S) -> Iterator[NodeReport]:
    """Of every node of the cluster that is joined, each by a task of its own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    ask = ray.remote(num_cpus=0)(versions_here)
    answers = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    for node, answer in zip(nodes, answers, strict=True):
        error, versions = "", dict[str, str]()
        try:
            versions = ray.get(answer, timeout=timeout_s)
        except Exception as raised:  # a node that cannot run a task; Ray raises many kinds
            error = f"{type(raised).__name__}: {raised}"
        resources = node["Resources"]
        yield NodeReport(node["NodeManagerAddress"], resources.get("CPU", 0), resources.get("GPU", 0), versions, error)


def versions_here() -> dict[str, str]:
    """This process's Python and packages."""
    packages = {name: metadata.version(name) for name in ("ray", "torch", "mvray")}
    return {"Python": platform.python_version(), **packages}
