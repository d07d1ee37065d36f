"""Batch normalisation: frozen as it was loaded, and synchronised equal to one process that has all samples."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes

from mvray.errors import SettingError
from mvray.nn import batch_norm

VALUES = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def network(norm: str) -> torch.nn.Module:
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Flatten())
    made[1].running_mean += 0.5
    return batch_norm.with_norm(made, norm)


def test_frozen_uses_what_was_loaded_and_learns_nothing() -> None:
    frozen, trained = network("frozen").train(), network("trained").eval()
    before = {name: values.clone() for name, values in frozen.state_dict().items()}
    output = frozen(VALUES)
    torch.testing.assert_close(output, trained(VALUES))
    output.sum().backward()
    assert [name for name, p in frozen.named_parameters() if not p.requires_grad] == ["1.weight", "1.bias"]
    assert all(torch.equal(values, before[name]) for name, values in frozen.state_dict().items())
    assert list(frozen.state_dict()) == list(trained.state_dict())


def test_another_word_is_refused() -> None:
    with pytest.raises(SettingError, match=r"method.norm is 'sync'; expected one of trained, frozen, synchronised"):
        batch_norm.check("sync")


def _rank(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mine, made = VALUES[:3] if rank == 0 else VALUES[3:], network("synchronised").train()
    weight = torch.linspace(-1, 1, 36)
    loss = (made(mine) * weight).sum()
    loss.backward()
    for parameter in made.parameters():
        torch.distributed.all_reduce(parameter.grad)
    state = {"buffers": dict(made.named_buffers()), "grads": [p.grad for p in made.parameters()]}
    torch.save(state, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_with_uneven_shares_equal_one(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    one = network("trained").train()
    (one(VALUES) * torch.linspace(-1, 1, 36)).sum().backward()
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        for found, parameter in zip(state["grads"], one.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-5)
        for name, values in one.named_buffers():
            torch.testing.assert_close(state["buffers"][name], values)
