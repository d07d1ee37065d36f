"""Room on the Ray cluster: what is free on which node, what could be, which nodes go away, and groups that wait.

Ray hears late of a node that is lost without a word (15 s and more), and would have a new worker group wait for it. So
a node counts only when its Ray process takes a connection.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvray.cluster import ray_internals
from mvray.errors import SettingError

POLL_S = 0.1
LOOK_S = 1.0
SAY_AFTER_S = 4.0
SETTLE_S = 3.0
"""What a worker group leaves is free again within this time; a smaller one is formed only after it."""
REACH_S = 1.0
NODE_ID = "ray.io/node-id"
HEAD = "node:__internal_head__"
"""A resource that only the head has."""
CONFIG = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the autoscaler's configuration (JSON) on the head, and nowhere else."""
GIVEN = "MVRAY_AUTOSCALER_MAX"
"""The same limits where there is no such file (Kubernetes), set by hand on the head: GPU=8,CPU=116."""
NO_LIMIT = 1_000_000.0
"""Stands for an unlimited amount: Ray's 2^63 - 1 would overflow sums and products."""

Bundle = Mapping[str, float]


def most() -> dict[str, float]:
    """What the autoscaler's configuration allows of each resource; empty where it is not known.

    Ray's own record of it is asked first; Ray 2.60's autoscaler leaves that empty. Raises SettingError for a
    MVRAY_AUTOSCALER_MAX that cannot be read.
    """
    limits: Mapping[str, float] | None = ray_internals.autoscaler_limits()
    file = CONFIG.expanduser()
    with contextlib.suppress(OSError, ValueError):
        limits = limits or _configured(file, file.stat().st_mtime_ns)
    limits = limits or parse_amounts(os.environ.get(GIVEN, ""))
    return {name: min(float(amount), NO_LIMIT) for name, amount in (limits or {}).items()}


def parse_amounts(text: str) -> dict[str, float]:
    """The resources in a text as ``GPU=8,CPU=116``. Raises SettingError for another one."""
    pairs = re.findall(r"(\w+)=(\d+(?:\.\d+)?)(?:,|$)", text)
    if ",".join("=".join(pair) for pair in pairs) != text:
        raise SettingError(f"{GIVEN} is {text!r}; expected resources of the whole cluster as in GPU=8,CPU=116.")
    return {name: float(amount) for name, amount in pairs}


@functools.lru_cache(maxsize=1)
def _configured(file: Path, _written_at: int) -> dict[str, float]:
    config: Mapping[str, Any] = json.loads(file.read_text())
    return allowed(config.get("available_node_types", {}), config.get("max_workers", 0))


def allowed(types: Mapping[str, Mapping[str, Any]], workers: int) -> dict[str, float]:
    """The most of each resource that at most ``workers`` nodes of an autoscaler's node types have."""
    totals: dict[str, float] = {}
    for name in {name for node_type in types.values() for name in node_type.get("resources", {})}:
        nodes_left = workers
        for node_type in sorted(types.values(), key=lambda node_type: -node_type.get("resources", {}).get(name, 0)):
            nodes = min(nodes_left, node_type.get("max_workers", workers))
            totals[name] = totals.get(name, 0.0) + nodes * node_type.get("resources", {}).get(name, 0)
            nodes_left -= nodes
    return totals


def leaving() -> set[str]:
    """Ids of nodes that were given notice: spot nodes about to be taken away, nodes that are shut down.

    Ray puts nothing new on them. `ray drain-node` gives that notice, and Ray itself where a node gets SIGTERM.
    """
    return ray_internals.draining_nodes()


def lost_nodes() -> set[str]:
    """Ids of nodes that Ray counts as alive but that cannot be reached."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    with ThreadPoolExecutor(max_workers=32) as pool:
        reached = list(pool.map(lambda node: _answers(node["NodeManagerAddress"], node["NodeManagerPort"]), nodes))
    return {node["NodeID"] for node, is_reached in zip(nodes, reached, strict=True) if not is_reached}


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), timeout=REACH_S).close()
        return True
    return False


def slots(bundle: Bundle, not_on: Collection[str] = ()) -> int:
    """How many of ``bundle`` fit into what is free, node by node."""
    free = ray_internals.free_per_node()
    amounts = {name: amount for name, amount in bundle.items() if amount}
    excluded = {*not_on, *leaving()}
    return sum(
        min((int(resources.get(name, 0.0) / amount + 1e-6) for name, amount in amounts.items()), default=0)
        for node, resources in free.items()
        if node not in excluded
    )


def waiting() -> set[str]:
    """Ids of all placement groups, anybody's, that wait for room on this cluster."""
    import ray.util

    groups: Mapping[str, Mapping[str, Any]] = ray.util.placement_group_table()
    return {number for number, group in groups.items() if group["state"] == "PENDING"}


class RoomRequest:
    """A request for room for one more ``bundle``: a placement group, so that Ray's autoscaler hears of it.

    It is withdrawn while anybody else waits: a group that needs room for many at once would never get it beside this.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._group = dict(bundle), None
        self._since = 0.0

    def fulfilled_s(self) -> float:
        """For how long there has been room; 0 where there is none."""
        import ray.util

        others = waiting() - ({self._group.id.hex()} if self._group else set())
        if others:
            self.give_up()
        elif self._group is None:
            self._group = ray.util.placement_group([self._bundle])
        elif _is_ready(self._group):
            self._since = self._since or time.monotonic()
            return time.monotonic() - self._since
        return 0.0

    def give_up(self) -> None:
        import ray.exceptions
        import ray.util

        if self._group is not None:
            with contextlib.suppress(ray.exceptions.RayError):  # a cluster that is lost holds nothing
                ray.util.remove_placement_group(self._group)
        self._group, self._since = None, 0.0


def heads_to_spare(bundle: Bundle) -> set[str]:
    """The head's id, where ``bundle`` fits on another node too: what fills the head's memory ends the whole cluster."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    fit = [node for node in nodes if all(node["Resources"].get(name, 0.0) >= bundle[name] for name in bundle)]
    heads = {node["NodeID"] for node in fit if HEAD in node["Resources"]}
    return heads if len(fit) > len(heads) else set()


@dataclass(frozen=True)
class Room:
    """A placement group of ``size`` bundles, none of which is ``not_on`` these nodes."""

    group: Any
    size: int
    not_on: frozenset[str] = frozenset()

    def release(self) -> None:
        """Give it back; nothing happens where the cluster was lost, which holds nothing."""
        import ray.exceptions
        import ray.util

        with contextlib.suppress(ray.exceptions.RayError):
            ray.util.remove_placement_group(self.group)


def reserve(
    bundle: Bundle,
    least: int,
    most: int,
    say: Callable[[int], None],
    stopping: Callable[[], bool],
    not_on: Collection[str] = (),
) -> Room | None:
    """Room for as many bundles, ``least`` to ``most``, as there is room for; waits for ``least``.

    No bundle is ``not_on`` these nodes. While it waits, Ray's autoscaler sees what is wanted, and Ray gives groups
    their room in turn, other users' too. ``say`` is called once, with the number of bundles that lack room. None
    where ``stopping`` said so.
    """
    import ray.util

    began_at, was_said = time.monotonic(), False
    while True:
        excluded = lost_nodes() | set(not_on)
        size = _settled(bundle, least, most, excluded)
        selector = away_from(excluded)
        group = ray.util.placement_group([dict(bundle)] * size, bundle_label_selector=[selector] * size)
        looked_at, fits = time.monotonic(), size
        while not (ready := _is_ready(group)):
            if stopping():
                ray.util.remove_placement_group(group)
                return None
            time.sleep(POLL_S)
            now = time.monotonic()
            if now - looked_at < LOOK_S:
                continue
            looked_at, before, fits = now, fits, slots(bundle, excluded)
            if not was_said and fits < size and now - began_at > SAY_AFTER_S:
                say(size - fits)
                was_said = True
            if lost_nodes() - excluded or (least <= fits < size and fits == before):
                break
        if ready:
            return Room(group, size, frozenset(excluded))
        ray.util.remove_placement_group(group)


def _settled(bundle: Bundle, least: int, most: int, excluded: Collection[str]) -> int:
    """The size of a group to ask for."""
    until = time.monotonic() + (SETTLE_S if least < most else 0.0)
    while (fits := slots(bundle, excluded) if least < most else most) < most and time.monotonic() < until:
        time.sleep(POLL_S)
    return max(least, min(most, fits))


def _is_ready(group: Any) -> bool:
    import ray.util

    state: str | None = ray.util.placement_group_table(group).get("state")
    return state == "CREATED"


def away_from(nodes: Collection[str]) -> dict[str, str]:
    """Ray's label selector for all nodes but these; empty for all."""
    return {NODE_ID: f"!in({', '.join(sorted(nodes))})"} if nodes else {}


def nodes_of(group: Any) -> set[str]:
    """Ids of the nodes on which a placement group lies."""
    import ray.util

    return set(ray.util.placement_group_table(group).get("bundles_to_node_id", {}).values()) - {""}
