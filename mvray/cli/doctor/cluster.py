"""The nodes of a Ray cluster."""

from __future__ import annotations

import logging
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from mvray.cli.doctor.finding import Finding
from mvray.cli.doctor.places import listening

TASK_TIMEOUT_S = 60


def examined(address: str | None, storage_uri: str) -> Iterator[Finding]:
    if not address:
        yield Finding("Ray", "info", "no cluster named in RAY_ADDRESS: jobs start Ray on this machine")
        return
    remedy = "Is the head running (`ray status`), the address right, and RAY_AUTH_MODE=token set if it wants a token?"
    where = re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)
    if where and not listening(where[1], int(where[2])):
        yield Finding("Ray", "bad", f"Nobody listens at {address}.", remedy)
        return
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many kinds
        yield Finding("Ray", "bad", f"The cluster at {address} was not joined. {type(error).__name__}: {error}", remedy)
        return
    try:
        everywhere = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [node for node in everywhere if node["Alive"]]
        yield from _nodes(nodes)
    finally:
        ray.shutdown()
    if len(nodes) > 1 and "://" not in storage_uri:
        text = f"{len(nodes)} nodes, but the storage is the local folder {storage_uri}."
        yield Finding("Ray", "warn", text, "Use s3://BUCKET/PREFIX, unless every node mounts this very folder.")


def _nodes(nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = _versions()
    ask = ray.remote(num_cpus=0)(_versions)
    pending = {
        node["NodeID"]: ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    }
    for node in nodes:
        has = node["Resources"]
        text = f"{node['NodeManagerAddress']}: {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs"
        try:
            versions = ray.get(pending[node["NodeID"]], timeout=TASK_TIMEOUT_S)
        except Exception as error:  # a node that cannot run a task; Ray raises many kinds
            remedy = "Is mvray installed on the node, in the environment that Ray runs in?"
            yield Finding("Ray", "bad", f"{text}; runs no task: {type(error).__name__}: {error}", remedy)
            continue
        other = [f"{name} {version} (here {own[name]})" for name, version in versions.items() if version != own[name]]
        if other:
            yield Finding("Ray", "bad", f"{text}; {', '.join(other)}", "Install the same versions on every node.")
        else:
            yield Finding("Ray", "ok", f"{text}; {', '.join(f'{k} {v}' for k, v in versions.items())}")


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("ray", "torch", "mvray")}
    return {"Python": platform.python_version(), **packages}
