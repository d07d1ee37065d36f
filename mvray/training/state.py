"""The state of a training run, and how it goes into a checkpoint and out again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mvray.training.ranks import gathered
from mvray.training.samples import Samples

if TYPE_CHECKING:
    from mvray.nn import Method
    from mvray.training.checkpoint import Checkpoints
    from mvray.training.coordination import Coordination
    from mvray.training.environment import Environment
    from mvray.training.live_progress import LiveProgress


@dataclass
class State:
    """Where training is. Saved in every checkpoint, with weights, optimisers and RNGs."""

    epoch: int = 0
    position: int = 0
    """Global batches of this epoch that are done."""
    steps: int = 0
    best: float | None = None
    best_epoch: int = -1
    best_name: str | None = None
    epochs_without_better: int = 0
    finished: bool = False
    sums: dict[str, float] = field(default_factory=dict)
    """Losses of this epoch so far, summed over this rank's steps."""
    notes: dict[str, float] = field(default_factory=dict)
    """What the method noted before this epoch."""
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Parts:
    """What is trained with."""

    method: Method
    call: Any
    """The method as it is called in training: wrapped in DDP, compiled."""
    optimisers: dict[str, torch.optim.Optimizer]
    samples: Samples
    checkpoints: Checkpoints
    progress: LiveProgress
    coordination: Coordination
    values: Mapping[str, Tensor]
    """What Method.before_epoch gave for the running epoch."""


@dataclass(frozen=True)
class EpochView:
    """What `Method.before_epoch` gets (method.EpochWork)."""

    parts: Parts
    state: State
    seed: int
    here: Environment

    @property
    def epoch(self) -> int:
        return self.state.epoch

    @property
    def rank(self) -> int:
        return self.here.rank

    @property
    def world(self) -> int:
        return self.here.world

    @property
    def samples(self) -> int:
        return self.parts.samples.samples

    @property
    def batch_size(self) -> int:
        return self.parts.samples.batch_size

    @property
    def labels(self) -> Tensor:
        return self.parts.samples.labels

    def predictions(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        return self.parts.samples.train_predictions(self.parts.method)

    def sum(self, tensor: Tensor) -> Tensor:
        if self.world > 1:
            tensor = tensor.clone(memory_format=torch.contiguous_format)  # gloo adds raw memory
            torch.distributed.all_reduce(tensor)
        return tensor

    def note(self, name: str, value: float) -> None:
        self.state.notes[name] = float(value)

    def fresh(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            for optimiser in self.parts.optimisers.values():
                optimiser.state.pop(parameter, None)


def save(parts: Parts, state: State, here: Environment) -> None:
    """Hand everything to the background writer of rank 0."""
    cuda = torch.cuda.get_rng_state(here.device) if here.device.type == "cuda" else None
    ranks = gathered({"cpu": torch.get_rng_state(), "cuda": cuda, "sums": state.sums}, here)
    if here.rank == 0:
        parts.progress.checkpoints = parts.checkpoints
        rest = {
            "state": asdict(state),
            "ranks": ranks,
            "optimisers": {phase: optimiser.state_dict() for phase, optimiser in parts.optimisers.items()},
            "values": dict(parts.values),
        }
        parts.checkpoints.save(state.steps, parts.method.state_dict(), rest, keep=state.best_name)


def resume(parts: Parts, state: State, here: Environment) -> None:
    """Go on from the newest checkpoint that can be read, if there is one."""
    checkpoint = parts.checkpoints.newest()
    if checkpoint is None:
        return
    weights, rest = checkpoint
    parts.progress.checkpoints = parts.checkpoints
    parts.method.load_state_dict(weights)
    for phase, optimiser in parts.optimisers.items():
        optimiser.load_state_dict(rest["optimisers"][phase])
    for name, value in rest["state"].items():
        setattr(state, name, value)
    parts.values = rest["values"]
    ranks = rest["ranks"]
    if len(ranks) == here.world:
        mine = ranks[here.rank]
        torch.set_rng_state(mine["cpu"])
        if mine["cuda"] is not None and here.device.type == "cuda":
            torch.cuda.set_rng_state(mine["cuda"], here.device)
        state.sums = mine["sums"]
    else:
        state.sums = {name: sum(rank["sums"][name] for rank in ranks) / len(ranks) for name in state.sums}
