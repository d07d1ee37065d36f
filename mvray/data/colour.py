"""Changes of a picture's colours in training: torchvision's v2 transforms, drawn from the sample's own key."""

from __future__ import annotations

import numpy as np
import torch

from mvray.data.geometry import COLOUR, uniform


def jittered(image_CHW: np.ndarray, most: tuple[float, float, float, float], key: int) -> np.ndarray:
    """``image_CHW`` (uint8, 1 or 3 channels) as torchvision's ColorJitter changes it.

    Brightness, contrast and saturation are multiplied with a number from 1 - ``most`` to 1 + ``most``, the hue is
    turned by up to ``most`` of a full turn either way, in an order that is drawn, too. Grey pictures have neither
    saturation nor hue.
    """
    from torchvision.transforms.v2 import functional  # takes seconds to import

    draws = uniform(key, 8, COLOUR)
    changes = [
        (functional.adjust_brightness, 1 + most[0] * (2 * draws[0] - 1)),
        (functional.adjust_contrast, 1 + most[1] * (2 * draws[1] - 1)),
        (functional.adjust_saturation, 1 + most[2] * (2 * draws[2] - 1)),
        (functional.adjust_hue, most[3] * (2 * draws[3] - 1)),
    ]
    changed = torch.from_numpy(np.array(image_CHW))
    for i in sorted(range(4), key=lambda i: draws[4 + i]):
        change, amount = changes[i]
        if most[i] and (i < 2 or len(image_CHW) == 3):
            changed = change(changed, amount)
    return changed.numpy()
