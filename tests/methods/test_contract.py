"""What every method keeps, for each Train step of every job in its tiny form.

A new job is found by itself. Pictures are small and the columns that a method needs are random maps:
this is about the contract (mvray/nn/method.py), not about what is learnt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from contract import SAMPLES, SIZES, STEPS, batch_of, built, class_maps_of, facts_of, losses, predicted, sized
from PIL import Image
from toys import Here, Means, Shared, task, weights

from mvray.data.columns import map_field
from mvray.data.readers.folder import Folder
from mvray.data.readers.pairs import Pairs
from mvray.data.readers.videos import Videos
from mvray.data.tables import read_table, write_table
from mvray.experiment.contracts import Batch, Frame, Instances, Segmenter
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import LAST, Data, Generate, Optim, Scale, Train
from mvray.generators import instance_masks
from mvray.generators.segmenters import files
from mvray.nn.method import Method
from mvray.storage.storage import Storage
from mvray.training.checkpoint import weights_from_bytes, weights_to_bytes
from mvray.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


PARAMETERS = [  # Mask R-CNN is slow with all that it learns; with pixels alone it is among the fast ones
    pytest.param(step, id=name, marks=[pytest.mark.slow] * name.endswith("-segmenter")) for name, step in STEPS.items()
]


@pytest.fixture(scope="module", params=PARAMETERS)
def step(request: pytest.FixtureRequest) -> Train:
    """The step on pictures as small as its network takes."""
    given: Train = request.param
    for height, width in SIZES:
        small = replace(given, data=replace(given.data, pictures=sized(given.data, height, width)))
        try:
            built(small).eval().predict(batch_of(small))
        except RuntimeError:  # torch: the output of a layer would be empty
            continue
        return small
    return given


def _trained_in(method: Method, phase: str) -> list[torch.nn.Parameter]:
    return [parameter for group in method.groups(phase) for parameter in group.parameters]


Optimisers = dict[str, torch.optim.Optimizer]


def optimisers_of(method: Method, lr: float) -> Optimisers:
    return {phase: torch.optim.Adam(_trained_in(method, phase), lr) for phase in method.phases}


def train_on(method: Method, batch: Batch, optimisers: Optimisers, steps: int) -> None:
    method.train()
    for _ in range(steps):
        for phase, optimiser in optimisers.items():
            optimiser.zero_grad()
            sum(method(batch, phase).values()).backward()
            optimiser.step()


@pytest.fixture(scope="module")
def trained(step: Train) -> tuple[Method, Batch]:
    """The method after three steps, and their batch; tests only let it predict."""
    method, batch = built(step), batch_of(step)
    train_on(method, batch, optimisers_of(method, 2e-3), steps=3)
    return method, batch


def test_there_is_something_to_hold_to_the_contract() -> None:
    assert {step.method.__module__ for step in STEPS.values()} >= {"mvray.methods.classifier"}


def test_losses_are_named_finite_scalars(step: Train) -> None:
    method = built(step)
    for mode in (True, False):
        found = losses(method.train(mode), batch_of(step))
        assert found
        for name, loss in found.items():
            assert loss.shape == (), name
            assert loss.isfinite(), name


def test_every_parameter_is_trained_in_some_phase(step: Train) -> None:
    method, batch = built(step), batch_of(step)
    method.train()
    wanted = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    reached: set[str] = set()
    for phase in method.phases:
        mine = {id(parameter) for parameter in _trained_in(method, phase)}
        method.zero_grad()
        sum(method(batch, phase).values()).backward()
        for name, parameter in method.named_parameters():
            if id(parameter) in mine and parameter.grad is not None:
                assert parameter.grad.isfinite().all(), name
                reached.add(name)
    assert reached == wanted


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, id=name, marks=[pytest.mark.slow] * name.startswith("object_abn"))
        for name, step in STEPS.items()
        if not name.endswith(("segmenter", "unet"))  # test_mask_rcnn.py and test_segmenter.py see them learn
    ],
    indirect=True,
)
def test_one_batch_can_be_overfitted(step: Train) -> None:
    method, batch = built(step), batch_of(step)

    def total() -> float:
        return sum(float(loss.detach()) for loss in losses(method.eval(), batch).values())

    before = after = total()
    optimisers = optimisers_of(method, 8e-3)
    for _ in range(24):
        train_on(method, batch, optimisers, steps=5)
        after = total()
        if after < 0.25 * before:
            return
    pytest.fail(f"{after} is not less than a quarter of {before}")


def test_the_same_seed_gives_the_same_loss(step: Train) -> None:
    batch = batch_of(step)
    first, again, other = (losses(built(step, seed).train(), batch) for seed in (0, 0, 1))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_state_goes_out_and_in_again(step: Train, trained: tuple[Method, Batch]) -> None:
    """Everything that predictions depend on is in the weights file, running statistics too."""
    method, batch = trained
    other = built(step, seed=9)
    made = [losses(each.eval(), batch) for each in (method, other)]
    assert any(not torch.equal(a, b) for a, b in both(*made))
    other.load_state_dict(weights_from_bytes(weights_to_bytes(method.state_dict())))
    assert all(alike(a, b) for a, b in both(predicted(method, batch), predicted(other, batch)))
    assert all(torch.equal(a, b) for a, b in both(made[0], losses(other, batch)))


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def both(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    assert one.keys() == other.keys()
    return [(one[name], other[name]) for name in one]


def test_predictions_are_in_the_order_of_the_batch(trained: tuple[Method, Batch]) -> None:
    method, batch = trained
    whole = predicted(method, batch)
    assert all(len(values) == SAMPLES for values in whole.values())
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))
    turned = predicted(method, {name: values[order] for name, values in batch.items()})
    for expected, found in both(whole, turned):
        torch.testing.assert_close(found, expected[order], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_predictions_do_not_depend_on_the_rest_of_the_batch(trained: tuple[Method, Batch]) -> None:
    method, batch = trained
    whole = predicted(method, batch)
    parts = [predicted(method, {n: values[at : at + 3] for n, values in batch.items()}) for at in range(0, SAMPLES, 3)]
    for name, expected in whole.items():
        found = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_predictions_need_no_generated_columns(step: Train) -> None:
    """Validation and Generate give none."""
    generated = (*step.method.needs, *step.method.predict_uses, "mask_labels")
    batch = {name: values for name, values in batch_of(step).items() if name not in generated}
    assert predicted(built(step), batch)


def test_scores_are_finite_and_have_what_the_step_selects_by(step: Train) -> None:
    method, batch = built(step), batch_of(step)
    evaluation = method.evaluation()
    evaluation.update(batch, predicted(method, batch))
    found = evaluation.compute(evaluation.joined([evaluation.state()]))
    assert found.keys() >= set(step.method.scores)
    assert step.select in (*found, LAST)
    assert all(np.isfinite(value) for value in found.values())


def test_what_is_random_in_a_sample_belongs_to_it(step: Train) -> None:
    """The loss of a batch is the mean over its samples, each treated alike in any batch."""
    method, batch = Shared(step.method).build(facts_of(step)).train(), batch_of(step)
    whole = losses(method, batch)
    halves = [losses(method, {n: values[rank::2] for n, values in batch.items()}) for rank in range(2)]
    for name, loss in whole.items():
        torch.testing.assert_close(torch.stack([half[name] for half in halves]).mean(), loss, rtol=1e-4, atol=1e-5)


FEWER = {"clusters": 6, "components": 8}
"""Settings that the 42 training samples below allow."""


# -- in the loop ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Path:
    """The drawings in a folder of pairs, a class map of blocks for each."""
    place = tmp_path_factory.mktemp("contract")
    for folder in ("images", "masks"):
        (place / folder).mkdir()
    for number, file in enumerate(sorted(drawings.glob("*/*"))):
        with Image.open(file) as picture:
            picture.convert("RGB").save(place / f"images/{number}.png")
            width, height = picture.size
        blocks = np.random.default_rng(number).integers(0, 3, (4, 4), np.uint8)
        Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(place / f"masks/{number}.png")
    (place / "classes.txt").write_text("background\nada\nben\n")
    return place


def small(step: Train, drawings: Path, videos: Path, pairs: Path) -> Train:
    """The step in a few batches, without what depends by its nature on how a batch is shared out."""
    pictures = replace(step.data.pictures, flip=True)
    if class_maps_of(step):
        data = Data(Pairs(root=str(pairs)), pictures)
    elif isinstance(pictures, Pictures):
        data = Data(Folder(root=str(drawings)), replace(pictures, crop_scale=(0.8, 1.0)))
    else:
        data = Data(Videos(root=str(videos)), pictures, masks=step.data.masks)
    optim = Optim(lr=0.005, batch_size=7, epochs=1)
    fewer = {name: number for name, number in FEWER.items() if hasattr(step.method, name)}
    method = Shared(replace(step.method, **fewer))
    return Train("step", method, data, optim, select=step.select, scale=Scale(loader_workers=0))


def with_columns(step: Train, given: Any) -> Any:
    """The task with random maps for the columns that its method needs."""
    keys = read_table(Storage(given.folder), "index.parquet")["key"]
    rand = np.random.default_rng(0)
    if set(step.method.needs) <= set(step.targets):
        return given
    fields = [map_field(name, 6, 4) for name in step.method.needs if name != "masks"]
    maps = [pa.array(list(rand.random((len(keys), 24)).astype(np.float16)), field.type) for field in fields]
    table = pa.table([keys, *maps], schema=pa.schema([pa.field("key", pa.string()), *fields]))
    if "masks" in step.method.needs:
        table = masks_of(keys.to_pylist())
    place = f"{given.folder}/made"
    write_table(Storage(place), "columns/00000.parquet", table)
    made = Generate("made", Means(), given.step.data)
    return replace(given, columns=(place,), step=replace(given.step, data=given.step.data.with_columns(made)))


def masks_of(keys: list[str]) -> pa.Table:
    """A block for each of the first frames of videos (conftest.py)."""

    class Blocks(Segmenter):
        classes = ("person", "object")

        def __call__(self, frames: list[Frame]) -> list[Instances]:
            masks = torch.zeros(1, *frames[0].pixels.shape[:2], dtype=torch.bool)
            masks[0, 10:30, 12:40] = True
            return [Instances(masks, torch.tensor([0]), torch.tensor([1.0]), torch.zeros(1, 4)) for _ in frames]

    frames = [Frame(key, number, np.zeros((48, 64, 3), np.uint8)) for key in keys for number in range(8)]
    config = instance_masks.Config(files.Config())
    table = instance_masks.InstanceMasks(config, Blocks())(frames)
    table = table.append_column("key", pa.array([frame.key for frame in frames]))
    return table.append_column("frame", pa.array([frame.number for frame in frames], pa.int32()))


@pytest.mark.slow
def test_two_ranks_equal_one(
    step: Train, drawings: Path, videos: Path, pairs: Path, tmp_path: Path, two_ranks: Callable[..., list[str]]
) -> None:
    short = small(step, drawings, videos, pairs)
    one, two = (with_columns(step, task(short, tmp_path / name)) for name in ("one", "two"))
    train(one, Here())
    assert two_ranks(two) == ["done", "done"]
    first, second = weights(one), weights(two)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=5e-5)  # sums in another order, over steps
    torch.manual_seed(0)
    start = short.method.build(one.facts).state_dict()
    assert any(float((first[name] - start[name]).abs().max()) > 1e-3 for name in first)
