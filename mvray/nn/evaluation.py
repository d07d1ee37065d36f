"""How a method's predictions over a split become numbers: batch after batch on each rank, then once for all ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mvray.experiment import Batch

SUM, CONCATENATE = "sum", "concatenate"


class Evaluation(ABC):
    """Made anew by `Method.evaluation` for each pass over a split.

    ``over_ranks`` says what becomes of the ranks' states: SUM, which costs each rank no more than its state (a
    confusion matrix), or CONCATENATE, in the split's order.
    """

    over_ranks: ClassVar[str] = SUM

    @abstractmethod
    def update(self, batch: Batch, predicted: Mapping[str, Tensor]) -> None:
        """Take in ``Method.predict`` of a batch."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What this rank has taken in; {} for nothing. Tensors on the CPU."""

    @abstractmethod
    def compute(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        """The numbers out of the state of all ranks; the method's config names them in ``scores``."""

    def joined(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The states of all ranks, in their order, as one."""
        some = [state for state in states if state]  # a rank has none where there are fewer samples than ranks
        if not some:
            return {}
        if self.over_ranks == CONCATENATE:
            return {name: torch.cat([state[name] for state in some]) for name in some[0]}
        return {name: torch.stack([state[name] for state in some]).sum(0) for name in some[0]}


class Gathered(Evaluation):
    """Every column of ``predict``, and ``label``, over the whole split, from which ``score`` makes numbers."""

    over_ranks: ClassVar[str] = CONCATENATE

    def __init__(self, score: Callable[[Mapping[str, np.ndarray]], dict[str, float]]) -> None:
        self._score = score
        self._columns: dict[str, list[Tensor]] = {}
        self._on_gpu = False

    def update(self, batch: Batch, predicted: Mapping[str, Tensor]) -> None:
        for name, values in {**predicted, "label": batch["label"]}.items():
            # A GPU goes on with the next batch; these are read once, when all of them are there.
            self._on_gpu |= values.is_cuda
            self._columns.setdefault(name, []).append(values.to("cpu", non_blocking=True))

    def state(self) -> dict[str, Tensor]:
        if self._on_gpu:
            torch.cuda.synchronize()
        return {name: torch.cat(values) for name, values in self._columns.items()}

    def compute(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        return self._score({name: values.numpy() for name, values in state.items()})
