"""The attention branch of an Attention Branch Network, for clips.

Fukui et al. 2019, "Attention Branch Network: Learning of attention mechanism for visual explanation",
CVPR, section 3. From the extractor's features the branch makes class scores and, on the
way, a map of where they come from; the perception branch then sees the features weighted by the map.

    residual blocks, BN, 1 x 1 to K, BN, ReLU      as many maps as classes
      from there:  1 x 1 to K, global mean         scores, trained by their own cross-entropy
                   3 x 3 to 1, BN, sigmoid         the map

The paper's layers are 2D. In 3D each becomes its counterpart (1 x 1 x 1, 3 x 3 x 3), time keeps its
length, so every frame has a map, and the scores are the mean over time and space. That is our choice,
as is one residual block where the paper copies the whole last stage: at twice the sides of X3D-M's
res5, its seven blocks would cost nearly as much as the rest of the network.

Shapes: B clips, C channels, T frames, H x W pixels, K classes. This file needs torch while it is
imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mvray.errors import SettingError
from mvray.nn.conv3d import Conv3d
from mvray.nn.x3d import BOTTLENECK, SQUEEZE, round_width
from mvray.nn.x3d_layers import Stage, initialise

if TYPE_CHECKING:
    from torch import Tensor


class AttentionBranch(nn.Module):
    """B x ``width`` x T x H x W to a map in 0..1, B x T x H x W, and scores before softmax, B x K.

    ``depth`` residual blocks like those of X3D's last stage (twice the width), with stride 1. Randomly
    initialised from torch's seed, as X3D is.
    """

    def __init__(self, width: int, classes: int, depth: int = 1) -> None:
        super().__init__()
        outputs = 2 * width
        inner = int(BOTTLENECK * outputs)
        self.maps = nn.Sequential(
            Stage(depth, width, inner, outputs, 1, round_width(inner, SQUEEZE)),
            nn.BatchNorm3d(outputs),
            Conv3d(outputs, classes, (1, 1, 1)),
            nn.BatchNorm3d(classes),
            nn.ReLU(inplace=True),
        )
        self.score = nn.Sequential(Conv3d(classes, classes, (1, 1, 1)), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.attention = nn.Sequential(Conv3d(classes, 1, (3, 3, 3)), nn.BatchNorm3d(1), nn.Sigmoid())
        initialise(self)

    def forward(self, features_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        maps_BKTHW = self.maps(features_BCTHW)
        return self.attention(maps_BKTHW).squeeze(1), self.score(maps_BKTHW)


def apply(features_BCTHW: Tensor, map_BTHW: Tensor, way: str) -> Tensor:
    """The features weighted by the map: h * M where ``way`` is "multiply", h * (1 + M) where it is "residual".

    The second cannot lose what the map leaves out. Raises SettingError for
    another way.
    """
    if way not in ("multiply", "residual"):
        raise SettingError(f"Attention cannot be applied by {way!r}; expected multiply or residual.")
    return features_BCTHW * (map_BTHW if way == "multiply" else 1 + map_BTHW).unsqueeze(1)
