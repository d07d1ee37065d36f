"""The nodes of a Ray cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mvray.cli.doctor.finding import Finding
from mvray.cli.doctor.places import listening
from mvray.cluster import NodeReport, joined, node_reports, versions_here


def examined(address: str | None, storage_uri: str) -> Iterator[Finding]:
    if not address:
        yield Finding("Ray", "info", "no cluster named in RAY_ADDRESS: jobs start Ray on this machine")
        return
    remedy = "Is the head running (`ray status`), the address right, and RAY_AUTH_MODE=token set if it wants a token?"
    where = re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)
    if where and not listening(where[1], int(where[2])):
        yield Finding("Ray", "bad", f"Nobody listens at {address}.", remedy)
        return
    try:
        with joined(address):
            nodes = list(node_reports())
    except Exception as error:  # Ray raises many kinds
        yield Finding("Ray", "bad", f"The cluster at {address} was not joined. {type(error).__name__}: {error}", remedy)
        return
    own = versions_here()
    for node in nodes:
        yield _finding(node, own)
    if len(nodes) > 1 and "://" not in storage_uri:
        message = f"{len(nodes)} nodes, but the storage is the local folder {storage_uri}."
        yield Finding("Ray", "warn", message, "Use s3://BUCKET/PREFIX, unless every node mounts this very folder.")


def _finding(node: NodeReport, own: dict[str, str]) -> Finding:
    size = f"{node.address}: {node.cpus:g} CPUs, {node.gpus:g} GPUs"
    if node.error:
        remedy = "Is mvray installed on the node, in the environment that Ray runs in?"
        return Finding("Ray", "bad", f"{size}; runs no task: {node.error}", remedy)
    other = [f"{name} {version} (here {own[name]})" for name, version in node.versions.items() if version != own[name]]
    if other:
        return Finding("Ray", "bad", f"{size}; {', '.join(other)}", "Install the same versions on every node.")
    return Finding("Ray", "ok", f"{size}; {', '.join(f'{name} {version}' for name, version in node.versions.items())}")
