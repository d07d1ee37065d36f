"""The classifier: what it hides, what it loses, what it says, against the papers written again."""

import numpy as np
import pytest
import torch

from mvray.experiment.contracts import Facts
from mvray.methods import classifier

FACTS = Facts(classes=("ada", "ben", "cleo"), height=73, width=52, channels=1, samples=8)
SMALL = "alexnet-small"


def method_of(seed: int = 0, **settings: object) -> classifier.Classifier:
    torch.manual_seed(seed)
    return classifier.Config(network=SMALL, **settings).build(FACTS)


def batch_of(samples: int = 8, channels: int = 1) -> dict[str, torch.Tensor]:
    rand = torch.Generator().manual_seed(5)
    size = (samples, channels, FACTS.height, FACTS.width)
    return {
        "image": torch.randint(0, 256, size, dtype=torch.uint8, generator=rand),
        "label": torch.arange(samples) % 3,
        "index": torch.arange(samples),
        "draw": torch.arange(samples) * 7919,
        "map": torch.rand(samples, 8, 5, generator=rand),
    }


def loss_of(method: classifier.Classifier, batch: dict[str, torch.Tensor], seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)  # for dropout
    return method(batch, "train")["cross_entropy"]


def test_loss_is_cross_entropy() -> None:
    method, batch = method_of(label_smoothing=0.1).eval(), batch_of()
    with torch.no_grad():
        scores_BK = method.class_scores(batch["image"]).double().numpy()
    log_p = scores_BK - np.log(np.exp(scores_BK).sum(1, keepdims=True))
    target = np.full((8, 3), 0.1 / 3) + 0.9 * np.eye(3)[batch["label"].numpy()]
    assert loss_of(method, batch).item() == pytest.approx(-(target * log_p).sum(1).mean(), rel=1e-5)


def test_pictures_are_normalised_and_grey_is_repeated() -> None:
    method, grey_BCHW = method_of().eval(), batch_of()["image"]
    pixels = grey_BCHW.double() / 255
    mean, std = method.config.mean, method.config.std
    three = torch.cat([(pixels - m) / s for m, s in zip(mean, std, strict=True)], dim=1)
    with torch.no_grad():
        expected = method.network(three.float())
        torch.testing.assert_close(method.class_scores(grey_BCHW), expected, rtol=1e-4, atol=1e-5)
        colour = method.class_scores(grey_BCHW.repeat(1, 3, 1, 1))
        assert torch.equal(method.class_scores(grey_BCHW), colour)
