"""What the ranks of a training run tell one another."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from mvray.training.environment import Environment

T = TypeVar("T")


@functools.cache
def _host_group() -> Any:
    """A group for Python objects: gloo, also where gradients go over NCCL."""
    return torch.distributed.new_group(backend="gloo")


def gathered(thing: T, here: Environment) -> list[T]:
    """Every rank's ``thing``, in the order of ranks, on every rank."""
    if here.world == 1:
        return [thing]
    things: list[Any] = [None] * here.world
    torch.distributed.all_gather_object(things, thing, group=_host_group())
    return things
