"""On a GPU: every method of the jobs, the loop, its ranks and the generators give what they give on a CPU.

What belongs to one file of mvray is tested on a GPU beside that file's own tests (``-m gpu`` runs all).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from contract import STEPS, batch_of, built, losses, predicted, sized
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from toys import Here, Linear, Shared, step_of, task, weights

from mvray.experiment.contracts import Batch, MethodConfig
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import LAST, Optim, Train
from mvray.generators import features, gradcam, predictions
from mvray.methods import classifier, deepcluster
from mvray.nn import hiding, margins
from mvray.nn.method import Method
from mvray.storage.storage import Storage
from mvray.training import loop
from mvray.training.environment import Local, Torchrun, placed
from mvray.training.optim import precision
from mvray.training.state import Parts
from mvray.training.task import Task

pytestmark = pytest.mark.gpu
PAGE = Pictures(48, 32, 1, flip=True, crop_scale=(0.7, 1.0))
CLUSTERS = deepcluster.Config(network="vgg-small", clusters=6, components=8)
SIZES = ((64, 64), (224, 224))
"""Heights and widths in pixels: the first that the network can take."""


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Convolutions in float32, as on CPUs, where cuDNN may take TF32; and the same each time."""
    _exactly()
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False


def _exactly() -> None:
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True


@pytest.fixture(scope="module", params=STEPS.values(), ids=STEPS.keys())
def step(request: pytest.FixtureRequest) -> Train:
    given: Train = request.param
    height, width = SIZES[given.data.pictures.height > 64 and isinstance(given.data.pictures, Pictures)]
    return replace(given, data=replace(given.data, pictures=sized(given.data, height, width)))


def there(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: values.cuda() for name, values in batch.items()}


def moved(method: Method) -> Method:
    return placed(method, torch.device("cuda"), channels_last=True)


def without_dropout(method: Method) -> Method:
    """Of which the numbers are others on a GPU."""
    for layer in method.modules():
        if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
            layer.p = 0.0
    return method


# -- methods ---------------------------------------------------------------------------------


def test_losses_are_those_on_a_cpu(step: Train) -> None:
    """Mask R-CNN draws anchors and regions by the device's own numbers; what it says of pixels is the same."""
    method, batch = without_dropout(built(step)).train(), batch_of(step)
    expected = losses(method, batch)
    found = losses(moved(method), there(batch))
    assert found.keys() == expected.keys()
    drawn = {"train/loss_objectness", "train/loss_rpn_box_reg", "train/loss_classifier", "train/loss_box_reg"}
    for name, loss in expected.items():
        assert found[name].isfinite(), name
        if name not in drawn | {"train/loss_mask"}:
            torch.testing.assert_close(found[name].cpu(), loss, rtol=1e-3, atol=1e-4)


def test_bf16_losses_are_near_and_train_everything(step: Train) -> None:
    method, batch = moved(without_dropout(built(step)).train()), there(batch_of(step))
    expected = losses(method, batch)
    with precision(Optim(), torch.device("cuda")):
        found = losses(method, batch)
    torch.stack(list(found.values())).sum().backward()
    drawn = ("box_reg", "objectness", "classifier", "loss_mask")
    for name, loss in expected.items():
        assert found[name].isfinite(), name
        if not name.endswith(drawn):
            torch.testing.assert_close(found[name].float(), loss, rtol=0.05, atol=0.02)
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_predictions_are_those_on_a_cpu(step: Train) -> None:
    method, batch = built(step), batch_of(step)
    expected = predicted(method, batch)
    found = predicted(moved(method), there(batch))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name].cpu(), values, rtol=1e-3, atol=1e-4, equal_nan=True)


# -- the loop --------------------------------------------------------------------------------


def parts_of(given: Task) -> tuple[Parts, Local]:
    here = Local()
    return loop._parts(given, here, Storage(given.folder)), here


def stepped(parts: Parts, optim: Optim, batches: list[dict[str, torch.Tensor]], here: Local) -> list[float]:
    parts.method.train()
    return [float(sum(loop._step(parts, optim, batch, 1.0, here).values())) for batch in batches]


def pictures_task(drawings: Path, place: Path, **settings: object) -> Task:
    config = classifier.Config(network="alexnet-small", dropout=0.0)
    return task(step_of(drawings, config, pictures=PAGE, lr=0.01, **settings), place)


def batches_of(given: Task, count: int) -> list[dict[str, torch.Tensor]]:
    parts, _ = parts_of(given)
    found: list[dict[str, torch.Tensor]] = []
    while len(found) < count:
        found += parts.samples.train_batches(len(found), 0, {})
    return found[:count]


def test_training_is_that_on_a_cpu(drawings: Path, tmp_path: Path) -> None:
    step = step_of(drawings, Linear(), lr=0.05, precision="float32", loader_workers=2)
    here, there = task(step, tmp_path / "cpu"), task(step, tmp_path / "gpu")
    found = loop.train(there, Local()), loop.train(here, Here())
    rates = ("samples_per_s",)
    for name in found[0].keys() - rates:
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4), name
    for name, value in weights(here).items():
        torch.testing.assert_close(weights(there)[name], value, rtol=1e-4, atol=1e-5)


class Stopped(Local):
    """Asked to stop after so many steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def stopping(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("method", [classifier.Config(network="alexnet-small", dropout=0.5), CLUSTERS])
def test_what_was_stopped_goes_on(method: MethodConfig, drawings: Path, tmp_path: Path) -> None:
    """In the middle of an epoch, with the GPU's own random numbers for dropout."""
    step = step_of(drawings, method, pictures=PAGE, lr=0.01, precision="float32", select=LAST)
    whole, parted = task(step, tmp_path / "whole"), task(step, tmp_path / "parted")
    loop.train(whole, Local())
    loop.train(parted, Stopped(8))
    assert not Storage(parted.folder).exists("metrics.json")
    loop.train(parted, Local())
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parted)[name], value, rtol=1e-3, atol=1e-4)


def test_memory_does_not_grow(drawings: Path, tmp_path: Path) -> None:
    given = pictures_task(drawings, tmp_path)
    parts, here = parts_of(given)
    batches = batches_of(given, 10)
    used = []
    for _ in range(4):
        torch.cuda.reset_peak_memory_stats()
        stepped(parts, given.step.optim, batches, here)
        parts.samples.scores(parts.method, "validation")
        used.append((torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()))
    assert used[1] == used[2] == used[3]


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself and about TF32
def test_compiled_training_has_the_same_loss(drawings: Path, tmp_path: Path) -> None:
    plain, compiled = (
        pictures_task(drawings, tmp_path / name, compile=name == "compiled", precision="float32")
        for name in ("plain", "compiled")
    )
    batches = batches_of(plain, 3)
    expected, found = (stepped(parts_of(each)[0], each.step.optim, batches, Local()) for each in (plain, compiled))
    assert found == pytest.approx(expected, rel=1e-3)


# -- ranks -----------------------------------------------------------------------------------


def test_ddp_over_nccl_with_one_rank_changes_nothing(drawings: Path, tmp_path: Path) -> None:
    given = pictures_task(drawings, tmp_path, precision="float32")
    batches, optim = batches_of(given, 3), given.step.optim
    (alone, here), (one, _) = parts_of(given), parts_of(given)
    expected = stepped(alone, optim, batches, here)
    distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        one.call = DistributedDataParallel(one.method, device_ids=[0], forward_sync_buffers=False)
        assert stepped(one, optim, batches, here) == pytest.approx(expected, rel=1e-4)
        torch.cuda.synchronize()
    finally:
        distributed.destroy_process_group()
    for mine, other in zip(one.method.parameters(), alone.method.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


class Pair(Torchrun):
    """One rank of two: each has a GPU of its own over NCCL, or both share the only one over gloo."""

    def __init__(self, rank: int, port: int) -> None:
        self.rank, self.world = rank, 2
        gpus = torch.cuda.device_count()
        self.device = torch.device("cuda", rank % gpus)
        torch.cuda.set_device(self.device)
        place = f"tcp://127.0.0.1:{port}"
        backend = "nccl" if gpus > 1 else "gloo"
        distributed.init_process_group(backend, init_method=place, rank=rank, world_size=2)

    def stopping(self) -> bool:
        return False


def _rank(rank: int, port: int, given: list[Task]) -> None:
    _exactly()
    here = Pair(rank, port)
    for each in given:
        loop.train(each, here)
    distributed.destroy_process_group()


def test_two_ranks_equal_one(drawings: Path, tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    steps = (
        step_of(drawings, Linear(), lr=0.05, precision="float32", batch_size=7),
        step_of(
            drawings,
            Shared(CLUSTERS),
            "clusters",
            PAGE,
            lr=0.005,
            precision="float32",
            batch_size=7,
            epochs=1,
            select=LAST,
        ),
    )
    alone = [task(step, tmp_path / "one") for step in steps]
    shared = [task(step, tmp_path / "two") for step in steps]
    for each in alone:
        loop.train(each, Local())
    torch.multiprocessing.spawn(_rank, (port, shared), nprocs=2)
    for expected, found in zip(alone, shared, strict=True):
        for name, value in weights(expected).items():
            torch.testing.assert_close(weights(found)[name], value, rtol=1e-4, atol=5e-5)


# -- generators ------------------------------------------------------------------------------


def test_generators_make_what_they_make_on_a_cpu() -> None:
    config = classifier.Config(network="alexnet-small")
    step = step_of(Path("nowhere"), config, pictures=Pictures(64, 64, 1))
    batch = {**batch_of(step), "label": torch.arange(8) % 3}
    method = built(step).eval()
    made = (
        gradcam.Config(of=step),
        gradcam.Config(of=step, target="label"),
        features.Config(of=step, layers=("conv1", "conv3", "fc1", "pixels")),
        predictions.Config(of=step),
    )
    expected = [each.build(method, None)(batch) for each in made]
    method = moved(method)
    found = [each.build(method, None)(there(batch)) for each in made]
    for one, other in zip(found, expected, strict=True):
        assert one.schema == other.schema
        for name in one.column_names:
            np.testing.assert_allclose(numbers(one, name), numbers(other, name), rtol=5e-3, atol=2e-3)


def numbers(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), np.float64)


# -- parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [margins.arcface, margins.cosface])
@pytest.mark.parametrize("per_class", [1, 3])
def test_margins_have_the_same_loss_and_gradients(kind: object, per_class: int) -> None:
    rand = torch.Generator().manual_seed(0)
    embeddings_BE, centres_CE = torch.randn(64, 32, generator=rand), torch.randn(500 * per_class, 32, generator=rand)
    label_B = torch.randint(500, (64,), generator=rand)
    found = []
    for device in ("cpu", "cuda"):
        leaves = [each.detach().to(device, copy=True).requires_grad_() for each in (embeddings_BE, centres_CE)]
        with torch.autocast(device, torch.bfloat16):  # which the margins do not follow
            logits_BC = kind(margins.cosines(*leaves, per_class), label_B.to(device), 0.5, 64.0)
            loss = torch.nn.functional.cross_entropy(logits_BC, label_B.to(device))
        loss.backward()
        found.append([loss.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("how", hiding.FILLS)
def test_pictures_are_hidden_alike(how: str) -> None:
    rand = torch.Generator().manual_seed(0)
    images_BCHW = torch.randint(0, 256, (6, 3, 60, 45), dtype=torch.uint8, generator=rand)
    draw_B = torch.randint(-(2**60), 2**60, (6,), generator=rand)
    found = []
    for device in ("cpu", "cuda"):
        draw = draw_B.to(device)
        mask_BHW = (
            hiding.rectangle_mask(draw, 60, 45, (0.02, 0.4), (0.3, 3.3)) & hiding.is_hidden(draw, 0.7)[:, None, None]
        )
        found.append(hiding.fill(images_BCHW.to(device), mask_BHW, how, draw).cpu())
    apart = (found[0].int() - found[1].int()).abs()
    assert int(apart.max()) <= (how == "blur")  # its means are rounded from sums in another order
    assert not torch.equal(found[0], images_BCHW)
