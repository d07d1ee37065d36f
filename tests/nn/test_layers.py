"""Layers by name: which they are, and that what is read is what the network computes."""

from __future__ import annotations

import pytest
import torch

from mvray.errors import SettingError
from mvray.nn import layers
from mvray.nn.networks import network

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES_BCHW = torch.rand(3, 3, 73, 52, generator=torch.Generator().manual_seed(0))


@pytest.fixture(name="alexnet", scope="module")
def _alexnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return network("alexnet-small", 5).eval()


def outline(name: str) -> torch.nn.Module:
    """A network without values, so that VGG16 takes no half gigabyte."""
    with torch.device("meta"):
        return network(name, 5)


def test_the_papers_seven_layers_of_vgg16() -> None:
    """conv1_2, conv2_2, conv3_3, conv4_3, conv5_3 after ReLU, and both fully connected layers after theirs."""
    assert layers.named_layers(outline("vgg16")) == {
        "conv1": "features.3",
        "conv2": "features.8",
        "conv3": "features.15",
        "conv4": "features.22",
        "conv5": "features.29",
        "fc1": "classifier.1",
        "fc2": "classifier.4",
        "penultimate": "classifier.6",
    }


@pytest.mark.parametrize("name", ["vgg16_bn", "vgg11", "alexnet", "alexnet-small", "squeezenet1_1"])
def test_before_each_pool_stands_a_rectifier_or_block(name: str) -> None:
    made = outline(name)
    children = list(made.features)
    pools = [at for at, layer in enumerate(children) if isinstance(layer, torch.nn.MaxPool2d)]
    found = {key: value for key, value in layers.named_layers(made).items() if key.startswith("conv")}
    assert found == {f"conv{at}": f"features.{pool - 1}" for at, pool in enumerate(pools, start=1)}
    assert not isinstance(made.get_submodule(found["conv1"]), torch.nn.Conv2d)


def test_stages_of_resnets() -> None:
    stages = {"conv2": "layer1", "conv3": "layer2", "conv4": "layer3", "conv5": "layer4"}
    assert layers.named_layers(outline("resnet34")) == {"conv1": "relu", **stages, "penultimate": "fc"}


def test_layers_of_attention_blocks_are_no_fully_connected_ones() -> None:
    assert layers.named_layers(outline("vit_b_16")) == {"penultimate": "heads.head"}


def test_a_network_without_its_last_layer_keeps_all_fully_connected_ones() -> None:
    """As where a method has a head of its own."""
    made = outline("vgg11")
    del made.classifier[6]
    assert layers.named_layers(made)["fc2"] == "classifier.4"
    method = torch.nn.Module()
    method.network, method.head = made, torch.nn.Linear(4096, 7)
    assert layers.named_layers(method)["conv5"] == "network.features.19"
    assert layers.named_layers(method)["fc2"] == "network.classifier.4"


def test_what_is_read_is_what_the_layer_gives(alexnet: torch.nn.Module) -> None:
    """Before anything works on it in place, and averaged over a grid."""
    read = layers.Layers(alexnet, ["conv1", "conv3", "fc1", "penultimate", "features.0"], pool=2)
    with torch.inference_mode():
        found, scores = read.read(lambda: alexnet(IMAGES_BCHW))
        parts = alexnet.features
        conv1 = parts[:3](IMAGES_BCHW)
        conv3 = parts[:17](IMAGES_BCHW)
        flat = alexnet.avgpool(parts(IMAGES_BCHW)).flatten(1)
        linear = alexnet.classifier
        fc1 = (flat @ linear[2].weight.T + linear[2].bias).relu()
        fc2 = (fc1 @ linear[5].weight.T + linear[5].bias).relu()
    high, wide = conv1.shape[2] // 2, conv1.shape[3] // 2
    assert tuple(conv1.shape[2:]) == (37, 26)
    assert found["conv1"].shape == (3, 16, 2, 2)
    corner = conv1[:, :, : high + 1, :wide].mean((2, 3))  # of 37 rows the middle one belongs to both halves
    torch.testing.assert_close(found["conv1"][:, :, 0, 0], corner)
    torch.testing.assert_close(found["conv3"], torch.nn.functional.adaptive_avg_pool2d(conv3, 2))
    torch.testing.assert_close(found["features.0"], torch.nn.functional.adaptive_avg_pool2d(parts[0](IMAGES_BCHW), 2))
    torch.testing.assert_close(found["fc1"], fc1)
    torch.testing.assert_close(found["penultimate"], fc2)
    torch.testing.assert_close(scores, alexnet(IMAGES_BCHW))


def test_maps_are_kept_whole_without_a_pool_and_never_grow(alexnet: torch.nn.Module) -> None:
    with torch.inference_mode():
        normalised = alexnet.features[:2](IMAGES_BCHW)  # the ReLU after it works in place
    found, _ = layers.Layers(alexnet, ["features.1"], pool=0).read(lambda: alexnet(IMAGES_BCHW))
    assert (normalised < 0).any()
    torch.testing.assert_close(found["features.1"], normalised)
    found, _ = layers.Layers(alexnet, ["conv3"], pool=9).read(lambda: alexnet(IMAGES_BCHW))
    assert found["conv3"].shape == (3, 48, 8, 5)


def test_the_rest_of_the_network_does_not_run(alexnet: torch.nn.Module) -> None:
    """From the second batch on, with the same result."""
    read = layers.Layers(alexnet, ["conv2"], pool=2)
    ran: list[int] = []
    with alexnet.features[8].register_forward_hook(lambda *_: ran.append(1)):
        first, scores = read.read(lambda: alexnet(IMAGES_BCHW))
        second, nothing = read.read(lambda: alexnet(IMAGES_BCHW))
    assert len(ran) == 1
    assert (scores is None, nothing is None) == (False, True)
    assert torch.equal(first["conv2"], second["conv2"])
    assert read.read(lambda: alexnet(IMAGES_BCHW), whole=True)[1].shape == (3, 5)
    assert alexnet(IMAGES_BCHW).shape == (3, 5)  # nothing is read here


def test_of_a_layer_that_is_called_twice_the_last_call_counts() -> None:
    """A residual block's one ReLU is called before and after the addition."""
    torch.manual_seed(0)
    made = network("resnet18", 5).eval()
    read = layers.Layers(made, ["layer1.0.relu", "layer1.0", "conv1"], pool=2)
    for _ in range(2):
        found, _ = read.read(lambda: made(IMAGES_BCHW))
        assert torch.equal(found["layer1.0.relu"], found["layer1.0"])
    assert found["conv1"].shape == (3, 64, 2, 2)


def test_a_name_that_is_none(alexnet: torch.nn.Module) -> None:
    with pytest.raises(SettingError, match=r"no layer 'conv9'; expected one of conv1, conv2, conv3, fc1, fc2, penult"):
        layers.Layers(alexnet, ["conv9"], pool=2)
    unused = torch.nn.ModuleDict({"used": alexnet, "spare": torch.nn.Linear(2, 2)}).eval()
    with pytest.raises(SettingError, match=r"'spare' takes no part"):
        layers.Layers(unused, ["spare"], pool=2).read(lambda: unused["used"](IMAGES_BCHW))


def test_a_layer_that_gives_no_numbers_per_sample() -> None:
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    both = torch.nn.ModuleDict({"attention": attention})
    both.eval()
    tokens = torch.rand(2, 3, 8)
    with pytest.raises(SettingError, match="gives tuple; expected a row of numbers or maps"):
        layers.Layers(both, ["attention"], pool=2).read(lambda: attention(tokens, tokens, tokens))
