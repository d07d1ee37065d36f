"""Optimisers, schedules and precision, against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from toys import Linear, TwoPhases

from mvray.experiment.contracts import Facts
from mvray.experiment.steps import Optim
from mvray.training.optim import lr_factor, optimiser, precision

FACTS = Facts(("a", "b"), height=2, width=2, channels=1, samples=4)


@pytest.mark.parametrize("epoch", [0, 0.25, 1, 7.5, 9.75])
def test_constant_and_cosine(epoch: float) -> None:
    assert lr_factor(Optim(), epoch, 10, 1) == 1
    cosine = Optim(schedule="cosine")
    assert lr_factor(cosine, epoch, 10, 1) == pytest.approx((1 + math.cos(math.pi * epoch / 10)) / 2)
    assert lr_factor(cosine, epoch, 10, 1) > lr_factor(cosine, epoch + 0.1, 10, 1)


def test_steps() -> None:
    steps = Optim(schedule="step", milestones=(3, 5), decay=0.1)
    found = [lr_factor(steps, epoch, 8, 1) for epoch in (0, 2.9, 3, 4.9, 5, 7)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert lr_factor(Optim(milestones=(3,)), 4, 8, 1) == 1  # belongs to "step" alone


def test_milestones_are_steps_where_steps_are_given() -> None:
    steps = Optim(schedule="step", milestones=(7, 12), steps=20)
    found = [lr_factor(steps, at / 5, 4, 5) for at in (0, 6, 7, 11, 12)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("epoch", [0, 1.25, 9.9, 10])
def test_poly(epoch: float) -> None:
    assert lr_factor(Optim(schedule="poly"), epoch, 10, 1) == pytest.approx((1 - epoch / 10) ** 0.9)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_rises_from_almost_nothing(schedule: str) -> None:
    warm = Optim(schedule=schedule, warmup_epochs=2, milestones=(6,))
    assert 0 < lr_factor(warm, 0, 10, 1) < 1e-6
    assert [lr_factor(warm, epoch, 10, 1) for epoch in (0.5, 1, 1.5)] == pytest.approx([0.25, 0.5, 0.75])
    plain = Optim(schedule=schedule, milestones=(6,))
    assert all(lr_factor(warm, epoch, 10, 1) == lr_factor(plain, epoch, 10, 1) for epoch in (2, 5, 6, 9))


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_optimisers(name: str, kind: str) -> None:
    method = Linear().build(FACTS)
    made = optimiser(Optim(name=name, lr=0.3, momentum=0.7, weight_decay=0.1), method, "train")
    (group,) = made.param_groups
    assert type(made).__name__ == kind
    assert (group["lr"], group["weight_decay"], group.get("momentum")) == (0.3, 0.1, 0.7 if name == "sgd" else None)
    assert group["params"] == list(method.parameters())


def test_a_phase_has_its_own_parameters_without_frozen_ones() -> None:
    method = TwoPhases().build(FACTS)
    method.left.bias.requires_grad_(False)
    params = {phase: optimiser(Optim(), method, phase).param_groups[0]["params"] for phase in method.phases}
    assert [id(each) for each in params["left"]] == [id(method.left.weight)]
    assert [id(each) for each in params["right"]] == [id(method.right.weight), id(method.right.bias)]


@pytest.mark.parametrize(
    ("asked", "kind"), [("auto", torch.float32), ("float32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_on_a_cpu(asked: str, kind: torch.dtype) -> None:
    layer = torch.nn.Linear(4, 2)
    with precision(Optim(precision=asked), torch.device("cpu")):
        made = layer(torch.ones(3, 4))
    assert made.dtype == kind
    assert layer.weight.dtype == torch.float32


@pytest.mark.gpu
def test_precision_on_a_gpu() -> None:
    device = torch.device("cuda")
    layer = torch.nn.Linear(4, 2, device=device)
    found = {}
    for asked in ("auto", "float32", "bf16"):
        with precision(Optim(precision=asked), device):
            found[asked] = layer(torch.ones(3, 4, device=device)).dtype
    wanted = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    assert found == {"auto": wanted, "float32": torch.float32, "bf16": torch.bfloat16}
