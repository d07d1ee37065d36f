"""Room on the Ray cluster: what is free on which node, which nodes go away, and placement groups that wait for room.

Ray hears late of a node that is lost without a word (15 s and more), and would have a new crew wait for it. So a
node counts only when its Ray process takes a connection.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

POLL_S = 0.1
LOOK_S = 1.0
SAY_AFTER_S = 4.0
SETTLE_S = 3.0
"""What a crew leaves is free again within this time; a smaller one is formed only after it."""
REACH_S = 1.0
NODE_ID = "ray.io/node-id"

Bundle = Mapping[str, float]


def leaving() -> set[str]:
    """Ids of nodes that were given notice: spot nodes about to be taken away, nodes that are shut down.

    Ray puts nothing new on them. `ray drain-node` gives that notice, and Ray itself where a node gets SIGTERM.
    """
    from ray._private.state import state

    found: Mapping[str, int] = state.get_draining_nodes()
    return set(found)


def lost() -> set[str]:
    """Ids of nodes that Ray believes in but that cannot be reached."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    with ThreadPoolExecutor(max_workers=32) as pool:
        reached = list(pool.map(lambda node: _answers(node["NodeManagerAddress"], node["NodeManagerPort"]), nodes))
    return {node["NodeID"] for node, there in zip(nodes, reached, strict=True) if not there}


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), timeout=REACH_S).close()
        return True
    return False


def slots(bundle: Bundle, away_from: Collection[str] = ()) -> int:
    """How many of ``bundle`` fit into what is free, node by node."""
    from ray._private.state import state

    free: Mapping[str, Mapping[str, float]] = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    wanted = {name: amount for name, amount in bundle.items() if amount}
    gone = {*away_from, *leaving()}
    return sum(
        min((int(here.get(name, 0.0) / amount + 1e-6) for name, amount in wanted.items()), default=0)
        for node, here in free.items()
        if node not in gone
    )


def others_wait() -> bool:
    """Whether anybody's placement group waits for room on this cluster."""
    import ray.util

    return any(group["state"] == "PENDING" for group in ray.util.placement_group_table().values())


def reserve(
    bundle: Bundle, least: int, most: int, say: Callable[[int], None], stopping: Callable[[], bool]
) -> tuple[Any, int] | None:
    """A placement group of as many bundles, ``least`` to ``most``, as there is room for; waits for ``least``.

    While it waits, Ray's autoscaler sees what is wanted, and Ray gives groups their room in turn, other users' too.
    ``say`` is called once, with the number of bundles that lack room. None where ``stopping`` said so.
    """
    import ray.util

    began, said = time.monotonic(), False
    while True:
        gone = lost()
        size = _settled(bundle, least, most, gone)
        selector = {NODE_ID: f"!in({', '.join(sorted(gone))})"} if gone else {}
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
            looked_at, before, fits = now, fits, slots(bundle, gone)
            if not said and fits < size and now - began > SAY_AFTER_S:
                say(size - fits)
                said = True
            if lost() - gone or (least <= fits < size and fits == before):
                break
        if ready:
            return group, size
        ray.util.remove_placement_group(group)


def _settled(bundle: Bundle, least: int, most: int, gone: Collection[str]) -> int:
    """The size of a group to ask for."""
    until = time.monotonic() + (SETTLE_S if least < most else 0.0)
    while (fits := slots(bundle, gone) if least < most else most) < most and time.monotonic() < until:
        time.sleep(POLL_S)
    return max(least, min(most, fits))


def _is_ready(group: Any) -> bool:
    import ray.util

    state: str | None = ray.util.placement_group_table(group).get("state")
    return state == "CREATED"


def nodes_of(group: Any) -> set[str]:
    """Ids of the nodes on which a placement group lies."""
    import ray.util

    return set(ray.util.placement_group_table(group).get("bundles_to_node_id", {}).values()) - {""}
