"""Ray on this machine alone, and Ray Train anywhere, without what mvray does not need of them.

Everything here leans on Ray's internals, and little else in mvray does; test_one_machine.py fails when
a new Ray has changed them. On a cluster that is joined (RAY_ADDRESS) only `trainer` is used. Written for
Ray 2.60, where the parts of `ray.init()` and of one `TorchTrainer.fit()` cost, in CPU seconds:

    process                 CPU s   here
    dashboard server         1.1    left out, also where include_dashboard=False would start it
    autoscaler's monitor     0.8    left out: there is one machine
    log monitor              0.9    left out: workers' output is not shown on the terminal
    a training worker        5.8    0.5: fork_server.py
    controller               4.3    0.2: without torch (our backend), in a process that Ray started ahead
    synchronisation          2.3    0.1: in a process that Ray started ahead
    placement group cleaner  2.5    left out: the placement group is the driver's, and goes with it
    dataset manager          1.9    left out: mvray reads its data itself
    autoscaling coordinator  1.9    left out: a placement group that waits asks Ray's autoscaler too
    preemption watcher       1.9    left out: worker_group.py asks Ray once a second, not every five

Ray's processes that wait for work fit only actors without a runtime environment. Ray Train gives its
controller one (a variable that silences a warning), and everything below the controller inherits it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from mvray.cluster import fork_server
from mvray.cluster.fork_server import Forker

BEYOND_THIS_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With "0", Ray takes 127.0.0.1 for this machine's address, and all its parts listen there alone, on Linux too.
Asking for that address (`--node-ip-address 127.0.0.1`) does not: Ray replaces it by one that others reach."""
START_S = 180.0


@dataclass(frozen=True)
class Started:
    """A Ray of `start`; ``address`` is for ray.init."""

    address: str
    node: Any
    forker: Forker

    def stop(self) -> None:
        _listen_beyond_this_machine(True)
        self.node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)
        self.forker.stop()


def start(cpus: int, object_store_bytes: int) -> Started:
    """Start Ray here. It ends with the calling thread at the latest.

    As ray.init(address="local", include_dashboard=False) does it, with its token authentication, but
    without the processes that are named above.
    """
    from ray._private.authentication import authentication_token_setup as tokens
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class NodeWithoutServer(Node):
        def start_api_server(self, **_: Any) -> None:
            pass

        def start_ray_processes(self) -> None:
            super().start_ray_processes()  # type: ignore[no-untyped-call]
            import ray.train  # noqa: F401  in the seconds in which Ray's own processes start

            _wait_for_registration(self)

    _listen_beyond_this_machine(False)
    tokens.enable_token_auth_by_default()
    tokens.ensure_token_if_auth_enabled(create_token_if_missing=True)
    forker = Forker()
    settings = RayParams(
        setup_worker_path=fork_server.__file__,
        worker_path=str(forker.address),
        num_cpus=cpus,
        object_store_memory=object_store_bytes,
        min_worker_port=0,
        max_worker_port=0,
        include_dashboard=False,
        include_log_monitor=False,  # type: ignore[arg-type]
        no_monitor=True,
        # Ray starts as many processes ahead as there are CPUs in its books, but only this many at once.
        _system_config={
            "worker_maximum_startup_concurrency": cpus,  # type: ignore[dict-item]
            "worker_register_timeout_seconds": 2 * fork_server.PATIENCE_S,  # type: ignore[dict-item]
        },
    )
    node = NodeWithoutServer(settings, head=True, shutdown_at_exit=False, spawn_reaper=True)
    return Started(node.gcs_address, node, forker)


def _wait_for_registration(node: Any) -> None:
    """Until the node's raylet is known to its GCS: Ray itself waits for that 30 s, few on a busy machine."""
    from ray._private import services

    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            services.get_node(node.gcs_address, node.node_id)  # type: ignore[no-untyped-call]
            return
        except RuntimeError:
            if node.dead_processes():
                return  # what Ray says of it then is said
            time.sleep(0.1)


def _listen_beyond_this_machine(listen: bool) -> None:
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = listen
    if listen:
        del os.environ[BEYOND_THIS_MACHINE]
    else:
        os.environ[BEYOND_THIS_MACHINE] = "0"  # for Ray's other processes
