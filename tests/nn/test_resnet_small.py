"""The small residual network."""

import pytest
import torch

from mvray.nn import networks

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_is_a_residual_network_of_four_stages() -> None:
    torch.manual_seed(0)
    net = networks.network("resnet-small", 7).eval()
    maps_BCHW = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert net(maps_BCHW).shape == (2, 7)
        shapes = []
        maps_BCHW = net.stem(maps_BCHW)
        for block in net.layers:
            before_BCHW, maps_BCHW = maps_BCHW, block(maps_BCHW)
            shapes.append(tuple(maps_BCHW.shape[1:]))
            added_BCHW = block.body(before_BCHW) + block.beside(before_BCHW)
            assert torch.equal(maps_BCHW, added_BCHW.clamp_min(0))
    assert shapes == [(24, 32, 32), (48, 16, 16), (96, 8, 8), (192, 4, 4)]
    assert sum(parameter.numel() for parameter in net.parameters()) < 21_797_672 / 25  # ResNet34's
    assert networks.last_convolution(net) == "layers"


@pytest.mark.parametrize("side", [32, 50, 96])
def test_pictures_may_have_other_sizes(side: int) -> None:
    assert networks.network("resnet-small", 3)(torch.rand(2, 3, side, side)).shape == (2, 3)
