"""Ray Train on a Ray of our own on this machine, without what only clusters of many machines need.

Everything here leans on Ray's internals and nothing else in mvray does; test_one_machine.py fails when
a new Ray has changed them. Written for Ray 2.60, where one TorchTrainer starts on two slow cores:

    process                 CPU s   here
    controller               4.3    without torch (our backend), and taken from Ray's waiting processes
    each worker              6.2    taken from Ray's waiting processes, which have imported Ray
    synchronisation          2.3    the same
    placement group cleaner  2.5    left out: it asks the dashboard, which is off; crew.py frees its own
    dataset manager          1.9    left out: mvray reads its data itself
    autoscaling coordinator  1.9    left out: there is one machine
    preemption watcher       1.9    left out: there is one machine

Ray's waiting processes fit only actors without a runtime environment, and Ray Train gives its
controller one (a variable that silences a warning), which everything below it inherits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
PROCESS_GROUP_TIMEOUT_S = 1800


def trainer(on_worker: Callable[[dict[str, Any]], None], **settings: Any) -> Any:
    """A Ray Train trainer as TorchTrainer(on_worker, **settings) is, for one machine."""
    import ray
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class NoDatasets(DatasetsCallback):  # type: ignore[misc]
        def before_init_train_context(self, workers: list[Any]) -> dict[str, list[None]]:
            return {"dataset_shard_provider": [None] * len(workers)}

        def after_worker_group_start(self, worker_group: Any) -> None:
            pass

    class NoAutoscaling(FixedScalingPolicy):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class Controller(TrainController):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            # Ray Train would hand the variable on to the workers, as a runtime environment.
            os.environ[PREEMPTION_WATCHER] = "0"
            super().__init__(**given)
            del os.environ[PREEMPTION_WATCHER]

    class Trainer(DataParallelTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            kept = [
                callback
                for callback in super()._create_default_callbacks()
                if not isinstance(callback, DatasetsCallback | PlacementGroupCleanerCallback)
            ]
            return [*kept, NoDatasets(self.train_run_context, {})]

        def _initialize_and_run_controller(self, **given: Any) -> Any:
            given["scaling_policy"] = NoAutoscaling(self.scaling_config)
            controller = ray.remote(num_cpus=0)(Controller).remote(**given)
            ray.get(controller.run.remote())
            return ray.get(controller.get_result.remote())

    return Trainer(on_worker, backend_config=backend(), **settings)


def backend() -> Any:
    """Ray's own set-up of torch.distributed, called in the workers only: torch takes seconds to import."""
    from ray.train._internal.utils import get_address_and_port
    from ray.train.backend import Backend, BackendConfig

    class TorchBackend(Backend):  # type: ignore[misc]
        share_cuda_visible_devices = True

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            import ray

            address, port = worker_group.execute_single(0, get_address_and_port)
            kind = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
            world = len(worker_group)
            joined = [
                worker_group.execute_single_async(rank, _join, address, port, kind, rank, world)
                for rank in range(world)
            ]
            ray.get(joined)

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            pass  # a crew's processes end with it

    class TorchConfig(BackendConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return TorchBackend

    return TorchConfig()


def _join(address: str, port: int, kind: str, rank: int, world: int) -> None:
    from ray.train.torch import config

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(kind, rank, world, "env://", PROCESS_GROUP_TIMEOUT_S)
