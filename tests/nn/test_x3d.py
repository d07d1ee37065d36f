"""X3D against pytorchvideo's: same entries, same start, same scores, same gradients; its checkpoints load."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from mvray.nn.x3d import x3d

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
