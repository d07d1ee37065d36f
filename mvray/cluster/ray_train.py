"""The Ray Train run of a worker group."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvray.cluster.local_ray import BEYOND_THIS_MACHINE

PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


PROCESS_GROUP_TIMEOUT_S = 1800


def trainer(on_worker: Callable[[dict[str, Any]], None], group: Any, **settings: Any) -> Any:
    """A Ray Train trainer as TorchTrainer(on_worker, **settings) is, its workers in the placement group ``group``.

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

        def __init__(self, **given: Any) -> None:
            # Ray Train would hand the variable on to the workers, as a runtime environment.
            os.environ[PREEMPTION_WATCHER] = "0"
            super().__init__(**given)
            del os.environ[PREEMPTION_WATCHER]

    class Trainer(DataParallelTrainer):
        controller: Any = None

        def _create_default_callbacks(self) -> list[Any]:
            kept = [
                callback
                for callback in super()._create_default_callbacks()
                if not isinstance(callback, DatasetsCallback | PlacementGroupCleanerCallback)
            ]
            return [*kept, NoDatasets()]

        def _initialize_and_run_controller(self, **given: Any) -> Any:
            scaling: Any = self.scaling_config
            here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
            actor: Any = ray.remote(num_cpus=0, label_selector=here)(Controller)
            self.controller = actor.remote(**{**given, "scaling_policy": NoAutoscaling(scaling)})
            ray.get(self.controller.run.remote())
            return ray.get(self.controller.get_result.remote())

    return Trainer(on_worker, backend_config=backend(), **settings)


def backend() -> Any:
    """Ray's own set-up of torch.distributed, called in the workers only: torch takes seconds to import."""
    from ray._common.network_utils import build_address  # type: ignore[attr-defined]
    from ray.train._internal.utils import get_address_and_port
    from ray.train.backend import Backend, BackendConfig

    class TorchBackend(Backend):
        share_cuda_visible_devices = True
        meeting: Path | None = None

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            import ray

            if os.environ.get(BEYOND_THIS_MACHINE) == "0":
                # A file, because torch's TCPStore listens on every interface and lets in whoever comes.
                self.meeting = Path(tempfile.mkdtemp(prefix="mvray-ranks-"))
                where = f"file://{self.meeting}/store"
            else:
                where = f"tcp://{build_address(*worker_group.execute_single(0, get_address_and_port))}"
            kind = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
            world = len(worker_group)
            joined = [worker_group.execute_single_async(rank, _join, where, kind, rank, world) for rank in range(world)]
            ray.get(joined)

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            if self.meeting is not None:  # nothing else: a worker group's processes end with it
                shutil.rmtree(self.meeting, ignore_errors=True)

    class TorchConfig(BackendConfig):
        @property
        def backend_cls(self) -> type:
            return TorchBackend

    return TorchConfig()


def _join(where: str, kind: str, rank: int, world: int) -> None:
    from ray.train.torch import config

    from mvray.cluster.worker import heed_sigterm

    heed_sigterm()  # here, on the worker's main thread: training runs on another one
    if where.startswith("file://") and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config._set_torch_distributed_env_vars()  # type: ignore[no-untyped-call]
    config._setup_torch_process_group(kind, rank, world, where, PROCESS_GROUP_TIMEOUT_S)
