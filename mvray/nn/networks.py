"""Networks by name: torchvision's classification networks, and a small AlexNet and VGG for two CPU cores.

All take B x 3 x H x W floats and give B x K scores before softmax.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch

from mvray.errors import SettingError
from mvray.nn import weights as files
from mvray.nn.resnet_small import resnet_small

SMALL, SMALL_VGG, SMALL_RESNET = "alexnet-small", "vgg-small", "resnet-small"
OURS = (SMALL, SMALL_VGG, SMALL_RESNET)
_REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
# These two return more than scores in training unless told otherwise.
_EXTRA: Mapping[str, Mapping[str, bool]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def network(name: str, classes: int, weights: str = "", channels: int = 3) -> torch.nn.Module:
    """The network called ``name`` with ``classes`` outputs, randomly initialised from torch's seed.

    ``name`` is one of OURS or a torchvision classification network; its first convolution takes
    ``channels``. ``weights`` is the path or URL of a state dict (.pth or .safetensors, see weights.load)
    for the same network; its last layer is left random where it has another number of classes. Raises
    SettingError for an unknown name, DataError for weights that do not fit.
    """
    check_name(name)
    if name in OURS:
        network_ = _ours(name, classes)
    else:
        import torchvision

        network_ = torchvision.models.get_model(name, weights=None, num_classes=classes, **_EXTRA.get(name, {}))
    if channels != 3:
        _take_channels(network_, channels)
    if weights:
        files.load(network_, name, weights, _last_weighted(network_))
    return network_


def _ours(name: str, classes: int) -> torch.nn.Module:
    if name == SMALL_RESNET:
        return resnet_small(classes)
    return alexnet_small(classes) if name == SMALL else vgg_small(classes)


def check_name(name: str) -> None:
    """Raises SettingError, with the nearest names, where no network is called ``name``."""
    if name in OURS or name in _named_in_torchvision():
        return
    import torchvision

    known = [*OURS, *torchvision.models.list_models(module=torchvision.models)]
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=5, cutoff=0.0)
        raise SettingError(
            f"There is no network {name!r}; expected {', '.join(OURS)} or one of torchvision's, "
            f"such as {', '.join(nearest)}."
        )


def _named_in_torchvision() -> set[str]:
    """Names of networks, read from torchvision's text: importing it takes seconds."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return set()
    files = (Path(spec.origin).parent / "models").glob("*.py")
    return {name for file in files for name in _REGISTERED.findall(file.read_text())}


def _take_channels(model: torch.nn.Module, channels: int) -> None:
    """A new first convolution for pictures of ``channels``."""
    layers = dict(model.named_modules())
    name = next(name for name, layer in layers.items() if isinstance(layer, torch.nn.Conv2d))
    old = layers[name]
    assert isinstance(old, torch.nn.Conv2d)
    sizes = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    new = torch.nn.Conv2d(channels, old.out_channels, **sizes, bias=old.bias is not None)
    torch.nn.init.kaiming_normal_(new.weight, nonlinearity="relu")
    model.set_submodule(name, new)


def alexnet_small(classes: int) -> torch.nn.Module:
    """AlexNet's layout (Krizhevsky et al. 2012) at a fraction of its width, for pages of 104 x 146 to 207 x 293.

    Five convolutions, three max-pools, three fully connected layers, dropout. Each convolution is
    followed by batch normalisation (Ioffe, Szegedy 2015), without which 400 pages are not learnt in
    minutes (group normalisation was tried: it stays at chance). Its statistics are those of each
    worker's share of the batch. Dropout is 0.2, not 0.5: the layers are narrow, and 392 sample pages
    of 14 titles reach 76 % in 9 epochs instead of 42 %.
    """
    nn = torch.nn

    def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[torch.nn.Module]:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return [layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    features = nn.Sequential(
        *convolution(3, 16, 7, 2),
        nn.MaxPool2d(3, 2),
        *convolution(16, 32, 5),
        nn.MaxPool2d(3, 2),
        *convolution(32, 64, 3),
        *convolution(64, 48, 3),
        *convolution(48, 48, 3),
        nn.MaxPool2d(3, 2),
    )
    classifier = nn.Sequential(
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(48 * 6 * 4, 256),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Linear(256, 256),
        nn.ReLU(inplace=True),
        nn.Linear(256, classes),
    )
    return _assemble(features, nn.AdaptiveAvgPool2d((6, 4)), classifier)


def vgg_small(classes: int) -> torch.nn.Module:
    """VGG's layout A (Simonyan, Zisserman 2014) at a quarter of its width, for faces of 64 x 64 (at least 32 x 32).

    Eight convolutions, each with batch normalisation, five max-pools, three fully connected layers, dropout 0.2;
    see alexnet_small for why.
    """
    nn = torch.nn
    layers: list[torch.nn.Module] = []
    inputs = 3
    for widths in ((16,), (32,), (64, 64), (128, 128), (128, 128)):
        for width in widths:
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    classifier = nn.Sequential(
        nn.Flatten(),
        nn.Linear(128 * 2 * 2, 256),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Linear(256, 256),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Linear(256, classes),
    )
    return _assemble(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2), classifier)


def _assemble(features: torch.nn.Module, avgpool: torch.nn.Module, classifier: torch.nn.Sequential) -> torch.nn.Module:
    """The parts under the names that torchvision gives them, initialised; the last layer makes the scores."""
    nn = torch.nn
    model = nn.Sequential(OrderedDict(features=features, avgpool=avgpool, classifier=classifier))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):  # He et al. 2015, for rectified layers
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    head = classifier[-1]
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight, std=0.01)  # all classes alike at the start
    return model


def last_convolution(module: torch.nn.Module) -> str:
    """Dotted name of the layer that Grad-CAM looks at by default: the last convolution's rectified output.

    From the last convolution on, normalisation and activation that follow it in a Sequential belong
    to it, and so does the block (residual, inception, dense) that it is part of: "features.11" in
    AlexNet, "features.29" in VGG16, "layer4" in ResNets. Raises SettingError where there is none.
    """
    layers = dict(module.named_modules())
    convolutions = [name for name, layer in layers.items() if isinstance(layer, torch.nn.Conv2d)]
    if not convolutions:
        raise SettingError(f"{type(module).__name__} has no convolution; name the layer to look at.")
    name: str = convolutions[-1]
    while True:
        parent, _, _ = name.rpartition(".")
        inside = layers[parent]
        if isinstance(inside, torch.nn.Sequential):
            name, is_last = _with_followers(inside, name)
            if not is_last:
                return name
        if not parent:
            return name
        name = parent


def has_convolution(layer: torch.nn.Module) -> bool:
    return any(isinstance(part, torch.nn.Conv2d) for part in layer.modules())


def _with_followers(inside: torch.nn.Sequential, name: str) -> tuple[str, bool]:
    """The last of the normalisations and activations right after ``name``, and whether ``inside`` ends there."""
    parent, _, own = name.rpartition(".")
    children = list(inside.named_children())
    at = [key for key, _ in children].index(own)
    while at + 1 < len(children) and _belongs_to_convolution(children[at + 1][1]):
        at += 1
    return f"{parent}.{children[at][0]}".lstrip("."), at + 1 == len(children)


def _belongs_to_convolution(layer: torch.nn.Module) -> bool:
    kind = type(layer).__module__
    return kind in ("torch.nn.modules.batchnorm", "torch.nn.modules.normalization", "torch.nn.modules.activation")


def _last_weighted(model: torch.nn.Module) -> str:
    """The layer that makes the scores: the last linear layer or convolution."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    names: list[str] = [name for name, layer in model.named_modules() if isinstance(layer, kinds)]
    return names[-1]
