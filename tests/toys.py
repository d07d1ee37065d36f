"""Small methods and what is needed to train them in a test.

They stay in a module of their own because the processes of `two_ranks` (conftest.py) import them too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import torch

from mvray import Job
from mvray.data.readers.folder import Folder
from mvray.data.tables import write_table
from mvray.experiment.contracts import Batch, Facts, Generator, GeneratorConfig, MethodConfig
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Data, Optim, Scale, Train
from mvray.nn.copy_paste import CopyPaste
from mvray.nn.evaluation import Evaluation
from mvray.nn.method import EpochWork, Group, Method
from mvray.pipeline import plan
from mvray.pipeline.train import task_of
from mvray.storage.storage import Storage
from mvray.training.checkpoint import weights_from_bytes
from mvray.training.environment import Local
from mvray.training.task import Task

if TYPE_CHECKING:
    from torch import Tensor

TINY = Pictures(height=6, width=4, channels=1)


@dataclass(frozen=True)
class Linear(MethodConfig):
    """Softmax regression on the pixels; the validation accuracy is ``script[epoch]`` where that is given."""

    dropout: float = 0.0
    nan_at: int = 0
    nan_row: int = -1
    script: tuple[float, ...] = ()

    def build(self, facts: Facts) -> Method:
        return LinearMethod(self, facts)


class LinearMethod(Method):
    """The loss is NaN in the ``nan_at``-th forward (from 1), and for a batch with the row ``nan_row``."""

    def __init__(self, config: Linear, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.layer = torch.nn.Linear(facts.height * facts.width * facts.channels, len(facts.classes))
        self.calls = self.scored = 0

    def scores(self, batch: Batch) -> Tensor:
        pixels = batch["image"].flatten(1).float() / 255
        return self.layer(torch.nn.functional.dropout(pixels, self.config.dropout, self.training))

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        self.calls += 1
        loss = torch.nn.functional.cross_entropy(self.scores(batch), batch["label"])
        if self.calls == self.config.nan_at or self.config.nan_row in batch["index"]:
            loss = loss * float("nan")
        return {"cross_entropy": loss}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"predicted": self.scores(batch).argmax(1)}

    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        self.scored += 1
        if self.config.script:
            return {"accuracy": self.config.script[self.scored - 1]}
        return {"accuracy": float((columns["predicted"] == columns["label"]).mean())}


@dataclass(frozen=True)
class Streamed(MethodConfig):
    """As Linear; the bias learns 20 times as fast and does not decay, and validation is counted batch by batch."""

    def build(self, facts: Facts) -> Method:
        return StreamedMethod(Linear(), facts)


class StreamedMethod(LinearMethod):
    def groups(self, phase: str) -> Sequence[Group]:
        return (Group([self.layer.weight]), Group([self.layer.bias], lr=20.0, weight_decay=0.0))

    def evaluation(self) -> Evaluation:
        return Counted()


class Counted(Evaluation):
    def __init__(self) -> None:
        self.right_and_all = torch.zeros(2, dtype=torch.int64)

    def update(self, batch: Batch, predicted: Mapping[str, Tensor]) -> None:
        right = predicted["predicted"] == batch["label"]
        self.right_and_all += torch.tensor([int(right.sum()), len(right)])

    def state(self) -> dict[str, Tensor]:
        return {"counts": self.right_and_all}

    def compute(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        assert int(state["counts"][1]) == 6  # of validation, each once
        return {"accuracy": float(state["counts"][0] / state["counts"][1])}


@dataclass(frozen=True)
class Shown(Linear):
    """As `Linear`; after an epoch it shows two things of a sample, and draws a random number for it."""

    kind = "toy_shown"

    def build(self, facts: Facts) -> Method:
        return ShownMethod(self, facts)


class ShownMethod(LinearMethod):
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        torch.rand(3)
        predicted_B = self.predict(batch)["predicted"].to(torch.uint8)
        classes_BHW = predicted_B[:, None, None].expand(-1, *batch["image"].shape[2:])
        return {"class": classes_BHW, "negative": 255 - batch["image"].expand(-1, 3, -1, -1)}


@dataclass(frozen=True)
class TwoPhases(MethodConfig):
    """Two layers, each trained in a phase of its own, although each phase's loss depends on both."""

    def build(self, facts: Facts) -> Method:
        return TwoPhasesMethod(facts)


class TwoPhasesMethod(Method):
    phases: ClassVar[tuple[str, ...]] = ("left", "right")

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        pixels = facts.height * facts.width * facts.channels
        self.left, self.right = (torch.nn.Linear(pixels, len(facts.classes)) for _ in range(2))

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        pixels, label = batch["image"].flatten(1).float() / 255, batch["label"]
        near, far = (self.left, self.right) if phase == "left" else (self.right, self.left)
        loss = torch.nn.functional.cross_entropy(near(pixels) + 0.5 * far(pixels), label)
        return {f"{phase}_loss": loss, f"{phase}_size": 0.1 * near.weight.square().mean()}

    def groups(self, phase: str) -> Sequence[Group]:
        return (Group(tuple(getattr(self, phase).parameters())),)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"predicted": self.left(batch["image"].flatten(1).float() / 255).argmax(1)}

    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"accuracy": float((columns["predicted"] == columns["label"]).mean())}


@dataclass(frozen=True)
class Relabelled(MethodConfig):
    """Before each epoch, new labels by what the whole training set looks like; odd rows are never drawn.

    ``random`` draws the labels from torch's generator instead.
    """

    random: bool = False

    def build(self, facts: Facts) -> Method:
        return RelabelledMethod(self, facts)


class RelabelledMethod(Method):
    def __init__(self, config: Relabelled, facts: Facts) -> None:
        super().__init__()
        self.config, self.classes = config, len(facts.classes)
        self.layer = torch.nn.Linear(facts.height * facts.width * facts.channels, self.classes)
        self.asked: list[int] = []
        self.seen: list[tuple[list[int], list[int]]] = []

    def before_epoch(self, work: EpochWork) -> Mapping[str, Tensor]:
        self.asked.append(work.epoch)
        sums = torch.zeros(work.samples, dtype=torch.float64)
        for index_B, made in work.predictions():
            sums[index_B] += made["brightness"].double()
        label = work.sum(sums).argsort().argsort() * self.classes // work.samples
        if self.config.random:
            label = torch.randint(0, self.classes, (work.samples,))
        return {"label": (label + work.epoch) % self.classes, "weight": 1.0 - torch.arange(work.samples) % 2}

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        self.seen.append((batch["index"].tolist(), batch["label"].tolist()))
        scores = self.layer(batch["image"].flatten(1).float() / 255)
        return {"cross_entropy": torch.nn.functional.cross_entropy(scores, batch["label"])}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"brightness": batch["image"].flatten(1).float().mean(1)}

    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"accuracy": float(columns["brightness"].mean())}


class Killed(BaseException):
    """As sudden as kill -9: nothing in mvray is ready for it."""


@dataclass(frozen=True)
class Kept(MethodConfig):
    """``of``'s method; each one that is built is kept in `BUILT`, and is killed in its forward number ``kill_at``."""

    of: MethodConfig
    kill_at: int = 0

    def build(self, facts: Facts) -> Method:
        method = self.of.build(facts)
        method.forwards = 0

        def called(*_: object) -> None:
            method.forwards += 1
            if method.forwards == self.kill_at:
                raise Killed

        method.register_forward_pre_hook(called)
        BUILT.append(method)
        return method


BUILT: list[Method] = []


@dataclass(frozen=True)
class Shared(MethodConfig):
    """``of``'s method without what by its nature depends on how a batch is shared out over ranks.

    Dropout drops nothing, batch normalisation keeps the statistics that it has, and nothing is pasted.
    """

    of: MethodConfig

    @property
    def scores(self) -> tuple[str, ...]:
        return self.of.scores

    @property
    def needs(self) -> tuple[str, ...]:
        return self.of.needs

    @property
    def predict_uses(self) -> tuple[str, ...]:
        return self.of.predict_uses

    def build(self, facts: Facts) -> Method:
        method = self.of.build(facts)
        for layer in method.modules():
            if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
                layer.p = 0.0
            elif isinstance(layer, CopyPaste):
                layer.share = 0.0
            elif isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.eval().train = lambda mode, layer=layer: layer
        return method


class Here(Local):
    """`Local` on the CPU, where results repeat to the last bit; asked to stop after ``stop_after`` steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self.left = stop_after
        self.reported: list[dict[str, float]] = []

    def report(self, task: Task, metrics: Mapping[str, float]) -> bool:
        self.reported.append(dict(metrics))
        return True

    def stopping(self) -> bool:
        self.left = None if self.left is None else self.left - 1
        return self.left == 0


def step_of(
    root: Path, method: MethodConfig, name: str = "toy", pictures: Pictures = TINY, **settings: object
) -> Train:
    """A Train step on a folder per class. Settings are those of Optim, and of Train and Scale by their names."""
    step, scale = {}, {"loader_workers": 0, "workers": 1}
    for key in list(settings):
        if key in Train.__dataclass_fields__:
            step[key] = settings.pop(key)
        elif key in Scale.__dataclass_fields__:
            scale[key] = settings.pop(key)
    optim = Optim(**{"epochs": 2, "batch_size": 8, "momentum": 0.5, **settings})
    return Train(name, method, Data(Folder(root=str(root)), pictures), optim, scale=Scale(**scale), **step)


def task(step: Train, place: Path, seed: int = 0) -> Task:
    """The step's task, its folder below ``place`` made ready."""
    planned = plan.make(Job("toys", (step,), seeds=(seed,)), Storage(str(place))).of(step, seed)
    write_table(planned.folder, "index.parquet", planned.rows())
    made = task_of(planned, 0)
    planned.folder.write("attempt", made.attempt.encode())
    return made


def weights(task: Task) -> dict[str, Tensor]:
    """The selected weights."""
    return weights_from_bytes(Storage(task.folder).read("weights.safetensors"))


def initial(task: Task) -> dict[str, Tensor]:
    """The weights that training begins with."""
    torch.manual_seed(task.seed)
    return {name: value.clone() for name, value in task.step.method.build(task.facts).state_dict().items()}


@dataclass(frozen=True)
class Ordered(MethodConfig):
    """The order of each epoch is the method's own; with ``fresh`` its momentum begins anew with every epoch."""

    fresh: bool = False

    def build(self, facts: Facts) -> Method:
        return OrderedMethod(self, facts)


class OrderedMethod(Method):
    def __init__(self, config: Ordered, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.layer = torch.nn.Linear(facts.height * facts.width * facts.channels, len(facts.classes))
        self.labels: Tensor | None = None
        self.seen: list[list[int]] = []

    def start(self, weights: Mapping[str, Tensor]) -> None:
        self.layer.weight.data.copy_(weights["layer.weight"])  # and the bias stays as it is

    def before_epoch(self, work: EpochWork) -> Mapping[str, Tensor]:
        self.labels = work.labels
        work.note("first", work.epoch * work.batch_size)
        if self.config.fresh:
            work.fresh(self.parameters())
        return {"order": torch.arange(work.samples).roll(work.epoch).flip(0)}

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        self.seen.append(batch["index"].tolist())
        scores = self.layer(batch["image"].flatten(1).float() / 255)
        return {"cross_entropy": torch.nn.functional.cross_entropy(scores, batch["label"])}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"predicted": self.layer(batch["image"].flatten(1).float() / 255).argmax(1)}

    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"accuracy": float((columns["predicted"] == columns["label"]).mean())}


@dataclass(frozen=True)
class Logged(MethodConfig):
    """Softmax regression that writes down, below ``folder``, which rows each rank trains on in which step.

    A step takes ``pause_s`` longer while there is a file ``slow`` in ``folder``.
    """

    folder: str = ""
    pause_s: float = 0.3

    def build(self, facts: Facts) -> Method:
        return LoggedMethod(self, facts)


class LoggedMethod(LinearMethod):
    def __init__(self, config: Logged, facts: Facts) -> None:
        super().__init__(Linear(), facts)
        self.logged = config
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        """Goes into checkpoints, so a step that is done again has its number again."""
        self.file = Path(config.folder) / f"{time.time_ns()}-{os.getpid()}.log"
        group = ray.util.get_current_placement_group() if (ray := sys.modules.get("ray")) else None
        self.group_id = group.id.hex() if group else ""

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        with self.file.open("a") as out:
            out.write(json.dumps([int(self.step), self.group_id, batch["index"].tolist()]) + "\n")
        self.step += 1
        if (Path(self.logged.folder) / "slow").exists():
            time.sleep(self.logged.pause_s)
        return super().forward(batch, phase)


def rows_of_epochs(folder: Path, batches: int) -> dict[int, list[int]]:
    """The rows that counted in each epoch: of a step that was done again, those of the last time."""
    steps: dict[int, dict[str, list[int]]] = {}
    for file in sorted(folder.glob("*.log")):  # in the order in which they began
        for line in file.read_text().splitlines():
            step, group_id, rows = json.loads(line)
            steps.setdefault(step, {}).setdefault(group_id, []).extend(rows)
    epochs: dict[int, list[int]] = {}
    for step, found in steps.items():
        epochs.setdefault(step // batches, []).extend(list(found.values())[-1])
    return epochs


@dataclass(frozen=True)
class Means(GeneratorConfig):
    """The mean of each picture; a batch takes ``pause_s`` longer while there is a file ``slow`` in ``folder``."""

    folder: str = ""
    pause_s: float = 1.0

    def build(self, method: Method | None, read: object) -> Generator:
        return MeansGenerator(self)


class MeansGenerator(Generator):
    def __init__(self, config: Means) -> None:
        self.config = config

    def __call__(self, batch: Batch) -> pa.Table:
        if (Path(self.config.folder) / "slow").exists():
            time.sleep(self.config.pause_s)
        return pa.table({"mean": batch["image"].float().mean((1, 2, 3)).numpy()})
