"""What Ray has no public interface for, each function with a fallback for releases of Ray that have changed it.

Tried with Ray 2.60. Nothing else in mvray imports Ray's internals, but local_ray.py and fork_server.py, which can be
turned off (MVRAY_PLAIN_RAY=1).
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

CHANGED = (ImportError, AttributeError, TypeError, KeyError)
"""What an internal that has changed raises."""
CONNECT_S = 3.0


def falls_back(fallback: Callable[..., T]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Call ``fallback`` instead where the decorated function finds that Ray's internals have changed."""

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(function)
        def wrapper(*arguments: Any) -> T:
            try:
                return function(*arguments)
            except CHANGED:
                return fallback(*arguments)

        return wrapper

    return decorate


@falls_back(set)
def draining_nodes() -> set[str]:
    """Ids of nodes that were given notice. The fallback is none: such a node then counts as lost when it goes."""
    from ray._private.state import state

    nodes: Mapping[str, int] = state.get_draining_nodes()
    return set(nodes)


@falls_back(dict)
def autoscaler_limits() -> dict[str, float]:
    """What the autoscaler may bring of each resource, where Ray knows it. The fallback is MVRAY_AUTOSCALER_MAX."""
    from ray._private.state import state

    limits: Mapping[str, float] | None = state.get_max_resources_from_cluster_config()
    return dict(limits or {})


def _whole_nodes() -> dict[str, Mapping[str, float]]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}


@falls_back(_whole_nodes)
def free_per_node() -> dict[str, Mapping[str, float]]:
    """What is free on each node. Without it, what each has: then a group of workers may have to wait for its room."""
    from ray._private.state import state

    return dict(state.available_resources_per_node())  # type: ignore[no-untyped-call]


def _id_by_connecting(address: str) -> str:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        return "answers"
    return ""


@falls_back(_id_by_connecting)
def cluster_id(address: str) -> str:
    """The id of the cluster that answers at ``address``; "" where none does. Without it, whether anybody listens."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        client = GcsClient(address=address)
    except CHANGED:
        raise
    except Exception:  # whatever it raises: it does not answer
        return ""
    with contextlib.suppress(Exception):
        return str(client.cluster_id.hex())
    return ""


def _listed_actors(name: str) -> list[str]:
    from ray.util.state import list_actors

    actors: Any = list_actors(filters=[("class_name", "=", name), ("state", "=", "ALIVE")])
    return [str(actor["node_id"]) for actor in actors]


@falls_back(_listed_actors)
def nodes_of_actors(name: str) -> list[str]:
    """The node of each actor of this driver whose class has ``name`` and whose process has begun.

    Without it, Ray's State API is asked, which needs a dashboard.
    """
    import ray
    from ray._private.state import state

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return [
        actor["Address"]["NodeID"]
        for actor in state.actor_table(None, job).values()
        if name in actor["ActorClassName"]
        and actor["State"] in ("PENDING_CREATION", "ALIVE")
        and actor["Address"]["Port"] > 0  # one that waits for room has the node that it waits at, and no port
    ]


def _nothing(*_: object) -> None:
    """The fallback that leaves Ray as it is."""


@falls_back(_nothing)
def never_connect_unasked() -> None:
    """Without it, a thread that calls Ray after ray.shutdown() may start a Ray that nobody shuts down."""
    from ray._private import auto_init_hook

    auto_init_hook.enable_auto_connect = False


@falls_back(_nothing)
def keep_last_words_off_the_terminal() -> None:
    """Without it, Ray tells every driver a hundred lines of a node that was lost, with `log_to_driver` off too."""
    import ray._private.worker

    ray._private.worker.print_to_stdstream = lambda *_, **__: None


@falls_back(_nothing)
def end_data_executions() -> None:
    """End Ray Data's threads of this process, which wait for room and which no public call ends before the first row.

    Without it, they end with the process.
    """
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    for thread in threading.enumerate():
        if isinstance(thread, StreamingExecutor):
            thread.shutdown(force=True)
