"""X3D against pytorchvideo's: same entries, same start, same scores, same gradients; its checkpoints load."""

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mvray.errors import DataError, SettingError
from mvray.nn.x3d import NAMES, check_name, split, split_width, x3d

pytestmark = pytest.mark.usefixtures("one_thread")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it uses torch.jit.script
    from pytorchvideo.models.x3d import create_x3d

HUB = {  # pytorchvideo/models/hub/x3d.py: frames, side in pixels, depth
    "x3d-xs": (4, 160, 2.2),
    "x3d-s": (13, 160, 2.2),
    "x3d-m": (16, 224, 2.2),
    "x3d-l": (16, 312, 5.0),
}


def theirs(name: str, classes: int = 400, size: tuple[int, int] | None = None, seed: int = 0) -> nn.Module:
    """pytorchvideo's network without dropout, scores before softmax; for clips of the hub's or of ``size``."""
    frames, side = size or HUB[name][:2]
    torch.manual_seed(seed)
    net: nn.Module = create_x3d(
        input_clip_length=frames,
        input_crop_size=side,
        model_num_class=classes,
        depth_factor=HUB[name][2],
        dropout_rate=0.0,
        head_activation=None,
    )
    return net


def both(name: str, classes: int = 400, size: tuple[int, int] | None = None) -> tuple[nn.Module, nn.Module]:
    """Theirs, with normalisation as after training (they start with zeros), and ours with the same state."""
    their = theirs(name, classes, size)
    for layer in their.modules():
        if isinstance(layer, nn.BatchNorm3d):
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
    our = x3d(name, classes, dropout=0.0)
    our.load_state_dict(their.state_dict())
    return their, our


def clips(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", HUB)
def test_state_dict_has_pytorchvideos_entries_in_its_order(name: str) -> None:
    with torch.device("meta"):
        expected, found = theirs(name).state_dict(), x3d(name, 400).state_dict()
    assert [(key, value.shape) for key, value in found.items()] == [(k, v.shape) for k, v in expected.items()]


def test_starts_as_pytorchvideo_does() -> None:
    expected = theirs("x3d-s", seed=3).state_dict()
    torch.manual_seed(3)
    found = x3d("x3d-s", 400).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert not found["blocks.1.res_blocks.0.branch2.norm_c.weight"].any()


def check_scores(name: str) -> None:
    frames, side, _ = HUB[name]
    their, our = both(name)
    images = clips(1, 3, frames, side, side)
    with torch.no_grad():
        expected, found = their.eval()(images), our.eval()(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # The hub's network ends in a softmax.
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), rtol=0, atol=1e-5)


def test_gives_pytorchvideos_scores_at_the_native_size() -> None:
    check_scores("x3d-xs")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x3d-s", "x3d-m", "x3d-l"])
def test_gives_pytorchvideos_scores_at_the_native_sizes_of_the_larger(name: str) -> None:
    check_scores(name)


def trained(net: nn.Module, images_BCTHW: Tensor, train: bool = True) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Loss, gradients and buffers after one training step (or with normalisation as in eval mode)."""
    net.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pytorchvideo's swish reads saved_variables
        loss = nn.functional.cross_entropy(net.train(train)(images_BCTHW), torch.tensor([3, 7]))
        loss.backward()
    return loss.detach(), [each.grad.clone() for each in net.parameters()], list(net.buffers())


@pytest.mark.slow
def test_trains_as_pytorchvideo_does() -> None:
    """In float64: normalising 26 times over two clips makes rounding visible in float32's gradients."""
    their, our = both("x3d-m", 11, (4, 32))
    images_BCTHW = clips(2, 3, 4, 32, 32, dtype=torch.float64)
    (loss, *found), (their_loss, *expected) = (trained(net.double(), images_BCTHW) for net in (our, their))
    torch.testing.assert_close(loss, their_loss, rtol=1e-12, atol=0)
    for ours, theirs_ in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs_, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


@pytest.mark.slow
def test_float32_trains_as_pytorchvideo_does() -> None:
    their, our = both("x3d-xs", 11, (4, 64))
    images_BCTHW = clips(2, 3, 4, 64, 64)
    (loss, gradients, _), (their_loss, expected, _) = (trained(net, images_BCTHW) for net in (our, their))
    torch.testing.assert_close(loss, their_loss, rtol=0, atol=1e-5)
    size = sum(each.square().sum() for each in expected) ** 0.5
    error = sum((one - other).square().sum() for one, other in zip(gradients, expected, strict=True)) ** 0.5
    assert error < 0.05 * size  # theirs in float64 is as far away
    # With the statistics of earlier training, nothing amplifies the rounding.
    (_, gradients, _), (_, expected, _) = (trained(net, images_BCTHW, train=False) for net in (our, their))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3 * float(other.abs().max()))


def test_training_twice_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    net = x3d("x3d-tiny", 11, dropout=0.0)
    first, second = (trained(copy.deepcopy(net), clips(2, 3, 4, 64, 64)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(one, other) for one, other in zip(first[1] + first[2], second[1] + second[2], strict=True))


@pytest.mark.parametrize("size", [(1, 33, 40), (5, 64, 96), (9, 50, 37)], ids=str)
@pytest.mark.parametrize("name", ["x3d-tiny"])
def test_takes_clips_of_any_size(name: str, size: tuple[int, int, int]) -> None:
    net = x3d(name, 5).eval()
    extractor, perception = split(net)
    images_BCTHW = clips(2, 3, *size)
    with torch.no_grad():
        features_BCTHW = extractor(images_BCTHW)
        assert features_BCTHW.shape == (2, split_width(name), size[0], -(-size[1] // 16), -(-size[2] // 16))
        assert torch.equal(perception(features_BCTHW), net(images_BCTHW))
        assert net(images_BCTHW).shape == (2, 5)


def test_dropout_is_before_the_last_layer_and_in_training_only() -> None:
    torch.manual_seed(0)
    net = x3d("x3d-tiny", 5, dropout=0.9)
    nn.init.normal_(net.get_submodule("blocks.5.proj").weight)
    features_BCTHW = clips(1, 96, 2, 3, 3)
    head = net.get_submodule("blocks.5").eval()
    assert torch.equal(head(features_BCTHW), head(features_BCTHW))
    head.dropout.train()
    assert not torch.equal(head(features_BCTHW), head(features_BCTHW))


@pytest.mark.slow
def test_tiny_learns_clips_by_heart() -> None:
    torch.manual_seed(0)
    net = x3d("x3d-tiny", 4, dropout=0.0)
    images_BCTHW, label_B = clips(4, 3, 2, 32, 32), torch.arange(4)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(15):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(net(images_BCTHW), label_B)
        loss.backward()
        optimiser.step()
    assert loss < 0.1


def test_takes_attention_apart_from_its_two_sides() -> None:
    """Gradients flow through both parts of a split network; they are the network's own parameters."""
    net = x3d("x3d-tiny", 3, dropout=0.0)
    extractor, perception = split(net)
    assert {id(p) for p in net.parameters()} == {id(p) for part in (extractor, perception) for p in part.parameters()}
    perception(extractor(clips(2, 3, 4, 32, 32)) * 0.5).sum().backward()
    assert all(each.grad is not None for each in net.parameters())


# -- weights -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved() -> dict[str, Tensor]:
    """A checkpoint as pytorchvideo has it, of a network with 7 classes."""
    state: dict[str, Tensor] = theirs("x3d-m", 7, seed=5).state_dict()
    return state


def equal(net: nn.Module, state: dict[str, Tensor]) -> set[str]:
    return {key for key, value in net.state_dict().items() if torch.equal(value, state[key])}


@pytest.mark.parametrize("form", ["pytorchvideo.pyth", "plain.pth", "plain.safetensors"])
def test_checkpoints_load(form: str, saved: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / form
    if form.endswith("safetensors"):
        save_file(saved, path)
    else:
        torch.save({"model_state": saved, "epoch": 3} if "video" in form else saved, path)
    assert equal(x3d("x3d-m", 7, str(path)), saved) == set(saved)


def test_another_number_of_classes_leaves_the_last_layer_random(saved: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model_state": saved}, tmp_path / "seven.pyth")
    net = x3d("x3d-m", 9, (tmp_path / "seven.pyth").as_uri())
    assert net.get_submodule("blocks.5.proj").weight.shape == (9, 2048)
    assert set(saved) - equal(net, saved) == {"blocks.5.proj.weight", "blocks.5.proj.bias"}


def test_another_networks_weights_are_refused(saved: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model_state": saved}, tmp_path / "m.pyth")
    with pytest.raises(DataError) as refused:
        x3d("x3d-l", 7, str(tmp_path / "m.pyth"))
    assert "does not hold weights of x3d-l: 578 entries are missing, such as blocks.1.res_blocks.3." in str(
        refused.value
    )
    assert str(refused.value).endswith("Name the network that the file was saved from.")
    with pytest.raises(DataError, match=r"entries are unknown, .* of another shape, such as blocks\.0\.conv\.conv_t"):
        x3d("x3d-tiny", 7, str(tmp_path / "m.pyth"))


# -- names ---------------------------------------------------------------------------------------


def test_unknown_names_list_what_there_is() -> None:
    for name in NAMES:
        check_name(name)
    with pytest.raises(SettingError, match=r"no X3D network 'x3d-xl'; expected one of x3d-tiny, x3d-xs, .*x3d-l\."):
        check_name("x3d-xl")
    with pytest.raises(SettingError, match="no X3D network"):
        x3d("X3D-M", 3)


def test_names_are_checked_without_torch() -> None:
    code = (
        "from mvray.cli import _lazy; _lazy('torch'); from mvray.nn.x3d import check_name; check_name('x3d-m'); "
        "import sys; print('torch._C' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
