"""The attention branch against its formula, and both ways of applying its map."""

import pytest
import torch
from torch import Tensor, nn

from mvray.errors import SettingError
from mvray.nn.attention_branch import AttentionBranch, apply
from mvray.nn.x3d import split, split_width, x3d

pytestmark = pytest.mark.usefixtures("one_thread")


def features(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def branch(width: int, classes: int, depth: int = 1) -> AttentionBranch:
    """In float64 and eval mode, with normalisation as after training."""
    torch.manual_seed(0)
    made = AttentionBranch(width, classes, depth).double()
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm3d):
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
    return made.eval()


def normal(x_CTHW: Tensor, norm: nn.Module) -> Tensor:
    """Batch normalisation with the statistics of training, one channel at a time."""
    channels = []
    for c, x_THW in enumerate(x_CTHW):
        scaled = (x_THW - norm.running_mean[c]) / (norm.running_var[c] + norm.eps) ** 0.5
        channels.append(norm.weight[c] * scaled + norm.bias[c])
    return torch.stack(channels)


def slow_branch(made: AttentionBranch, h1_CTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Fukui et al. 2019, section 3, one clip, class and place at a time, after the residual blocks."""
    blocks, norm, conv, norm2, _ = made.maps
    x = normal(blocks(h1_CTHW[None])[0], norm)
    K = len(conv.weight)
    x = torch.stack([sum(conv.weight[k, c, 0, 0, 0] * x[c] for c in range(len(x))) for k in range(K)])
    x = torch.clamp(normal(x, norm2), min=0)

    own = made.score[0].weight
    scores = torch.stack([sum(own[k, c, 0, 0, 0] * x[c] for c in range(K)).mean() for k in range(K)])

    kernel, norm3 = made.attention[0].weight, made.attention[1]
    T, H, W = x.shape[1:]
    raw = torch.zeros(1, T, H, W, dtype=x.dtype)
    for t in range(T):
        for i in range(H):
            for j in range(W):
                for dt in (-1, 0, 1):
                    for di in (-1, 0, 1):
                        for dj in (-1, 0, 1):
                            if 0 <= t + dt < T and 0 <= i + di < H and 0 <= j + dj < W:
                                tap = kernel[0, :, 1 + dt, 1 + di, 1 + dj]
                                raw[0, t, i, j] += tap @ x[:, t + dt, i + di, j + dj]
    return 1 / (1 + torch.exp(-normal(raw, norm3)[0])), scores


@torch.no_grad()
def test_equals_the_papers_formula() -> None:
    made, h1_BCTHW = branch(8, 5), features(2, 8, 3, 4, 2)
    map_BTHW, scores_BK = made(h1_BCTHW)
    for map_THW, scores_K, h1_CTHW in zip(map_BTHW, scores_BK, h1_BCTHW, strict=True):
        expected_THW, expected_K = slow_branch(made, h1_CTHW)
        torch.testing.assert_close(map_THW, expected_THW, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(scores_K, expected_K, rtol=1e-10, atol=1e-12)
    assert map_BTHW.min() > 0
    assert map_BTHW.max() < 1
    assert map_BTHW.std() > 1e-3


def test_the_map_is_applied_in_both_ways() -> None:
    h_BCTHW = features(2, 3, 2, 2, 3)
    map_BTHW = torch.rand(2, 2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    multiplied, residual = apply(h_BCTHW, map_BTHW, "multiply"), apply(h_BCTHW, map_BTHW, "residual")
    for b, c, t, i, j in torch.ones_like(h_BCTHW).nonzero().tolist():
        h, m = h_BCTHW[b, c, t, i, j], map_BTHW[b, t, i, j]
        assert multiplied[b, c, t, i, j] == h * m
        assert residual[b, c, t, i, j] == h * (1 + m)
    with pytest.raises(SettingError, match="'add'; expected multiply or residual"):
        apply(h_BCTHW, map_BTHW, "add")


@pytest.mark.parametrize("depth", [1, 2])
def test_every_parameter_is_trained_by_scores_and_map_together(depth: int) -> None:
    made = branch(8, 4, depth).train()
    map_BTHW, scores_BK = made(features(2, 8, 3, 4, 4))
    (nn.functional.cross_entropy(scores_BK, torch.tensor([1, 2])) + map_BTHW.square().mean()).backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in made.parameters())
    assert len(made.maps[0].res_blocks) == depth
    # The map's own layers are not reached by the scores, and the other way round.
    made.zero_grad()
    made(features(2, 8, 3, 4, 4))[1].sum().backward()
    assert all(each.grad is None for each in made.attention.parameters())


@pytest.mark.parametrize("size", [(3, 4, 2), (4, 1, 1), (1, 3, 1)], ids=str)
def test_numerical_gradients_in_training(size: tuple[int, int, int]) -> None:
    made = branch(8, 3).train()
    names, values = zip(*made.named_parameters(), strict=True)

    def outputs(h1_BCTHW: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = torch.func.functional_call(made, dict(zip(names, values, strict=True)), h1_BCTHW)
        return found

    given = (features(4, 8, *size).requires_grad_(), *values)
    assert torch.autograd.gradcheck(outputs, given, fast_mode=True, eps=1e-7, atol=1e-4)


def test_starts_undecided() -> None:
    torch.manual_seed(0)
    made = AttentionBranch(48, 6)
    map_BTHW, _ = made(features(2, 48, 4, 6, 6).float())
    assert abs(float(map_BTHW.detach().mean()) - 0.5) < 0.1


@pytest.mark.parametrize(("name", "clip", "expected"), [("x3d-tiny", (8, 96, 64), (8, 6, 4))])
def test_maps_have_a_sixteenth_of_the_clips_sides(name: str, clip: tuple, expected: tuple) -> None:
    check_shapes(name, clip, expected)


@pytest.mark.slow
def test_maps_of_the_papers_clips_are_16_x_14_x_14() -> None:
    check_shapes("x3d-m", (16, 224, 224), (16, 14, 14))


@torch.no_grad()
def check_shapes(name: str, clip: tuple, expected: tuple) -> None:
    extractor, perception = split(x3d(name, 101).eval())
    made = AttentionBranch(split_width(name), 101).eval()
    features_BCTHW = extractor(torch.randn(1, 3, *clip))
    assert features_BCTHW.shape == (1, split_width(name), *expected)
    map_BTHW, scores_BK = made(features_BCTHW)
    assert map_BTHW.shape == (1, *expected)
    assert scores_BK.shape == (1, 101)
    for way in ("multiply", "residual"):
        assert perception(apply(features_BCTHW, map_BTHW, way)).shape == (1, 101)
