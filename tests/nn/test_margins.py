"""The margins against the papers' formulas written again, and against pytorch-metric-learning."""

import math

import numpy as np
import pytest
import torch

from mvray.nn import margins

CLASSES, DIMENSIONS, BATCH = 7, 5, 12


def given(seed: int = 0, per_class: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, centres and labels, float64 with gradients. Two embeddings are nearly opposite to their class."""
    rand = torch.Generator().manual_seed(seed)
    embeddings_BE = torch.randn(BATCH, DIMENSIONS, generator=rand, dtype=torch.float64)
    centres_CE = torch.randn(CLASSES * per_class, DIMENSIONS, generator=rand, dtype=torch.float64)
    label_B = torch.arange(BATCH) % CLASSES
    for i in (0, 1):
        embeddings_BE[i] = -centres_CE[label_B[i] * per_class] + 0.1 * embeddings_BE[i]
    return embeddings_BE.requires_grad_(), centres_CE.requires_grad_(), label_B


def angle(one: np.ndarray, other: np.ndarray) -> float:
    return math.acos(float(one @ other) / math.sqrt(float(one @ one) * float(other @ other)))


def slow_loss(kind: str, margin: float, scale: float, per_class: int = 1) -> float:
    """Cross-entropy sample by sample: ArcFace's equation 3, CosFace's equation 4, sub-centre ArcFace's equation 3."""
    embeddings_BE, centres_CE, label_B = (each.detach().numpy() for each in given(per_class=per_class))
    losses = []
    for x, label in zip(embeddings_BE, label_B, strict=True):
        logits = []
        for c in range(CLASSES):
            theta = min(angle(x, w) for w in centres_CE[c * per_class : (c + 1) * per_class])
            if c != label:
                logits.append(scale * math.cos(theta))
            elif kind == "cosface":
                logits.append(scale * (math.cos(theta) - margin))
            elif theta <= math.pi - margin:
                logits.append(scale * math.cos(theta + margin))
            else:
                logits.append(scale * (math.cos(theta) - margin * math.sin(margin)))
        losses.append(-logits[label] + math.log(sum(math.exp(logit) for logit in logits)))
    return float(np.mean(losses))


def fast_loss(
    kind: str, margin: float, scale: float, per_class: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    embeddings_BE, centres_CE, label_B = given(per_class=per_class)
    cosine_BC = margins.cosines(embeddings_BE, centres_CE, per_class)
    logits_BC = {"arcface": margins.arcface, "cosface": margins.cosface}[kind](cosine_BC, label_B, margin, scale)
    return torch.nn.functional.cross_entropy(logits_BC, label_B), embeddings_BE, centres_CE


CASES = [("arcface", 0.5, 1), ("arcface", 0.0, 1), ("arcface", 1.2, 1), ("cosface", 0.35, 1), ("arcface", 0.5, 3)]


@pytest.mark.parametrize(("kind", "margin", "per_class"), CASES)
def test_the_papers_formulas(kind: str, margin: float, per_class: int) -> None:
    loss, *_ = fast_loss(kind, margin, 10.0, per_class)
    assert loss.item() == pytest.approx(slow_loss(kind, margin, 10.0, per_class), rel=1e-9)


@pytest.mark.parametrize(("kind", "margin", "per_class"), CASES)
def test_gradients(kind: str, margin: float, per_class: int) -> None:
    """Those of the loss against finite differences; our own backward pass is part of it."""
    embeddings_BE, centres_CE, label_B = given(per_class=per_class)

    def loss(embeddings_BE: torch.Tensor, centres_CE: torch.Tensor) -> torch.Tensor:
        cosine_BC = margins.cosines(embeddings_BE, centres_CE, per_class)
        logits_BC = {"arcface": margins.arcface, "cosface": margins.cosface}[kind](cosine_BC, label_B, margin, 4.0)
        return torch.nn.functional.cross_entropy(logits_BC, label_B)

    assert torch.autograd.gradcheck(loss, (embeddings_BE, centres_CE), fast_mode=True)  # along random directions


@pytest.mark.parametrize(("kind", "margin", "per_class"), CASES)
def test_pytorch_metric_learning_agrees(kind: str, margin: float, per_class: int) -> None:
    from pytorch_metric_learning import losses

    loss, embeddings_BE, centres_CE = fast_loss(kind, margin, 30.0, per_class)
    sizes = {"num_classes": CLASSES, "embedding_size": DIMENSIONS}
    if kind == "cosface":
        peer = losses.CosFaceLoss(**sizes, margin=margin, scale=30.0)
    elif per_class > 1:  # its margins of angles are degrees
        peer = losses.SubCenterArcFaceLoss(**sizes, margin=math.degrees(margin), scale=30.0, sub_centers=per_class)
    else:
        peer = losses.ArcFaceLoss(**sizes, margin=math.degrees(margin), scale=30.0)
    peer.W.data = centres_CE.detach().T.clone()
    theirs_BE = embeddings_BE.detach().clone().requires_grad_()
    theirs = peer(theirs_BE, given()[2])
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    ours = torch.autograd.grad(loss, (embeddings_BE, centres_CE))
    expected = torch.autograd.grad(theirs, (theirs_BE, peer.W))
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], expected[1].T, rtol=1e-5, atol=1e-5)


def test_further_away_is_always_worse() -> None:
    """Over all angles, beyond pi - m too, where cos(theta + m) alone would rise again."""
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    label = torch.zeros(len(theta), dtype=torch.int64)
    for margin_rad in (0.1, 0.5, 1.0, math.pi / 2):
        logit = margins.arcface(theta.cos()[:, None], label, margin_rad, 1.0)[:, 0]
        assert (logit.diff() < 0).all(), margin_rad
        step = logit.diff()[(theta[1:] > math.pi - margin_rad)]
        assert step[1:].min() > -0.01, "no jump but the one at pi - m"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_are_finite_where_the_cosine_is_1(dtype: torch.dtype, autocast: bool, sign: int) -> None:
    centres_CE = margins.centres(CLASSES, DIMENSIONS)
    label_B = torch.arange(CLASSES)
    embeddings_BE = (sign * 3 * centres_CE.detach()).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        cosine_BC = margins.cosines(embeddings_BE, centres_CE)
        logits_BC = margins.arcface(cosine_BC, label_B, 0.5, 64.0)
        loss = torch.nn.functional.cross_entropy(logits_BC, label_B)
    assert cosine_BC.dtype == logits_BC.dtype == torch.float32
    loss.backward()
    for tensor in (embeddings_BE, centres_CE):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() < 1e6
    exact = torch.ones(1, 2, dtype=(dtype.is_floating_point and torch.float32) or None).mul(sign).requires_grad_()
    margins.arcface(exact, torch.zeros(1, dtype=torch.int64), 0.5, 64.0).sum().backward()
    assert exact.grad is not None
    assert exact.grad.isfinite().all()


def test_an_empty_embedding_is_no_division_by_zero() -> None:
    embeddings_BE, centres_CE = torch.zeros(2, DIMENSIONS, requires_grad=True), margins.centres(3, DIMENSIONS)
    with torch.no_grad():
        centres_CE[0] = 0
    cosine_BC = margins.cosines(embeddings_BE, centres_CE)
    assert torch.equal(cosine_BC, torch.zeros(2, 3))
    cosine_BC.sum().backward()
    assert embeddings_BE.grad is not None
    assert embeddings_BE.grad.isfinite().all()


def test_margin_is_radians() -> None:
    """Half a radian, 28.6 degrees, moves an embedding on its centre by that angle."""
    logit = margins.arcface(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), 0.5, 1.0)[0, 0]
    assert math.degrees(math.acos(logit)) == pytest.approx(28.65, abs=0.1)
    with_cosine = margins.cosface(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), 0.35, 1.0)
    assert with_cosine.tolist() == [[pytest.approx(0.65), 1.0]]


def test_only_the_nearest_of_a_class_s_centres_learns() -> None:
    embeddings_BE, centres_CE, label_B = given(per_class=3)
    cosine_BC = margins.cosines(embeddings_BE, centres_CE, 3)
    cosine_BC[0, int(label_B[0])].backward()
    assert centres_CE.grad is not None
    assert int((centres_CE.grad.abs().sum(1) > 0).sum()) == 1


def test_100_000_classes_take_no_second_copy_of_the_centres() -> None:
    """What the graph keeps for the backward pass, apart from the centres: the norms and a few B x C."""
    classes, batch = 100_000, 4
    centres_CE = margins.centres(classes, 16)
    embeddings_BE, label_B = torch.randn(batch, 16), torch.arange(batch)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits_BC = margins.arcface(margins.cosines(embeddings_BE, centres_CE), label_B, 0.5, 64.0)
        loss = torch.nn.functional.cross_entropy(logits_BC, label_B)
    kept.pop(centres_CE.data_ptr())
    assert sum(kept.values()) <= 3 * batch * classes
    loss.backward()
    assert centres_CE.grad is not None
