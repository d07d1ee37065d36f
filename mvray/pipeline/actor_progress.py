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
    """Says how many of ``missing`` shards, out of ``shards``, are made; ``hosts`` names the node of each actor.

    ``gpus`` says whether there are GPUs. Before there is an actor nothing is said: the step waits for room.
    """

    def __init__(
        self, folder: Storage, step: Generate, missing: int, shards: int, hosts: Callable[[], list[str]], gpus: bool
    ) -> None:
        self._folder, self._missing, self._shards = folder, missing, shards
        self._hosts, self._each_gpus = hosts, step.gpus_per_actor if gpus else 0.0
        self._began_at, self._looked_at, self._there = time.monotonic(), 0.0, list[str]()
        self._busy: dict[str, float] = {}
        self._done = 0
        self.rows = 0

    def add_shard(self, rows: int, host: str, gpu_busy: float) -> None:
        """A shard was made on ``host``, whose GPUs were busy to ``gpu_busy`` percent (NaN: nobody knows)."""
        self._done, self.rows = self._done + 1, self.rows + rows
        if not math.isnan(gpu_busy):
            self._busy[host] = gpu_busy
        self._say()

    def look(self) -> None:
        """Called often; looks at times whether actors have come or gone."""
        if time.monotonic() - self._looked_at < LOOK_S:
            return
        self._looked_at, before = time.monotonic(), self._there
        self._there = sorted(self._hosts())
        if self._there != before:
            self._say()

    def _say(self) -> None:
        text = f"{self._shards - self._missing + self._done}/{self._shards} shards"
        if self._done:
            seconds = time.monotonic() - self._began_at
            left_s = (self._missing - self._done) * seconds / self._done
            text += f", {self.rows / seconds:.0f} samples/s, {duration(left_s)} left"
        if self._there:
            text += f", {where(self._there)}"
        text += gpu_words(busy for host, busy in self._busy.items() if host in self._there)
        actors = len(self._there)
        StepProgress(text, actors, gpus=actors * self._each_gpus).write(self._folder)


def this_process() -> list[str]:
    """Where there is no Ray."""
    return [socket.gethostname()]


class Actors:
    """The actors of this driver with ``name`` in the name of their class."""

    def __init__(self, name: str) -> None:
        self._name, self._last = name, list[str]()
        self._names: dict[str, str] = {}

    def hosts(self) -> list[str]:
        """The node of each whose process has begun; one that waits for room has the node that it waits at, no port."""
        with contextlib.suppress(Exception):  # whatever it raises: the head does not answer, and may come back
            self._last = [self._host(node) for node in ray_internals.nodes_of_actors(self._name)]
        return self._last

    def _host(self, node: str) -> str:
        import ray

        if node not in self._names:
            self._names |= {entry["NodeID"]: entry["NodeManagerHostname"] for entry in ray.nodes()}  # type: ignore[no-untyped-call]
        return self._names.get(node, node)
