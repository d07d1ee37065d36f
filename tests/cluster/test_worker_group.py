"""When a worker group's task is ended early, without a cluster; test_train.py, test_cluster_faults.py: on Ray."""

from __future__ import annotations

import pytest

from mvray.cluster.worker_group import GRACE_S, _End
from mvray.errors import StepFailed


class Asked:
    """What is asked again and again, and answers ``says``."""

    def __init__(self) -> None:
        self.says = False

    def __call__(self) -> bool:
        return self.says


@pytest.fixture
def stopping() -> Asked:
    return Asked()


@pytest.fixture
def wish() -> Asked:
    return Asked()


def test_somebody_who_waits_does_so_for_the_grace_period(clock: list[float], stopping: Asked, wish: Asked) -> None:
    end = _End(stopping, wish)
    assert not end.begins()
    stopping.says = True
    assert [end.begins() for _ in range(3)] == [True, False, False]
    clock[0] += GRACE_S
    assert not end.begins()
    clock[0] += 0.2
    with pytest.raises(StepFailed, match="The workers wrote no checkpoint within 60 s; an older one is there"):
        end.begins()


def test_the_crews_own_wish_waits_for_a_long_validation(clock: list[float], stopping: Asked, wish: Asked) -> None:
    """A notice for a node must not end the job; Ctrl-C after it has its own time."""
    end = _End(stopping, wish)
    wish.says = True
    assert [end.begins() for _ in range(3)] == [True, False, False]
    clock[0] += 100 * GRACE_S
    assert not end.begins()
    stopping.says = True
    assert not end.begins()  # the workers were asked before
    clock[0] += GRACE_S
    assert not end.begins()
    clock[0] += 0.2
    with pytest.raises(StepFailed, match="wrote no checkpoint"):
        end.begins()
