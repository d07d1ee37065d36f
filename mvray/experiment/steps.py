"""The steps of a job: Train, Generate, Measure, and what they are told: Data, Optim, Scale."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from mvray.errors import SettingError
from mvray.experiment.contracts import LABELS, Facts, FunctionMetric, GeneratorConfig, MethodConfig, Metric
from mvray.experiment.fields import ADDED, NOT_IDENTITY, check_above_0
from mvray.experiment.inputs import Clips, Masks, Pictures
from mvray.experiment.settings import Settings, kind_of
from mvray.experiment.source import Source

if TYPE_CHECKING:
    import pyarrow as pa

LAST = "last"
"""The value of Train.select for methods whose numbers must not choose, or cannot."""


@dataclass(frozen=True)
class Data(Settings):
    """Samples of a source, some of its splits, with the columns that Generate steps made for them.

    ``pictures`` is Clips where the source has videos. More than ``max_bad_fraction`` unreadable samples
    end the run before training.
    """

    kind: ClassVar[str] = "data"
    source: Source
    pictures: Pictures | Clips = Pictures()
    splits: tuple[str, ...] = ()
    columns: tuple[Generate, ...] = ()
    masks: Masks = Masks()
    max_bad_fraction: float = field(default=0.01, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        check_above_0(self, "data", "max_bad_fraction", or_0=True)

    def only(self, *splits: str) -> Data:
        """The samples of these splits."""
        return replace(self, splits=splits)

    @property
    def train(self) -> Data:
        return self.only("train")

    @property
    def validation(self) -> Data:
        return self.only("validation")

    @property
    def test(self) -> Data:
        return self.only("test")

    def with_columns(self, *steps: Generate) -> Data:
        """The same samples, each joined by key with the columns that ``steps`` make."""
        return replace(self, columns=self.columns + steps)

    def with_masks(self, step: Generate, masks: Masks) -> Data:
        """The same samples with the instance masks that ``step`` makes, used as ``masks`` says."""
        return replace(self, columns=(*self.columns, step), masks=masks)


@dataclass(frozen=True)
class Optim(Settings):
    """Optimisation. ``batch_size`` counts samples of one step over all workers and accumulations.

    ``schedule``: "constant", "cosine" (to zero), "step" (times ``decay`` at each epoch of
    ``milestones``) or "poly" (times (1 - t)^0.9, t the share of training that is done). Where ``steps`` is given,
    training takes so many optimiser steps, whatever part of an epoch that is; it stands for ``epochs``, and the
    milestones are steps, too. ``betas`` are Adam's. ``patience`` ends training after that many epochs without a better
    ``Train.select``. ``precision``: "auto" is bf16 on GPUs that have it and float32 elsewhere;
    "float32" or "bf16" ask for one.
    """

    kind: ClassVar[str] = "optim"
    name: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 32
    epochs: int = 10
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    clip_norm: float | None = None
    accumulate: int = 1
    patience: int | None = None
    precision: str = "auto"
    steps: int | None = field(default=None, metadata=ADDED)
    betas: tuple[float, float] = field(default=(0.9, 0.999), metadata=ADDED)

    def __post_init__(self) -> None:
        choices = {
            "name": "sgd, adam, adamw",
            "schedule": "constant, cosine, step, poly",
            "precision": "auto, float32, bf16",
        }
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed.split(", "):
                raise SettingError(f"optim.{name} is {value!r}; expected one of {allowed}.")
        above_0 = ("epochs", "steps", "batch_size", "lr", "accumulate", "decay", "patience", "clip_norm")
        check_above_0(self, "optim", *above_0)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise SettingError(f"optim.betas is {self.betas}; expected two numbers from 0 up to, not including, 1.")
        check_above_0(self, "optim", "momentum", "weight_decay", "warmup_epochs", or_0=True)

    def epochs_of(self, samples: int) -> int:
        """Passes over ``samples`` training samples, of which the last one may be a part."""
        return self.epochs if self.steps is None else -(-self.steps // (samples // min(self.batch_size, samples)))


@dataclass(frozen=True)
class Scale(Settings):
    """How a step is executed: how fast, and how the batch is shared out (of which batch norm knows). Not in the id.

    ``workers`` processes, with one GPU each where there are GPUs; ``loader_workers`` decode in each. With
    ``min_workers`` a Train step makes do with fewer, down to that many, while the cluster has no room for all. A
    checkpoint is written at every epoch's end and, inside an epoch, every ``checkpoint_steps`` steps and
    often enough that no more than ``checkpoint_minutes`` minutes of work are ever done again. Each actor of
    a Generate step holds ``gpus_per_actor``: 0.5 lets two share a GPU, 0 leaves the GPUs to others. Each node
    keeps at most ``cache_gb`` GB (2^30 bytes) of copies of columns, crops and files on S3, and a fifth of its disk. The
    prices, in any currency, give the cost in a run's summary and in MLflow.
    """

    kind: ClassVar[str] = "scale"
    workers: int = 1
    min_workers: int | None = None
    loader_workers: int = 2
    cpus_per_worker: float = 1.0
    gpus_per_actor: float = 1.0
    checkpoint_steps: int | None = None
    checkpoint_minutes: float = 5.0
    cache_gb: float = 20.0
    channels_last: bool = True
    compile: bool = False
    price_per_gpu_hour: float = 0.0
    price_per_cpu_hour: float = 0.0

    def __post_init__(self) -> None:
        check_above_0(
            self, "scale", "workers", "min_workers", "cpus_per_worker", "checkpoint_steps", "checkpoint_minutes"
        )
        more = ("price_per_gpu_hour", "price_per_cpu_hour", "cache_gb")
        check_above_0(self, "scale", "loader_workers", "gpus_per_actor", *more, or_0=True)
        if self.min_workers is not None and self.min_workers > self.workers:
            raise SettingError(
                f"scale.min_workers is {self.min_workers}; expected at most {self.workers}, the workers."
            )


class Step(Settings, ABC):
    """A piece of work with an output of its own; ``name`` is unique in the job.

    A kind of step says itself what it reads, which data and room it needs, and what may be shown of it; the driver
    that runs it is named in pipeline/drivers.py.
    """

    family: ClassVar[str] = "step"
    name: str
    data: Data
    scale: Scale

    draws: ClassVar[bool] = False
    """Whether it draws random numbers itself; one that does not is the same under every seed that its inputs share."""
    must_have: ClassVar[tuple[str, ...]] = ()
    """Splits that must have samples."""
    curves: ClassVar[bool] = False
    """Whether it has metrics of every epoch (history.json)."""
    confusion: ClassVar[bool] = False
    """Whether predictions among the columns that it reads are shown as confusion matrices."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[Step, ...]:
        """The steps whose output this one reads."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it reads; () for all."""
        return self.data.splits

    @property
    def files(self) -> tuple[str, ...]:
        """Files below the data's root that it reads beside the samples; they count by their content."""
        return ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The source's targets (`Source.targets`) that it reads."""
        return ()

    @property
    def needs_labels(self) -> bool:
        """Whether it reads the labels of samples that have several."""
        return False

    @property
    def context(self) -> str:
        """What its data is for, in a word."""
        return ", ".join(self.data.splits) or "all"

    @property
    def group_size(self) -> int:
        """Training workers that it has at most."""
        return 0

    @abstractmethod
    def room(self, gpus: float, workers: int | None = None) -> tuple[float, float]:
        """CPUs and GPUs that it holds with ``workers`` (None: as many as it asks for) where there are ``gpus``."""

    def check_data(self, facts: Facts, rows: pa.Table) -> None:
        """Raise UserError where it cannot work with such data; ``rows`` are those of its splits."""

    def check_here(self, facts: Facts) -> None:
        """Raise UserError where it cannot be executed as it is asked for, before a run starts anything.

        What is finished may have been made with fewer workers, or elsewhere, so reports do not ask.
        """


@dataclass(frozen=True)
class Train(Step):
    """Train ``method`` on ``data.train``, select by ``select`` on ``data.validation``.

    With ``start_from``, the selected weights of that step are loaded first; with
    ``count_start_epochs``, ``optim.epochs`` includes the epochs that it was trained for. Where ``select``
    is LAST, the last epoch's weights are the selected ones.
    """

    kind: ClassVar[str] = "train"
    draws: ClassVar[bool] = True
    must_have: ClassVar[tuple[str, ...]] = ("train", "validation")
    curves: ClassVar[bool] = True
    name: str
    method: MethodConfig
    data: Data
    optim: Optim = Optim()
    start_from: Train | None = None
    count_start_epochs: bool = False
    select: str = "accuracy"
    select_max: bool = True
    scale: Scale = field(default=Scale(), metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        if self.count_start_epochs and self.optim.steps is not None:
            raise SettingError(
                f"{self.name}.optim.steps is {self.optim.steps}, and count_start_epochs counts epochs; expected "
                "optim.epochs with it."
            )
        if self.select not in (*self.method.scores, LAST):
            raise SettingError(
                f"{self.name}.select is {self.select!r}; {kind_of(type(self.method))} scores "
                f"{', '.join(self.method.scores)}; {LAST!r} takes the last epoch."
            )

    @property
    def inputs(self) -> tuple[Step, ...]:
        return (*self.data.columns, *((self.start_from,) if self.start_from else ()))

    @property
    def splits(self) -> tuple[str, ...]:
        return self.must_have  # training never sees the test samples

    @property
    def targets(self) -> tuple[str, ...]:
        read = dict.fromkeys((*self.method.needs, *self.method.predict_uses))
        return tuple(name for name in read if name in self.data.source.targets)

    @property
    def needs_labels(self) -> bool:
        return LABELS in self.method.needs

    @property
    def context(self) -> str:
        return "training"

    @property
    def group_size(self) -> int:
        return self.scale.workers

    def room(self, gpus: float, workers: int | None = None) -> tuple[float, float]:
        workers = self.scale.workers if workers is None else workers
        return workers * self.scale.cpus_per_worker, float(workers) if gpus else 0.0

    def check_data(self, facts: Facts, rows: pa.Table) -> None:
        self.method.check(facts)

    def check_here(self, facts: Facts) -> None:
        # By the most workers that there may be: they could become so many hours after the start.
        self.check_shared(facts.samples, self.scale.workers)

    def check_shared(self, samples: int, workers: int) -> None:
        """Raises SettingError where a batch out of ``samples`` has too few for each worker and accumulation."""
        batch, accumulate = min(self.optim.batch_size, samples), self.optim.accumulate
        least = self.method.least_share
        if batch < workers * accumulate * least:
            each = "" if least == 1 else f", of at least {least} samples each"
            raise SettingError(
                f"Step {self.name!r}: a batch of {batch} samples cannot be shared by {workers} workers x {accumulate} "
                f"accumulations{each}. Use fewer workers or a larger batch_size."
            )


@dataclass(frozen=True)
class Generate(Step):
    """Make ``generator``'s columns for every sample of ``data``."""

    kind: ClassVar[str] = "generate"
    name: str
    generator: GeneratorConfig
    data: Data
    scale: Scale = field(default=Scale(), metadata=NOT_IDENTITY)

    @property
    def of(self) -> Train | None:
        """The trained step that is looked through, if any."""
        of: Train | None = self.generator.looks_through
        return of

    @property
    def files(self) -> tuple[str, ...]:
        return self.generator.reads

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(name for name in self.generator.needs if name in self.data.source.targets)

    @property
    def gpus_per_actor(self) -> float:
        """What each actor asks for where there are GPUs."""
        return self.scale.gpus_per_actor if self.generator.uses_gpu else 0.0

    @property
    def inputs(self) -> tuple[Step, ...]:
        return (*self.data.columns, *((self.of,) if self.of else ()))

    @property
    def needs_labels(self) -> bool:
        return LABELS in self.generator.needs

    def room(self, gpus: float, workers: int | None = None) -> tuple[float, float]:
        actors = self.scale.workers if workers is None else workers
        return actors * self.scale.cpus_per_worker, actors * self.gpus_per_actor if gpus else 0.0

    def check_here(self, facts: Facts) -> None:
        self.generator.check()


@dataclass(frozen=True)
class Measure(Step):
    """Numbers out of columns: each metric's, for each split of ``data``, reported as "split/name".

    A plain function with a Metric's arguments may stand for one.
    """

    kind: ClassVar[str] = "measure"
    confusion: ClassVar[bool] = True
    name: str
    data: Data
    metrics: tuple[Metric, ...]

    def __post_init__(self) -> None:
        metrics = (one if isinstance(one, Metric) else FunctionMetric(one) for one in self.metrics)
        object.__setattr__(self, "metrics", tuple(metrics))

    @property
    def inputs(self) -> tuple[Step, ...]:
        return self.data.columns

    @property
    def scale(self) -> Scale:  # type: ignore[override]
        """One process, with as many CPUs as an actor of what it reads has: some node has them."""
        return Scale(cpus_per_worker=max((step.scale.cpus_per_worker for step in self.data.columns), default=1.0))

    def room(self, gpus: float, workers: int | None = None) -> tuple[float, float]:
        return 0.0, 0.0  # short, so it waits for nobody

    def check_data(self, facts: Facts, rows: pa.Table) -> None:
        for metric in self.metrics:
            metric.check(rows)
