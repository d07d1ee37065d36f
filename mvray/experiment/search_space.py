"""What `mvray tune` searches: the space of a step's settings, and how trials are chosen, judged and stopped."""

from __future__ import annotations

import itertools
import math
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from mvray.errors import SettingError
from mvray.experiment.fields import NOT_IDENTITY
from mvray.experiment.settings import Settings

SAMPLERS, SCHEDULERS = ("tpe", "random", "grid"), ("asha", "pbt", "none")
DIGITS = 4
"""Numbers are drawn to so many significant digits: people read them, and type them again."""
NEAR = (0.8, 1.2)
"""What population-based training multiplies a number by (Jaderberg et al. 2017, appendix A)."""


@dataclass(frozen=True)
class Domain(Settings, ABC):
    """The values that a setting may take."""

    @abstractmethod
    def draw(self, random: Random) -> Any:
        """One of them."""

    @abstractmethod
    def near(self, value: Any, random: Random) -> Any:
        """Another one beside ``value``."""

    @property
    def values(self) -> tuple[Any, ...]:
        """All of them; () where they are too many to count."""
        return ()

    @property
    @abstractmethod
    def ends(self) -> tuple[Any, ...]:
        """Values that must fit for all to fit."""

    @abstractmethod
    def __str__(self) -> str:
        """In words, for tables."""


@dataclass(frozen=True)
class Choice(Domain):
    """One of ``options``; in population-based training neighbours are near each other."""

    kind: ClassVar[str] = "choice"
    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.options, tuple) or len(set(map(repr, self.options))) < max(2, len(self.options)):
            raise SettingError(f"Choice({self.options!r}): expected a tuple of two or more different values.")

    def draw(self, random: Random) -> Any:
        return random.choice(self.options)

    def near(self, value: Any, random: Random) -> Any:
        at = self.options.index(value) + random.choice((-1, 1))
        return self.options[min(max(at, 0), len(self.options) - 1)]

    @property
    def values(self) -> tuple[Any, ...]:
        return self.options

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.options

    def __str__(self) -> str:
        return "one of " + ", ".join(map(as_text, self.options))


@dataclass(frozen=True)
class _Span(Domain):
    """``low`` and ``high`` are among the values."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise SettingError(f"{type(self).__name__}({self.low}, {self.high}): expected low < high, both finite.")

    @property
    def ends(self) -> tuple[Any, ...]:
        return (self.low, self.high)

    def near(self, value: Any, random: Random) -> Any:
        return self.fitted(value * random.choice(NEAR))

    def fitted(self, value: float) -> Any:
        """``value`` as it is used: readable, between the ends."""
        return float(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))


@dataclass(frozen=True)
class Uniform(_Span):
    """A number, each as likely as any other."""

    kind: ClassVar[str] = "uniform"

    def draw(self, random: Random) -> Any:
        return self.fitted(random.uniform(self.low, self.high))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class LogUniform(_Span):
    """A number above 0, each order of magnitude as likely as any other."""

    kind: ClassVar[str] = "log_uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise SettingError(f"LogUniform({self.low}, {self.high}): expected a low above 0.")

    def draw(self, random: Random) -> Any:
        return self.fitted(math.exp(random.uniform(math.log(self.low), math.log(self.high))))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, logarithmic"


@dataclass(frozen=True)
class Integers(_Span):
    """A whole number; with ``log`` each order of magnitude as likely as any other."""

    kind: ClassVar[str] = "integers"
    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low != int(self.low) or self.high != int(self.high) or (self.log and self.low < 1):
            raise SettingError(f"Integers({self.low}, {self.high}): expected whole numbers, with log from 1 on.")

    def draw(self, random: Random) -> Any:
        if not self.log:
            return random.randint(self.low, self.high)
        return self.fitted(math.exp(random.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5))))

    def near(self, value: Any, random: Random) -> Any:
        factor = random.choice(NEAR)
        step = 1 if factor > 1 else -1
        return self.fitted(value + step * max(1, round(abs(factor - 1) * value)))

    @property
    def values(self) -> tuple[Any, ...]:
        return tuple(range(self.low, self.high + 1))

    def fitted(self, value: float) -> Any:
        return int(min(max(round(value), self.low), self.high))

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" + (", logarithmic" if self.log else "")


@dataclass(frozen=True)
class Search(Settings):
    """Try settings of the Train step ``step`` out: ``space`` has them by name within the step ("method.margin_rad").

    The best trial is the one whose ``metric``, "validation/" and one of the method's scores, is highest, or lowest
    where not ``maximise``; of a trial, that of its selected epoch counts. ``sampler`` chooses settings: "tpe"
    (Bergstra et al. 2011, Optuna's), "random", or "grid" in the order of the space.

    ``scheduler`` ends bad trials: "asha" (Li et al. 2018) compares a trial after ``grace`` epochs, and again after
    ``reduction`` times as many, with those that came as far, and lets the best 1/``reduction`` go on. "none" trains
    all to the end. "pbt" (Jaderberg et al. 2017) trains ``trials`` members for ``grace`` epochs at a time; then the
    worst quarter goes on from weights of the best, with settings near theirs.

    Trials are trained with the job's first seed; ``seed`` is the sampler's own.
    """

    kind: ClassVar[str] = "search"
    step: str
    space: tuple[tuple[str, Domain], ...]
    metric: str
    maximise: bool = True
    trials: int = field(default=12, metadata=NOT_IDENTITY)
    sampler: str = "tpe"
    scheduler: str = "asha"
    grace: int = 2
    reduction: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("sampler", self.sampler, SAMPLERS),
            ("scheduler", self.scheduler, SCHEDULERS),
        ):
            if value not in allowed:
                raise SettingError(f"search.{name} is {value!r}; expected one of {', '.join(allowed)}.")
        for name, number, least in (("trials", self.trials, 1), ("grace", self.grace, 1), ("seed", self.seed, 0)):
            if number < least:
                raise SettingError(f"search.{name} is {number}; expected {least} or more.")
        if self.reduction < 2:
            raise SettingError(f"search.reduction is {self.reduction}; expected 2 or more.")
        if self.scheduler == "pbt" and self.trials < 2:
            raise SettingError(f"search.trials is {self.trials}; expected a population of 2 or more members.")
        self._check_space()

    def _check_space(self) -> None:
        names = [name for name, _ in self.space]
        if not names or len(set(names)) < len(names):
            raise SettingError(f"search.space is {names}; expected one or more settings, each once.")
        for name, domain in self.space:
            if not isinstance(domain, Domain):
                raise SettingError(
                    f"search.space has {domain!r} for {name}; expected Choice, Uniform, LogUniform or Integers."
                )
            if self.sampler == "grid" and not domain.values:
                raise SettingError(
                    f"search.space has {domain} for {name}, which no grid can go through; expected Choice or "
                    "Integers. Use the sampler tpe or random."
                )

    @property
    def size(self) -> int | None:
        """How many different settings there are; None where they are too many to count."""
        sizes = [len(domain.values) for _, domain in self.space]
        return math.prod(sizes) if all(sizes) else None

    def grid(self, number: int) -> dict[str, Any]:
        """The settings ``number`` of a space that has a size."""
        every = itertools.product(*(domain.values for _, domain in self.space))
        return dict(zip(dict(self.space), next(itertools.islice(every, number, None)), strict=True))

    def better(self, one: float, other: float) -> bool:
        """Whether ``one`` is the better value of the metric. A NaN is never better."""
        if math.isnan(one) or math.isnan(other):
            return math.isnan(other) and not math.isnan(one)
        return one > other if self.maximise else one < other

    def order(self, value: float) -> float:
        """A number that is smaller the better ``value`` is: a key to sort by."""
        return math.inf if math.isnan(value) else -value if self.maximise else value


def as_text(value: Any) -> str:
    """A setting's value as it is typed after `--set NAME=`."""
    if isinstance(value, tuple | list):
        return ",".join(map(as_text, value))
    return "none" if value is None else str(value)


def set_line(step: str, settings: Mapping[str, Any]) -> str:
    """Settings of a step, ready to be added to `mvray run JOB`."""
    words = (f"{step}.{name}={as_text(value)}" for name, value in settings.items())
    return " ".join(f"--set {shlex.quote(word)}" for word in words)
