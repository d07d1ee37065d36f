"""Convolutions over clips: the quick way on CPUs gives torch's own results and gradients."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvray.nn.conv3d import Conv3d, quick_layout

CASES = {
    "1x1x1": ((1, 1, 1), (1, 1, 1), 1),
    "1x1x1 strided": ((1, 1, 1), (1, 2, 2), 1),
    "1x3x3 strided": ((1, 3, 3), (1, 2, 2), 1),
    "1x3x3 grouped": ((1, 3, 3), (1, 1, 1), 2),
    "5x1x1 depthwise": ((5, 1, 1), (1, 1, 1), 6),
    "3x1x1 strided": ((3, 1, 1), (2, 1, 1), 1),
    "depthwise": ((3, 3, 3), (1, 1, 1), 6),
    "depthwise strided": ((3, 3, 3), (1, 2, 2), 6),
    "depthwise 5x3x3": ((5, 3, 3), (1, 1, 2), 6),
    "depthwise strided in time": ((3, 3, 3), (2, 2, 2), 6),
    "3x3x3": ((3, 3, 3), (1, 1, 1), 1),
    "3x3x3 grouped": ((3, 3, 3), (1, 2, 2), 3),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def layer(case: str, bias: bool = False) -> Conv3d:
    torch.manual_seed(0)
    kernel, stride, groups = CASES[case]
    return Conv3d(6, 6, kernel, stride, groups, bias)


def gradients(made: Tensor, towards: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((made * towards).sum(), of)


def compare(ours: Conv3d, clips_BCTHW: Tensor, rtol: float) -> None:
    """Output and every gradient against torch's conv3d, relative to the largest value of each."""
    given = clips_BCTHW.requires_grad_()
    parameters = tuple(ours.parameters())
    made = ours(given)
    expected = F.conv3d(given, ours.weight, ours.bias, ours.stride, ours.padding, 1, ours.groups)
    towards = torch.randn_like(expected, memory_format=torch.contiguous_format)
    found = (made, *gradients(made, towards, given, *parameters))
    wanted = (expected, *gradients(expected, towards, given, *parameters))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=rtol * float(other.detach().abs().max()) + 1e-30)


@pytest.mark.parametrize("size", [(4, 9, 8), (7, 5, 6), (2, 4, 4), (1, 3, 5), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_equals_torch(case: str, size: tuple[int, int, int]) -> None:
    compare(layer(case).double(), torch.randn(2, 6, *size, dtype=torch.float64), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [(4, 1, 1), (1, 1, 1), (3, 1, 2), (1, 4, 1), (1, 1, 3)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_normalisation_between_convolutions_of_a_pixel(case: str, size: tuple, dtype: torch.dtype) -> None:
    """In training it goes by strides that do not matter; see conv3d._frames."""
    first, second = layer(case).to(dtype), layer(case).to(dtype)
    norm, clips_BCTHW = nn.BatchNorm3d(6).to(dtype), torch.randn(8, 6, *size, dtype=dtype)

    def plain(made: Tensor, by: Conv3d) -> Tensor:
        return F.conv3d(made.contiguous(), by.weight, None, by.stride, by.padding, 1, by.groups).contiguous()

    for given in (clips_BCTHW, quick_layout(clips_BCTHW)):
        given.requires_grad_()
        made = norm(second(norm(first(given))))
        expected = norm(plain(norm(plain(given, first)), second))
        towards = torch.randn(expected.shape, dtype=dtype)
        (found,), (wanted,) = gradients(made, towards, given), gradients(expected, towards, given)
        torch.testing.assert_close(found, wanted, rtol=0, atol=(1e-9 if dtype == torch.float64 else 1e-3))


@pytest.mark.parametrize("case", CASES)
def test_equals_torch_in_float32_and_with_a_bias(case: str) -> None:
    compare(layer(case, bias=True), torch.randn(2, 6, 5, 12, 10), 1e-5)
    compare(layer(case), torch.randn(1, 6, 8, 20, 20), 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_any_memory_layout_gives_the_same(case: str) -> None:
    ours, clips_BCTHW = layer(case).double(), torch.randn(2, 6, 4, 6, 8, dtype=torch.float64)
    expected = ours(clips_BCTHW)
    for given in (quick_layout(clips_BCTHW), clips_BCTHW.transpose(3, 4).contiguous().transpose(3, 4)):
        torch.testing.assert_close(ours(given), expected)


def test_numerical_gradients_of_a_depthwise_convolution() -> None:
    ours = layer("depthwise strided").double()
    clips_BCTHW = torch.randn(1, 6, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours, (clips_BCTHW,), fast_mode=True)


def test_only_the_gradients_that_are_asked_for() -> None:
    ours, clips_BCTHW = layer("depthwise"), torch.randn(1, 6, 3, 5, 5)
    ours(clips_BCTHW).sum().backward()
    assert ours.weight.grad is not None
    assert clips_BCTHW.grad is None
    ours = layer("depthwise").requires_grad_(False)
    ours(clips_BCTHW.requires_grad_()).sum().backward()
    assert ours.weight.grad is None
    assert clips_BCTHW.grad is not None


def test_a_gradient_that_is_one_number_for_all_places() -> None:
    """What the mean over time and space sends back has strides of 0."""
    ours, clips_BCTHW = layer("depthwise strided").double(), torch.randn(2, 6, 3, 7, 7, dtype=torch.float64)
    (found,) = torch.autograd.grad(ours(clips_BCTHW).mean(), ours.weight)
    made = F.conv3d(clips_BCTHW, ours.weight, None, ours.stride, ours.padding, 1, 6)
    torch.testing.assert_close(found, torch.autograd.grad(made.mean(), ours.weight)[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("case", ["1x1x1", "5x1x1 depthwise", "depthwise"])
def test_under_autocast(case: str) -> None:
    ours, clips_BCTHW = layer(case), torch.randn(1, 6, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        made = ours(clips_BCTHW)
    made.float().sum().backward()
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), ours(clips_BCTHW), rtol=0.05, atol=0.05)
    assert ours.weight.grad is not None


def test_is_a_convolution_with_torchs_parameters() -> None:
    ours, theirs = layer("depthwise"), nn.Conv3d(6, 6, 3, 1, 1, groups=6, bias=False)
    assert isinstance(ours, nn.Conv3d)
    theirs.load_state_dict(ours.state_dict())
    assert {key: value.shape for key, value in ours.state_dict().items()} == {"weight": (6, 1, 3, 3, 3)}


def test_the_quick_layout_is_for_cpus_only() -> None:
    clips_BCTHW = torch.randn(2, 3, 4, 5, 6)
    assert quick_layout(clips_BCTHW).is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(quick_layout(clips_BCTHW), clips_BCTHW)
    elsewhere = clips_BCTHW.to("meta")
    assert quick_layout(elsewhere) is elsewhere


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("case", CASES)
def test_gives_the_same_on_a_gpu(case: str) -> None:
    ours, clips_BCTHW = layer(case).double(), torch.randn(2, 6, 4, 9, 8, dtype=torch.float64)
    expected = ours(clips_BCTHW)
    torch.testing.assert_close(ours.cuda()(clips_BCTHW.cuda()).cpu(), expected, rtol=1e-10, atol=1e-12)
