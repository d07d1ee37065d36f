"""Frames through a detector: side by side on a CPU, several in a forward pass on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def in_passes(
    run: Callable[[list[T]], list[R]],
    items: Sequence[T],
    kinds: Sequence[Hashable],
    device: torch.device,
    most: int | None = None,
) -> list[R]:
    """``run`` on groups of ``items`` of one kind, without gradients; results in the order of the items.

    Frames of different sizes in one forward pass are padded to one size, and what a network finds in a
    frame depends on its padding; so the kind of a frame is its size as the network sees it.

    ``most`` items go through together; None is all of a kind on a GPU and one on a CPU. There a pass of
    several frames is hardly faster for each, and its parts that use one core only (sorting, suppression,
    pasting) would hold up the others; so each core works on a frame of its own.
    """
    most = most or (len(items) if device.type != "cpu" else 1)
    groups = _groups(kinds, most)
    results_of_groups = _side_by_side(lambda group: run([items[at] for at in group]), groups, device)
    order = [at for group in groups for at in group]
    by_position = dict(zip(order, (result for results in results_of_groups for result in results), strict=True))
    return [by_position[at] for at in range(len(items))]


def _groups(kinds: Sequence[Hashable], most: int) -> list[list[int]]:
    """Positions of one kind, at most ``most`` of them, in order."""
    of_kind: dict[Hashable, list[int]] = {}
    for position, kind in enumerate(kinds):
        of_kind.setdefault(kind, []).append(position)
    return [group[at : at + most] for group in of_kind.values() for at in range(0, len(group), most)]


def _side_by_side(run: Callable[[T], R], items: Sequence[T], device: torch.device) -> list[R]:
    """``run`` on each item; on a CPU on as many at once as torch may use cores."""

    def one(item: T) -> R:
        with torch.inference_mode():  # holds for a thread
            return run(item)

    cores = torch.get_num_threads()
    lanes = min(cores, len(items)) if device.type == "cpu" else 1
    if lanes < 2:
        return [one(item) for item in items]
    try:
        with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(cores // lanes,)) as pool:
            return list(pool.map(one, items))
    finally:
        torch.set_num_threads(cores)  # the lanes set their own; this is what threads begin with that come later
