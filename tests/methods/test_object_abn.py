"""X3D, ABN and Object-ABN: their losses written again from the paper's formulas, and what is said of them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from mvray.errors import SettingError
from mvray.experiment.contracts import Facts
from mvray.methods import object_abn
from mvray.nn import sharpness

FACTS = Facts(classes=("hop", "sit", "turn"), height=64, width=64, channels=3, samples=8, frames=4)
TINY = "x3d-tiny"
pytestmark = pytest.mark.usefixtures("one_thread")


def method_of(seed: int = 0, **settings: object) -> object_abn.ObjectAbn:
    torch.manual_seed(seed)
    return object_abn.Config(network=TINY, **settings).build(FACTS)


def batch_of(samples: int = 4) -> dict[str, torch.Tensor]:
    rand = torch.Generator().manual_seed(5)
    return {
        "clip": torch.randint(0, 256, (samples, 3, 4, 64, 64), dtype=torch.uint8, generator=rand),
        "label": torch.arange(samples) % 3,
        "masks": (torch.rand((samples, 4, 64, 64), generator=rand) > 0.8).to(torch.uint8),
    }


def log_likelihood(scores_BK: torch.Tensor, label: torch.Tensor) -> float:
    scores = scores_BK.double().numpy()
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    return float(-log_p[np.arange(len(label)), label.numpy()].mean())


@pytest.mark.parametrize("attention", ["multiply", "residual"])
def test_losses_are_the_papers(attention: str) -> None:
    """L = L_per + lambda L_att + lambda_mask L_mask; h2 = h1 M or h1 (1 + M); M' is the masks at M's size."""
    method = method_of(attention=attention, lambda_attention=0.7, lambda_mask=10.0).eval()
    batch = batch_of()
    with torch.no_grad():
        found = method(batch, "train")
        h1 = method.extractor((batch["clip"].float() / 255 - 0.45) / 0.225)
        map_BThw, attention_BK = method.branch(h1)
        weight = map_BThw if attention == "multiply" else 1 + map_BThw
        scores_BK = method.perception(torch.stack([h1[:, c] * weight for c in range(h1.shape[1])], dim=1))
    assert map_BThw.shape == (4, 4, 4, 4)
    assert found["perception"].item() == pytest.approx(log_likelihood(scores_BK, batch["label"]), rel=1e-4)
    assert found["attention"].item() == pytest.approx(0.7 * log_likelihood(attention_BK, batch["label"]), rel=1e-4)
    masks = batch["masks"].double().numpy()
    cells = masks.reshape(4, 4, 4, 16, 4, 16).mean((3, 5))
    expected = 10 * ((map_BThw.double().numpy() - cells) ** 2).mean()
    assert found["mask"].item() == pytest.approx(expected, rel=1e-5)


def test_the_three_differ_in_their_settings_alone() -> None:
    plain, abn, ours = method_of(attention="none"), method_of(), method_of(lambda_mask=10.0)
    assert set(plain(batch_of(), "train")) == {"perception"}
    assert set(abn(batch_of(), "train")) == {"perception", "attention"}
    assert set(ours(batch_of(), "train")) == {"perception", "attention", "mask"}
    assert [m.config.needs for m in (plain, abn, ours)] == [(), (), ("masks",)]
    assert [m.config.predict_uses for m in (plain, abn, ours)] == [(), ("masks",), ("masks",)]
    shared = dict(abn.named_parameters())
    assert all(torch.equal(value, shared[name]) for name, value in plain.named_parameters())
    assert all(torch.equal(value, shared[name]) for name, value in ours.named_parameters())


@pytest.mark.slow
def test_masks_pull_the_map_towards_them() -> None:
    batch, ious = batch_of(), {}
    batch["masks"] = torch.zeros_like(batch["masks"])
    batch["masks"][:, :, :32, 16:48] = 1
    for lambda_mask in (0.0, 10.0):
        method = method_of(lambda_mask=lambda_mask).train()
        optimiser = torch.optim.Adam(method.parameters(), 0.01)
        for _ in range(25):
            optimiser.zero_grad()
            sum(method(batch, "train").values()).backward()
            optimiser.step()
        with torch.no_grad():
            ious[lambda_mask] = float(method.eval().predict(batch)["attention_iou"].mean())
    assert ious[10.0] > max(0.6, ious[0.0])


def test_predictions_say_what_there_is() -> None:
    method, batch = method_of().eval(), batch_of()
    with torch.no_grad():
        with_masks = method.predict(batch)
        without = method.predict({"clip": batch["clip"]})
        alone = method_of(attention="none").eval().predict({"clip": batch["clip"]})
    assert set(with_masks) - set(without) == {"attention_iou", "attention_pointing"}
    assert set(without) == {"scores", "predicted", "attention", "attention_entropy_bits"}
    assert set(alone) == {"scores", "predicted"}
    assert with_masks["scores"].sum(1).tolist() == pytest.approx([1.0] * 4)
    assert torch.equal(with_masks["predicted"], with_masks["scores"].argmax(1))
    entropy = sharpness.entropy_bits(with_masks["attention"])
    assert torch.equal(with_masks["attention_entropy_bits"], entropy)


def test_scores() -> None:
    columns = {
        "label": np.array([0, 1, 2, 0]),
        "predicted": np.array([0, 1, 0, 0]),
        "scores": np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2], [0.9, 0.1, 0.0]], np.float32),
        "attention_entropy_bits": np.array([2.0, np.nan, 3.0, 1.0], np.float32),
        "attention_iou": np.full(4, np.nan, np.float32),
    }
    found = method_of().score(columns)
    assert found["top1"] == 0.75
    assert found["top5"] == 1.0
    assert found["loss"] == pytest.approx(-np.log([0.5, 0.8, 0.2, 0.9]).mean(), rel=1e-5)
    assert found["attention_entropy_bits"] == 2.0
    assert "attention_iou" not in found


def test_top5_counts_the_five_best() -> None:
    scores = np.tile(np.arange(8, 0, -1) / 36, (3, 1)).astype(np.float32)
    columns = {"label": np.array([0, 4, 5]), "predicted": np.zeros(3, int), "scores": scores}
    assert method_of(attention="none").score(columns)["top5"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "sharp"}, "method.attention is 'sharp'; expected one of none .*, multiply, residual"),
        ({"lambda_mask": -1.0}, "method.lambda_mask is -1.0; expected 0 or more"),
        ({"lambda_attention": float("nan")}, "method.lambda_attention is nan"),
        ({"attention": "none", "lambda_mask": 1.0}, "without attention there is no map to pull"),
        ({"dropout": 1.0}, "method.dropout is 1.0"),
        ({"std": 0.0}, "method.std is 0.0; expected a value above 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        object_abn.Config(**settings)


def test_an_unknown_network_is_refused_before_torch_is_loaded() -> None:
    code = (
        "import sys; from mvray.cli import _lazy; _lazy('torch')\n"
        "from mvray.methods.object_abn import Config\n"
        "try: Config(network='x4d').check(None)\n"
        "except Exception as error: print(error, 'torch._C' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("There is no X3D network 'x4d'; expected one of x3d-tiny, x3d-xs, x3d-s, x3d-m, x3d-l.")
    assert said.endswith("False\n")
