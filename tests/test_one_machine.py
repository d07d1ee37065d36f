"""What one_machine.py leans on inside Ray, and what it leaves out: these fail when a new Ray has changed it."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

PREPARED = """
import sys
import ray.train
from mvray import one_machine

trainer = one_machine.trainer(print, scaling_config=ray.train.ScalingConfig(num_workers=1))
names = [type(callback).__name__ for callback in trainer._create_default_callbacks()]
assert "torch" not in sys.modules, "the driver has imported torch"
print(*names)
"""


def test_the_trainer_is_made_without_torch_and_without_the_processes_it_leaves_out():
    made = subprocess.run([sys.executable, "-c", PREPARED], capture_output=True, text=True, check=True)
    names = made.stdout.split()
    assert {"BackendSetupCallback", "AcceleratorSetupCallback", "NoDatasets"} <= set(names)
    assert not {"DatasetsCallback", "PlacementGroupCleanerCallback"} & set(names)


def test_what_is_overridden_is_still_there():
    from ray._private.node import Node
    from ray.train.torch import config
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from mvray import one_machine

    assert "self.start_api_server(" in inspect.getsource(Node.start_head_processes)
    assert "dataset_shard_provider" in inspect.getsource(DatasetsCallback.before_init_train_context)
    assert "_maybe_send_resource_request" in dir(FixedScalingPolicy)
    assert "after_controller_start" in dir(FixedScalingPolicy)
    assert ENABLE_PREEMPTION_WATCHER_ENV_VAR == one_machine.PREEMPTION_WATCHER
    assert "self._initialize_and_run_controller(" in inspect.getsource(DataParallelTrainer.fit)
    torch_backend = config.TorchConfig().backend_cls
    assert torch_backend.share_cuda_visible_devices is True
    started = inspect.getsource(torch_backend.on_start)
    assert "_set_torch_distributed_env_vars" in started
    assert "_setup_torch_process_group" in started


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_only_the_processes_that_are_needed_are_started(tmp_path):
    import psutil

    from mvray.cluster import Cluster
    from mvray.job import Job
    from mvray.storage import Storage

    cluster = Cluster(Storage(str(tmp_path)))
    cluster.start(Job("empty", ()))
    cluster.ready()
    try:
        running = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
        for left_out in ("dashboard.py", "monitor.py"):
            assert not any(left_out in command for command in running), running
        assert any("gcs_server" in command for command in running)
        assert any("raylet" in command for command in running)
    finally:
        cluster.stop()
