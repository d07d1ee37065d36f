"""Ray and Ray Train on this machine alone, without what mvray does not need of them, for a faster start.

Everything here leans on Ray's internals; test_local_ray.py fails when a new Ray has changed them. MVRAY_PLAIN_RAY=1
turns it off, and so does a Ray that is none of TRIED: then Ray is started, and trained with, by its public API
(ray_train.py), as on a cluster that is joined. Written for Ray 2.60, where the parts of `ray.init()` and of one
`TorchTrainer.fit()` cost, in CPU seconds:

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
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from mvray.cluster import fork_server
from mvray.cluster.fork_server import ForkServer
from mvray.cluster.ray_train import PROCESS_GROUP_TIMEOUT_S, RunSettings
from mvray.cluster.worker import heed_sigterm

PLAIN = "MVRAY_PLAIN_RAY"
"""With "1", a local Ray is started by its public API alone."""
TRIED = ("2.60",)
"""The versions of Ray that this file was tried with."""
BEYOND_THIS_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With "0", Ray takes 127.0.0.1 for this machine's address, and all its parts listen there alone, on Linux too.
Asking for that address (`--node-ip-address 127.0.0.1`) does not: Ray replaces it by one that others reach."""
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
START_S = 180.0


def is_lean() -> bool:
    """Whether a local Ray is started by what is here."""
    return os.environ.get(PLAIN, "0") in ("", "0") and version("ray").startswith(TRIED)


@dataclass(frozen=True)
class LocalRay:
    """The Ray that `start` has started; ``address`` is for ray.init."""

    address: str
    node: Any
    fork_server: ForkServer

    def stop(self) -> None:
        _listen_beyond_this_machine(True)
        self.node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)
        self.fork_server.stop()


def start(cpus: int, object_store_bytes: int) -> LocalRay:
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
    server = ForkServer()
    settings = RayParams(
        setup_worker_path=fork_server.__file__,
        worker_path=str(server.address),
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
    return LocalRay(node.gcs_address, node, server)


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
                return  # Ray's own error for the process that died follows
            time.sleep(0.1)


def _listen_beyond_this_machine(listen: bool) -> None:
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = listen
    if listen:
        del os.environ[BEYOND_THIS_MACHINE]
    else:
        os.environ[BEYOND_THIS_MACHINE] = "0"  # for Ray's other processes


class LeanRun:
    """The Ray Train run of a worker group in its placement group."""

    def __init__(self, settings: RunSettings, group: Any) -> None:
        import ray.train

        # Not in the controller, which may be killed before it can remove the folder.
        self._meeting = tempfile.mkdtemp(prefix="mvray-ranks-")
        self._trainer = trainer(
            settings.on_worker,
            group,
            backend(self._meeting),
            train_loop_config=dict(settings.config),
            scaling_config=ray.train.ScalingConfig(
                num_workers=settings.workers,
                use_gpu="GPU" in settings.bundle,
                resources_per_worker=dict(settings.bundle),
            ),
            run_config=ray.train.RunConfig(
                name=settings.name,
                storage_path=settings.storage,
                failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
            ),
        )

    def fit(self) -> None:
        try:
            self._trainer.fit()
        finally:
            shutil.rmtree(self._meeting, ignore_errors=True)

    def end(self) -> None:
        import ray

        if self._trainer.controller is not None:
            ray.kill(self._trainer.controller)


def trainer(on_worker: Callable[[dict[str, Any]], None], group: Any, config: Any, **settings: Any) -> Any:
    """A Ray Train trainer as TorchTrainer(on_worker, config, **settings) is, its workers in the placement ``group``.

    Its ``controller`` is an actor, once there is one: where it is killed, fit() ends at once.
    """
    import ray
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2._internal.execution.worker_group import WorkerGroup
    from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class NoDatasets(WorkerGroupCallback):
        def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
            return {"dataset_shard_provider": [None] * len(workers)}

    class NoAutoscaling(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class Group(WorkerGroup):
        def _create_placement_group(self, *_: Any) -> Any:
            return DefaultPlacementGroupHandle(group)

    class Controller(TrainController):
        worker_group_cls = Group

        def __init__(self, **arguments: Any) -> None:
            # Ray Train would hand the variable on to the workers, as a runtime environment.
            os.environ[PREEMPTION_WATCHER] = "0"
            super().__init__(**arguments)
            del os.environ[PREEMPTION_WATCHER]

    class Trainer(DataParallelTrainer):
        controller: Any = None

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = [
                callback
                for callback in super()._create_default_callbacks()
                if not isinstance(callback, DatasetsCallback | PlacementGroupCleanerCallback)
            ]
            return [*callbacks, NoDatasets()]

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            scaling: Any = self.scaling_config
            selector = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
            actor: Any = ray.remote(num_cpus=0, label_selector=selector)(Controller)
            self.controller = actor.remote(**{**arguments, "scaling_policy": NoAutoscaling(scaling)})
            ray.get(self.controller.run.remote())
            return ray.get(self.controller.get_result.remote())

    return Trainer(on_worker, backend_config=config, **settings)


def backend(meeting: str) -> Any:
    """Ray's own set-up of torch.distributed, called in the workers only: torch takes seconds to import.

    The ranks meet by a file in the folder ``meeting``, because torch's TCPStore listens on every interface and lets in
    whoever comes.
    """
    from ray.train.backend import Backend, BackendConfig

    class TorchBackend(Backend):
        share_cuda_visible_devices = True

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            import ray

            where = f"file://{meeting}/store"
            kind = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
            world = len(worker_group)
            joined = [worker_group.execute_single_async(rank, _join, where, kind, rank, world) for rank in range(world)]
            ray.get(joined)

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            pass  # a worker group's processes end with it

    class TorchConfig(BackendConfig):
        @property
        def backend_cls(self) -> type:
            return TorchBackend

    return TorchConfig()


def _join(where: str, kind: str, rank: int, world: int) -> None:
    from ray.train.torch import config

    heed_sigterm()  # here, on the worker's main thread: training runs on another one
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config._set_torch_distributed_env_vars()  # type: ignore[no-untyped-call]
    config._setup_torch_process_group(kind, rank, world, where, PROCESS_GROUP_TIMEOUT_S)
