"""Networks by name, their weights from files, and the layer that Grad-CAM looks at."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from mvray.errors import DataError, SettingError
from mvray.nn import networks


def same(one: torch.nn.Module, other: torch.nn.Module) -> list[str]:
    theirs = other.state_dict()
    return [key for key, value in one.state_dict().items() if torch.equal(value, theirs[key])]


def made(name: str, classes: int, weights: str = "", seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return networks.network(name, classes, weights)


@pytest.mark.parametrize(("height", "width"), [(146, 104), (293, 207)])
def test_alexnet_small_has_alexnets_layout(height: int, width: int) -> None:
    net, model = made("alexnet-small", 14), torchvision.models.AlexNet
    with torch.device("meta"):
        model = torchvision.models.alexnet()
    for kind in (torch.nn.Conv2d, torch.nn.MaxPool2d, torch.nn.Linear, torch.nn.Dropout):
        counts = [sum(isinstance(layer, kind) for layer in each.modules()) for each in (net, model)]
        assert counts[0] == counts[1], kind
    assert net(torch.rand(2, 3, height, width)).shape == (2, 14)
    assert sum(each.numel() for each in net.parameters()) < 61_100_840 / 100


def test_alexnet_small_starts_with_all_classes_alike() -> None:
    with torch.no_grad():
        scores_BK = made("alexnet-small", 5).train()(torch.rand(8, 3, 146, 104))
    assert scores_BK.abs().max() < 1


@pytest.mark.parametrize("side", [32, 64, 96])
def test_vgg_small_has_vggs_layout(side: int) -> None:
    net = made("vgg-small", 14)
    with torch.device("meta"):
        model = torchvision.models.vgg11_bn()
    for kind in (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.MaxPool2d, torch.nn.Linear, torch.nn.Dropout):
        counts = [sum(isinstance(layer, kind) for layer in each.modules()) for each in (net, model)]
        assert counts[0] == counts[1], kind
    assert net(torch.rand(2, 3, side, side)).shape == (2, 14)
    assert sum(each.numel() for each in net.parameters()) < 132_868_840 / 100


@pytest.mark.parametrize("name", ["vgg-small", "resnet18"])
def test_pictures_may_have_other_channels(name: str, tmp_path: Path) -> None:
    net = networks.network(name, 5, channels=2)
    assert net.eval()(torch.rand(2, 2, 64, 64)).shape == (2, 5)
    torch.save(made(name, 5).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(DataError, match=r"1 entries are of another shape, .*, 3, \d, \d\) instead of \(\d+, 2, "):
        networks.network(name, 5, str(tmp_path / "weights.pth"), channels=2)


def test_same_seed_same_weights() -> None:
    assert len(same(made("resnet18", 3), made("resnet18", 3))) == len(made("resnet18", 3).state_dict())
    assert "fc.weight" not in same(made("resnet18", 3), made("resnet18", 3, seed=1))


@pytest.mark.parametrize("name", ["googlenet", "mobilenet_v3_small"])
def test_other_torchvision_networks_give_scores_in_training_too(name: str) -> None:
    assert made(name, 6).train()(torch.rand(2, 3, 96, 64)).shape == (2, 6)


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(SettingError, match=r"no network 'resnet19'; expected alexnet-small, vgg-small, .*resnet18"):
        networks.network("resnet19", 3)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(suffix: str, tmp_path: Path) -> None:
    path, given = tmp_path / f"weights{suffix}", made("alexnet-small", 5)
    state = given.state_dict()
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    assert same(given, made("alexnet-small", 5, str(path), seed=1)) == list(state)


@pytest.mark.parametrize(("name", "head"), [("resnet18", "fc"), ("alexnet-small", "classifier.7")])
def test_another_number_of_classes_keeps_all_but_the_last_layer(name: str, head: str, tmp_path: Path) -> None:
    path, given = tmp_path / "weights.pth", made(name, 5)
    torch.save(given.state_dict(), path)
    net = made(name, 9, str(path), seed=1)
    assert net.get_submodule(head).weight.shape[0] == 9
    assert set(given.state_dict()) - set(same(net, given)) == {f"{head}.weight", f"{head}.bias"}


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(made("alexnet-small", 5).state_dict(), path)
    with pytest.raises(DataError, match=r"does not hold weights of resnet18: \d+ entries .* such as conv1.weight"):
        networks.network("resnet18", 5, str(path))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("alexnet", "features.11"),
        ("alexnet-small", "features.16"),
        ("vgg16", "features.29"),
        ("vgg16_bn", "features.42"),
        ("resnet18", "layer4"),
        ("resnet50", "layer4"),
        ("densenet121", "features"),
        ("mobilenet_v2", "features"),
        ("squeezenet1_1", "classifier.2"),
        ("efficientnet_b0", "features"),
    ],
)
def test_last_convolution(name: str, layer: str) -> None:
    with torch.device("meta"):
        net = networks.network(name, 10)
    assert networks.last_convolution(net) == layer
    assert isinstance(net.get_submodule(layer), torch.nn.Module)


def test_last_convolution_inside_another_module() -> None:
    outer = torch.nn.Module()
    with torch.device("meta"):
        outer.network = networks.network("vgg16", 10)
    assert networks.last_convolution(outer) == "network.features.29"
    with pytest.raises(SettingError, match="Linear has no convolution"):
        networks.last_convolution(torch.nn.Linear(2, 2))
