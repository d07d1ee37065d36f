"""The method of a finished Train step, with its weights."""

from __future__ import annotations

import torch

from mvray.experiment import Facts, Train, without_files
from mvray.nn import Method, build_method
from mvray.storage import Storage
from mvray.training.checkpoint import weights_from_bytes
from mvray.training.environment import placed


def load_method(step: Train, facts: Facts, folder: Storage) -> Method:
    """The trained method of a finished Train step, in eval mode on the GPU where there is one."""
    method = build_method(without_files(step.method), facts)
    method.load_state_dict(weights_from_bytes(folder.read("weights.safetensors")))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return placed(method, device, channels_last=True).eval()
