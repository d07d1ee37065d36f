"""The Ray Train run of a worker group, by Ray's public API: a TorchTrainer."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mvray.cluster.placement import NODE_ID, away_from
from mvray.cluster.worker import heed_sigterm

PROCESS_GROUP_TIMEOUT_S = 1800
STATE_TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"
"""With "1", Ray's dashboard shows Train runs."""


class TrainRun(Protocol):
    """A Ray Train run of workers."""

    def fit(self) -> None:
        """Run to the end. Raises TrainingFailedError where a worker was lost, RayActorError where the run was."""

    def end(self) -> None:
        """End it now, with all that it holds."""


@dataclass(frozen=True)
class RunSettings:
    """What a run is started with: ``on_worker(config)`` on each of ``workers`` workers, each with ``bundle``."""

    name: str
    on_worker: Callable[[dict[str, Any]], None]
    config: Mapping[str, Any]
    workers: int
    bundle: Mapping[str, float]
    storage: str
    """Where Ray Train keeps its own small files; results are never there."""
    not_on: Collection[str] = field(default=())
    """Nodes on which no worker is to be."""


class PublicRun:
    """A TorchTrainer, fitted in an actor: where that is killed, so is all that the run has started."""

    def __init__(self, settings: RunSettings) -> None:
        import ray

        selector = {NODE_ID: ray.get_runtime_context().get_node_id()}  # on the driver's node: both are lost together
        actor: Any = ray.remote(num_cpus=0, label_selector=selector)(_Fitting)
        self._actor = actor.options(name=f"{settings.name}-driver").remote()
        self._settings = settings

    def fit(self) -> None:
        import ray

        ray.get(self._actor.fit.remote(self._settings))

    def end(self) -> None:
        import ray

        ray.kill(self._actor)


class _Fitting:
    """The actor."""

    def fit(self, settings: RunSettings) -> None:
        os.environ.setdefault(STATE_TRACKING, "1")
        trainer_of(settings).fit()


def trainer_of(settings: RunSettings) -> Any:
    """The TorchTrainer of these settings."""
    import ray.train
    import ray.train.torch

    class Config(ray.train.torch.TorchConfig):
        @property
        def backend_cls(self) -> type:
            class HeedingSigterm(super().backend_cls):  # type: ignore[misc]
                def on_start(self, worker_group: Any, backend_config: Any) -> None:
                    worker_group.execute(heed_sigterm)  # on their main threads: training runs on others
                    super().on_start(worker_group, backend_config)

            return HeedingSigterm

    return ray.train.torch.TorchTrainer(
        settings.on_worker,
        train_loop_config=dict(settings.config),
        torch_config=Config(timeout_s=PROCESS_GROUP_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]
            num_workers=settings.workers,
            use_gpu="GPU" in settings.bundle,
            resources_per_worker=dict(settings.bundle),
            label_selector=away_from(settings.not_on) or None,
        ),
        run_config=ray.train.RunConfig(
            name=settings.name,
            storage_path=settings.storage,
            # Whatever happens is told to the driver at once, which then decides (pipeline/train.py).
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
        ),
    )
