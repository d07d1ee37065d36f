"""Encoders and decoders of segmentation: resolutions, dilation, unpooling. test_segmenter.py has torchvision's own."""

from __future__ import annotations

import pytest
import torch

from mvray.errors import SettingError
from mvray.nn.decoders import DECODERS, Context, Skips, take_fully_connected
from mvray.nn.encoders import Encoder

PICTURES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("vgg-small", (16, 32, 64, 128, 128)),
        ("resnet18", (64, 64, 128, 256, 512)),
        ("mobilenet_v2", (16, 24, 32, 96, 1280)),
        ("efficientnet_b0", (16, 24, 40, 112, 1280)),
    ],
)
@pytest.mark.parametrize("stride", [32, 8])
def test_levels_have_their_strides_and_channels(name: str, channels: tuple[int, ...], stride: int) -> None:
    encoder = Encoder(name, stride).eval()
    assert encoder.channels == channels
    with torch.no_grad():
        levels = encoder(PICTURES)
    strides = [min(2 ** (level + 1), stride) for level in range(5)]
    assert [tuple(level.shape[1:]) for level in levels] == [
        (width, 64 // step, 96 // step) for width, step in zip(channels, strides, strict=True)
    ]


def test_a_network_that_does_not_halve_five_times_is_refused() -> None:
    with pytest.raises(
        SettingError, match=r"method.network is squeezenet1_1, whose layers do not halve the size 5 times"
    ):
        Encoder("squeezenet1_1")


@pytest.mark.slow
def test_dilation_sees_the_same_places_as_striding_does() -> None:
    """Of a network without padding's effect, every fourth value of the dilated one is the strided one's."""
    torch.manual_seed(0)
    strided, dilated = (Encoder("resnet18", stride).eval() for stride in (32, 8))
    dilated.load_state_dict(strided.state_dict())
    picture = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, thin = dilated(picture)[-1][:, :, ::4, ::4], strided(picture)[-1]
    # Paddings of dilated convolutions lie elsewhere: the middle alone is compared.
    torch.testing.assert_close(whole[:, :, 7:9, 7:9], thin[:, :, 7:9, 7:9], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", list(DECODERS))
def test_every_decoder_gives_scores_of_the_classes(name: str) -> None:
    whole = name in ("unet", "segnet", "deconvnet")
    encoder = Encoder("vgg-small", 32 if whole else 8, indices=name in ("segnet", "deconvnet"))
    decoder = DECODERS[name](encoder, 5, 32)
    levels, indices = encoder.with_indices(PICTURES)
    scores = decoder(levels, indices)
    assert scores.shape[:2] == (2, 5)
    assert 64 / scores.shape[2] == 96 / scores.shape[3]
    scores.sum().backward()
    unused = [n for n, p in decoder.named_parameters() if p.grad is None]
    assert unused == []


@pytest.mark.parametrize("size", [(65, 97), (33, 80)])
def test_sides_that_do_not_divide(size: tuple[int, int]) -> None:
    pictures = torch.rand(2, 3, *size)
    for name in ("fcn8", "unet", "segnet"):
        encoder = Encoder("vgg-small", 32, indices=name == "segnet")
        assert DECODERS[name](encoder, 3, 16)(*encoder.with_indices(pictures)).shape[:2] == (2, 3)


def test_the_context_module_starts_as_the_identity() -> None:
    encoder = Encoder("vgg-small", 8).eval()
    context = Context(encoder, 4, 0).eval()
    levels = encoder(PICTURES)
    front = context.front(levels, [])
    torch.testing.assert_close(context(levels, []), front.relu())


def test_fcn_starts_with_no_scores_and_sums_its_levels() -> None:
    encoder = Encoder("vgg-small", 32).eval()
    decoder = DECODERS["fcn8"](encoder, 3, 16).eval()
    levels = encoder(PICTURES)
    assert not decoder(levels, []).any()
    for layer in decoder.scores:
        torch.nn.init.normal_(layer.weight)
    parts = [
        decoder.scores[0](decoder.fc(levels[4])),
        decoder.scores[1](levels[3]),
        decoder.scores[2](levels[2]),
    ]
    up = torch.nn.Upsample(scale_factor=2, mode="bilinear")
    torch.testing.assert_close(decoder(levels, []), up(up(parts[0]) + parts[1]) + parts[2])
    assert isinstance(DECODERS["unet"](encoder, 3, 0), Skips)


@pytest.mark.parametrize(
    ("decoder", "width", "nth", "tap"), [("fcn32", 8, 4, 1), ("context", 32, 1, 1), ("largefov", 8, 4, 3)]
)
def test_a_vggs_fully_connected_layers_become_convolutions(decoder: str, width: int, nth: int, tap: int) -> None:
    torch.manual_seed(0)
    encoder = Encoder("vgg-small", 32)
    channels = encoder.channels[-1]
    state = {
        "classifier.0.weight": torch.randn(32, channels * 49) / 50,
        "classifier.0.bias": torch.randn(32),
        "classifier.3.weight": torch.randn(32, 32) / 5,
        "classifier.3.bias": torch.randn(32),
    }
    head = DECODERS[decoder](encoder, 3, width).eval()
    take_fully_connected(head, state)
    fc = head.front.fc if decoder == "context" else head.fc
    features_1C77 = torch.randn(1, channels, 7, 7)
    seen = torch.zeros(1, channels, 7, 7)
    seen[:, :, ::tap, ::tap] = features_1C77[:, :, ::tap, ::tap]
    fc6 = (seen.flatten(1) @ state["classifier.0.weight"].T + state["classifier.0.bias"])[:, ::nth].relu()
    expected = (fc6 @ state["classifier.3.weight"][::nth, ::nth].T + state["classifier.3.bias"][::nth]).relu()
    if decoder == "largefov":  # its taps lie 12 apart: features that far apart stand for the seven
        features_1C77 = torch.nn.functional.interpolate(features_1C77[:, :, ::3, ::3], (25, 25), mode="nearest")
        features_1C77[:, :, ::12, ::12] = seen[:, :, ::3, ::3]
    with torch.no_grad():
        centre = fc(features_1C77)[:, :, features_1C77.shape[2] // 2, features_1C77.shape[3] // 2]
    torch.testing.assert_close(centre, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(SettingError, match=r"method\.width is 7, and method\.weights have 32 channels in fc6"):
        take_fully_connected(DECODERS[decoder](encoder, 3, 7), state)
