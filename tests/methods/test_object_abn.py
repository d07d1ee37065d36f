"""X3D, ABN and Object-ABN: their losses written again from the paper's formulas, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mvray.experiment.contracts import Facts
from mvray.methods import object_abn

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
