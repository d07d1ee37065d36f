"""Where a Ray release has changed its internals, each function does what it says it falls back to."""

from __future__ import annotations

import socket
import sys

import pytest
import ray

from mvray.cluster import local_ray, ray_internals

INTERNALS = (
    "ray._private.state",
    "ray._private.auto_init_hook",
    "ray._private.worker",
    "ray._raylet",
    "ray.data._internal.execution.streaming_executor",
)


@pytest.fixture(name="changed")
def _changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray without them."""
    for name in INTERNALS:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("changed")
def test_without_internals(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0}},
        {"NodeID": "b", "Alive": False, "Resources": {"CPU": 4.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert ray_internals.draining_nodes() == set()
    assert ray_internals.autoscaler_limits() == {}
    assert ray_internals.free_per_node() == {"a": {"CPU": 2.0}}
    ray_internals.never_connect_unasked()
    ray_internals.keep_last_words_off_the_terminal()
    ray_internals.end_data_executions()


@pytest.mark.usefixtures("changed")
def test_without_internals_a_cluster_answers_or_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert ray_internals.cluster_id(address) == "answers"
    assert ray_internals.cluster_id(address) == ""


def test_mistakes_elsewhere_are_no_reason_to_fall_back() -> None:
    @ray_internals.falls_back(lambda: "another")
    def refused() -> str:
        raise ConnectionError("nobody")

    with pytest.raises(ConnectionError):
        refused()


def test_an_untried_ray_and_whoever_asks_get_the_public_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(local_ray.PLAIN, raising=False)
    assert local_ray.is_lean()
    monkeypatch.setattr(local_ray, "version", lambda name: "2.61.0")
    assert not local_ray.is_lean()
    monkeypatch.undo()
    monkeypatch.setenv(local_ray.PLAIN, "1")
    assert not local_ray.is_lean()
