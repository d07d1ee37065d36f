"""Training that was interrupted ends where the uninterrupted one does: to the byte."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import BUILT, TINY, Here, Kept, Linear, Relabelled, TwoPhases, step_of, task

from mvray.job import Pictures, Train
from mvray.loop import train
from mvray.methods import classifier
from mvray.storage import Storage
from mvray.task import Task

NETWORK = classifier.Config(network="alexnet-small", hide="random", fill="noise")
INTERVAL = 3
"""Steps between checkpoints. An epoch is 5 steps, so they are at steps 3, 5, 8, 10, ..."""


class Killed(BaseException):
    """As sudden as kill -9: nothing in the loop is ready for it."""


def small(root: Path, method: object, **settings: object) -> Train:
    """A step that uses what has a state: momentum, dropout, augmentation, a schedule, several epochs."""
    pictures = Pictures(48, 32, 1, flip=True, crop_scale=(0.6, 1.0)) if isinstance(method, classifier.Config) else TINY
    given = {"lr": 0.02, "epochs": 3, "schedule": "cosine", "weight_decay": 0.01, "checkpoint_steps": INTERVAL}
    return step_of(root, Kept(method), pictures=pictures, **{**given, **settings})


def result(given: Task) -> tuple[bytes, list[dict[str, float]], dict[str, float]]:
    """The selected weights to the byte, and every number that is not a speed."""
    folder = Storage(given.folder)
    rows = json.loads(folder.read("history.json"))
    metrics = json.loads(folder.read("metrics.json"))
    for row in (*rows, metrics):
        del row["samples_per_s"]
    return folder.read("weights.safetensors"), rows, metrics


def calls() -> int:
    """Steps that the method built last has taken."""
    return len(BUILT[-1].calls) if isinstance(BUILT[-1].calls, list) else BUILT[-1].calls


class Steps(Here):
    """Counts the steps that are taken, and asks ``now`` after each but an epoch's last one."""

    def __init__(self, now: Callable[[int], None] = lambda step: None, stop_after: int | None = None) -> None:
        super().__init__(stop_after)
        self.now = now

    def stopping(self) -> bool:
        self.now(0)
        return super().stopping()
