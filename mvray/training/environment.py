"""What the loop needs to know of the place where it runs. pipeline/train.py has the one on Ray Train."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import device

    from mvray.nn import Method
    from mvray.training.task import Task


class Environment(Protocol):
    """A rank of a training run."""

    rank: int
    world: int
    device: device

    def report(self, task: Task, metrics: Mapping[str, float]) -> bool:
        """Called on every rank after every epoch, and for those that were done before when training is gone on with.

        Returns whether to go on, the same on all ranks; else training returns, with its checkpoint at this epoch's end.
        """

    def stopping(self) -> bool:
        """Whether this process was asked to end; training then writes a checkpoint and returns."""


def use_given_threads() -> None:
    """Ray says in OMP_NUM_THREADS how many CPUs a worker has, to which torch listens only while it is imported."""
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))


def placed(method: Method, device: torch.device, channels_last: bool) -> Method:
    """``method`` on ``device``, its convolutions' weights laid out for channels-last kernels where asked for.

    Those over clips not on GPUs: cuDNN's depthwise kernels for that layout take 6 to 18 times as long as torch's.
    """
    layouts = {4: torch.channels_last} if channels_last else {}
    if channels_last and device.type != "cuda":
        layouts[5] = torch.channels_last_3d
    method.to(device)
    for tensor in (*method.parameters(), *method.buffers()):
        if tensor.ndim in layouts:
            tensor.data = tensor.data.to(memory_format=layouts[tensor.ndim])
    return method


class Local:
    """One process without Ray: debugging, fast tests, ``--workers 0``."""

    def __init__(self, stopping: Callable[[], bool] = lambda: False) -> None:
        self.rank, self.world = 0, 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._stopping = stopping

    def report(self, task: Task, metrics: Mapping[str, float]) -> bool:
        return True

    def stopping(self) -> bool:
        return self._stopping()


class Torchrun:
    """Ranks that torchrun started: the yardstick that Ray's start-up and steps are measured against."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(self.device)
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
        self._stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())

    def report(self, task: Task, metrics: Mapping[str, float]) -> bool:
        return True

    def stopping(self) -> bool:
        return self._stop.is_set()
