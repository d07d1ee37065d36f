"""The actors of a Generate step: where they run, what they hold, and how far they are (progress.json)."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mvray.cluster import ray_internals
from mvray.tracking import duration
from mvray.training import StepProgress, gpu_words, where

if TYPE_CHECKING:
    from mvray.experiment import Generate
    from mvray.storage import Storage

LOOK_S = 1.0


class ActorProgress:
    """Writes how many of ``shards`` shards are made, of which ``missing`` were to make.

    ``hosts`` names the node of each actor; ``gpus`` says whether there are GPUs. Nothing is written before there is an
    actor: the step waits for room.
    """

    def __init__(
        self, folder: Storage, step: Generate, missing: int, shards: int, hosts: Callable[[], list[str]], gpus: bool
    ) -> None:
        self._folder, self._missing, self._shards = folder, missing, shards
        self._hosts, self._each_gpus = hosts, step.gpus_per_actor if gpus else 0.0
        self._began_at, self._looked_at, self._present = time.monotonic(), 0.0, list[str]()
        self._busy: dict[str, float] = {}
        self._done = 0
        self.rows = 0

    def add_shard(self, rows: int, host: str, gpu_busy: float) -> None:
        """A shard was made on ``host``, whose GPUs were busy to ``gpu_busy`` percent (NaN: nobody knows)."""
        self._done, self.rows = self._done + 1, self.rows + rows
        if not math.isnan(gpu_busy):
            self._busy[host] = gpu_busy
        self._write()

    def look(self) -> None:
        """Called often; checks once a second (LOOK_S) whether actors have come or gone."""
        if time.monotonic() - self._looked_at < LOOK_S:
            return
        self._looked_at, before = time.monotonic(), self._present
        self._present = sorted(self._hosts())
        if self._present != before:
            self._write()

    def _write(self) -> None:
        text = f"{self._shards - self._missing + self._done}/{self._shards} shards"
        if self._done:
            seconds = time.monotonic() - self._began_at
            left_s = (self._missing - self._done) * seconds / self._done
            text += f", {self.rows / seconds:.0f} samples/s, {duration(left_s)} left"
        if self._present:
            text += f", {where(self._present)}"
        text += gpu_words(busy for host, busy in self._busy.items() if host in self._present)
        actors = len(self._present)
        StepProgress(text, actors, gpus=actors * self._each_gpus).write(self._folder)


def this_process() -> list[str]:
    """The host of this process, which makes the shards itself where there is no Ray."""
    return [socket.gethostname()]


class Actors:
    """The actors of this driver with ``name`` in the name of their class."""

    def __init__(self, name: str) -> None:
        self._name, self._last = name, list[str]()
        self._names: dict[str, str] = {}

    def hosts(self) -> list[str]:
        """The host of each actor whose process has begun."""
        with contextlib.suppress(Exception):  # the head does not answer, and may come back: keep the last answer
            self._last = [self._host(node) for node in ray_internals.nodes_of_actors(self._name)]
        return self._last

    def _host(self, node: str) -> str:
        import ray

        if node not in self._names:
            self._names |= {entry["NodeID"]: entry["NodeManagerHostname"] for entry in ray.nodes()}  # type: ignore[no-untyped-call]
        return self._names.get(node, node)
