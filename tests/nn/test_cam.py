"""Grad-CAM against the paper's equations, written slowly, and what it leaves behind: nothing."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mvray.errors import SettingError
from mvray.nn import cam


def small(name: str) -> nn.Module:
    """A torchvision network with its own convolutions, seven classes and a narrow head, random weights, eval mode."""
    with torch.device("meta"):
        net = getattr(torchvision.models, name)(num_classes=7)
        if name in ("alexnet", "vgg16"):
            inputs = net.classifier[1 if name == "alexnet" else 0].in_features
            relu = nn.ReLU(inplace=True)
            net.classifier = nn.Sequential(nn.Linear(inputs, 24), relu, nn.Dropout(), nn.Linear(24, 7))
    net.to_empty(device="cpu")
    torch.manual_seed(3)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
    return net.eval()


def halves(net: nn.Module, layer: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The network below and above a layer, cut by hand; nothing in it works in place."""
    net = copy.deepcopy(net).double()
    for each in net.modules():
        if isinstance(each, nn.ReLU):
            each.inplace = False
    if layer.startswith("features."):
        at = int(layer.split(".")[1]) + 1
        return net.features[:at], nn.Sequential(net.features[at:], net.avgpool, nn.Flatten(), net.classifier)
    stem = [net.conv1, net.bn1, net.relu, net.maxpool]
    blocks = [net.layer1, net.layer2, net.layer3, net.layer4]
    at = int(layer[-1])
    head = [net.avgpool, nn.Flatten(), net.fc]
    return nn.Sequential(*stem, *blocks[:at]), nn.Sequential(*blocks[at:], *head)


def slow_grad_cam(net: nn.Module, layer: str, images_BCHW: Tensor, classes: list[int]) -> Tensor:
    """Selvaraju et al. 2017, equations (1) and (2), one sample and one feature map at a time, in float64."""
    below, above = halves(net, layer)
    maps = []
    for image_CHW, c in zip(images_BCHW.double(), classes, strict=True):
        with torch.no_grad():
            A = below(image_CHW[None])
        A.requires_grad_(True)
        y = above(A)[0]
        y[c].backward()
        Z = A.shape[2] * A.shape[3]
        total = torch.zeros(A.shape[2:], dtype=torch.float64)
        for k in range(A.shape[1]):
            alpha_k = A.grad[0, k].sum() / Z
            total += alpha_k * A[0, k].detach()
        maps.append(torch.clamp(total, min=0))
    return torch.stack(maps)


CASES = [
    ("alexnet", "features.11", 64),
    ("alexnet", "features.10", 64),  # the ReLU after it works in place
    ("resnet18", "layer4", 64),
    pytest.param("vgg16", "features.29", 48, marks=pytest.mark.slow),
    pytest.param("resnet50", "layer3", 64, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "layer", "size"), CASES)
def test_equals_the_papers_equations(name: str, layer: str, size: int) -> None:
    net = small(name)
    images_BCHW = torch.randn(3, 3, size, size + 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ranked_BK = net(images_BCHW).argsort(1, descending=True)
    classes_B = ranked_BK[torch.arange(3), torch.tensor([0, 1, 6])]
    expected_BHW = slow_grad_cam(net, layer, images_BCHW, classes_B.tolist())
    assert expected_BHW.max() > 0

    doubled = copy.deepcopy(net).double()
    maps_BHW, scores_BK = cam.grad_cam(doubled, doubled, layer, images_BCHW.double(), classes_B)
    torch.testing.assert_close(maps_BHW, expected_BHW, rtol=1e-10, atol=1e-10 * float(expected_BHW.max()))
    torch.testing.assert_close(scores_BK, doubled(images_BCHW.double()).detach(), rtol=1e-10, atol=1e-10)

    maps_BHW, _ = cam.grad_cam(net, net, layer, images_BCHW, classes_B)
    assert maps_BHW.dtype == torch.float32
    scale = float(expected_BHW.max())
    # Sums of terms of both signs: how near float32 comes depends on the processor's instructions.
    torch.testing.assert_close(maps_BHW.double(), expected_BHW, rtol=1e-3, atol=5e-3 * scale)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small("resnet18")


@pytest.fixture(name="images_BCHW", scope="module")
def _images() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def test_explains_the_predicted_class_unless_told_otherwise(net: nn.Module, images_BCHW: Tensor) -> None:
    maps_BHW, scores_BK = cam.grad_cam(net, net, "layer4", images_BCHW)
    assert scores_BK.shape == (4, 7)
    again_BHW, _ = cam.grad_cam(net, net, "layer4", images_BCHW, scores_BK.argmax(1))
    assert torch.equal(maps_BHW, again_BHW)
    others_BHW, _ = cam.grad_cam(net, net, "layer4", images_BCHW, scores_BK.argmin(1))
    assert not torch.allclose(maps_BHW, others_BHW)


def test_a_sample_is_explained_alike_in_any_batch(net: nn.Module, images_BCHW: Tensor) -> None:
    net, images_BCHW = copy.deepcopy(net).double(), images_BCHW.double()
    whole_BHW, _ = cam.grad_cam(net, net, "layer3", images_BCHW)
    parts = [cam.grad_cam(net, net, "layer3", part)[0] for part in images_BCHW.split(1)]
    torch.testing.assert_close(torch.cat(parts), whole_BHW, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_any_grad_mode_of_the_caller(mode, net: nn.Module, images_BCHW: Tensor) -> None:
    expected_BHW, _ = cam.grad_cam(net, net, "layer4", images_BCHW)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        maps_BHW, scores_BK = cam.grad_cam(net, net, "layer4", images_BCHW + 0)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert torch.equal(maps_BHW, expected_BHW)
    assert not maps_BHW.requires_grad
    assert not scores_BK.requires_grad


def test_leaves_parameters_as_they_were(net: nn.Module, images_BCHW: Tensor) -> None:
    net = copy.deepcopy(net)
    net.fc.weight.requires_grad_(False)
    net.fc.bias.grad = torch.ones(7)
    flags = [each.requires_grad for each in net.parameters()]
    state = copy.deepcopy(net.state_dict())
    cam.grad_cam(net, net, "layer3", images_BCHW)
    assert [each.requires_grad for each in net.parameters()] == flags
    assert [name for name, each in net.named_parameters() if each.grad is not None] == ["fc.bias"]
    assert torch.equal(net.fc.bias.grad, torch.ones(7))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_computes_no_gradient_below_the_layer_and_none_of_a_weight(images_BCHW: Tensor) -> None:
    net, layer = small("alexnet"), "features.11"
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        net(images_BCHW)
    with FlopCounterMode(display=False) as counted:
        cam.grad_cam(net, net, layer, images_BCHW)
    head = sum(2 * len(images_BCHW) * each.weight.numel() for each in net.classifier if isinstance(each, nn.Linear))
    weighted_sum = 2 * len(images_BCHW) * 256 * 3 * 3
    # Once forward, and backward through the head's inputs: a gradient of a weight would cost as much again.
    assert counted.get_total_flops() == forward.get_total_flops() + head + weighted_sum


def test_nothing_below_the_layer_is_recorded(net: nn.Module, images_BCHW: Tensor) -> None:
    seen: dict[str, bool] = {}
    watched = [
        net.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({name: out.requires_grad})
        )
        for name in ("conv1", "layer2", "layer4", "fc")
    ]
    cam.grad_cam(net, net, "layer3", images_BCHW)
    for handle in watched:
        handle.remove()
    assert seen == {"conv1": False, "layer2": False, "layer4": True, "fc": True}


class Twice(nn.Module):
    """Calls its ReLU twice, as ResNet's blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3), nn.ReLU(inplace=True)
        self.unused = nn.Conv2d(3, 3, 1)

    def last(self, images_BCHW: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(images_BCHW))))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.last(images_BCHW).square().mean((2, 3))


def test_the_last_call_of_a_layer_counts(images_BCHW: Tensor) -> None:
    torch.manual_seed(0)
    net = Twice().eval()
    maps_BHW, _ = cam.grad_cam(net, net, "relu", images_BCHW, torch.zeros(4, dtype=torch.int64))
    with torch.no_grad():
        A = net.last(images_BCHW)[:, 0]
    torch.testing.assert_close(maps_BHW, 2 * A.mean((1, 2))[:, None, None] * A / A[0].numel())


def hooks(net: nn.Module) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in net.modules())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer5", r"no layer 'layer5'; expected one of layer[1-4], .* more\."),
        ("", "no layer ''"),
        ("fc", r"Layer 'fc' gives \(4, 7\); Grad-CAM needs feature maps"),
    ],
)
def test_wrong_layers_are_refused(layer: str, message: str, net: nn.Module, images_BCHW: Tensor) -> None:
    with pytest.raises(SettingError, match=message):
        cam.grad_cam(net, net, layer, images_BCHW)
    assert hooks(net) == 0
    assert torch.is_grad_enabled()


def test_a_layer_that_scores_do_not_pass_is_refused(images_BCHW: Tensor) -> None:
    net = Twice().eval()
    with pytest.raises(SettingError, match="'unused' has no influence on the scores"):
        cam.grad_cam(net, net, "unused", images_BCHW)
    assert hooks(net) == 0


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad])
def test_an_error_inside_leaves_nothing_behind(mode, net: nn.Module, images_BCHW: Tensor) -> None:
    def scores(images_BCHW: Tensor) -> Tensor:
        net(images_BCHW)
        raise ZeroDivisionError

    with mode():
        before = torch.is_grad_enabled()
        with pytest.raises(ZeroDivisionError):
            cam.grad_cam(scores, net, "layer4", images_BCHW)
        assert torch.is_grad_enabled() == before
    assert hooks(net) == 0


def test_normalise() -> None:
    maps_BHW = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[4.0, 4.0], [4.0, 4.0]], [[0.0, 0.0], [0.0, 1e-20]]])
    expected_BHW = torch.tensor([[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    assert torch.equal(cam.normalise(maps_BHW), expected_BHW)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layer"), [("alexnet", "features.11"), ("resnet18", "layer4")])
def test_equals_pytorch_grad_cam(name: str, layer: str, images_BCHW: Tensor) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.image import scale_cam_image

    net = small(name)
    maps_BHW, _ = cam.grad_cam(net, net, layer, images_BCHW)
    with peer.GradCAM(net, [net.get_submodule(layer)]) as theirs:
        expected = theirs(images_BCHW, None)
    ours = scale_cam_image(scale_cam_image(maps_BHW.numpy(), (64, 64)))  # their way of scaling up
    torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(expected), rtol=1e-3, atol=1e-3)
