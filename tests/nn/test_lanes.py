"""Frames side by side: order, groups, threads."""

import threading

import pytest
import torch

from mvray.nn.lanes import in_passes

CPU = torch.device("cpu")


@pytest.mark.parametrize("most", [None, 1, 2, 100])
def test_results_keep_the_order(most: int | None) -> None:
    items = list("abcdefg")
    kinds = [1, 2, 1, 1, 2, 3, 1]
    seen: list[list[str]] = []

    def run(group: list[str]) -> list[str]:
        seen.append(group)
        return [item.upper() for item in group]

    assert in_passes(run, items, kinds, CPU, most) == list("ABCDEFG")
    expected = {None: 7, 1: 7, 2: 4, 100: 3}[most]
    assert len(seen) == expected
    for group in seen:
        assert len({kinds[items.index(item)] for item in group}) == 1
    assert in_passes(run, [], [], CPU, most) == []


def test_each_core_has_a_frame_of_its_own() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=60)

    def run(group: list[int]) -> list[tuple[int, int, bool]]:
        both.wait()  # breaks where they come one after the other
        return [(each, torch.get_num_threads(), torch.is_inference_mode_enabled()) for each in group]

    try:
        assert in_passes(run, [5, 6, 7, 8], [0] * 4, CPU) == [(each, 1, True) for each in (5, 6, 7, 8)]
        assert torch.get_num_threads() == 2
        seen: list[int] = []
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert seen == [2]
    finally:
        torch.set_num_threads(threads)


def test_errors_come_out() -> None:
    def run(group: list[int]) -> list[int]:
        raise ValueError(f"no {group[0]}")

    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="no 1"):
        in_passes(run, [1, 2], [0, 0], CPU)
    assert torch.get_num_threads() == threads
