"""A small residual network for faces of 64 x 64 pixels on CPU cores: He et al. 2015, arXiv 1512.03385, at a
fraction of ResNet18's width and half of its depth. This file needs torch while it is imported."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

WIDTHS = (24, 48, 96, 192)


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norm, added to what came in (the paper's figure 2, projection B)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        projection = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.beside = nn.Identity() if stride == 1 and inputs == outputs else nn.Sequential(*projection)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        summed_BCHW: Tensor = nn.functional.relu(self.body(maps_BCHW) + self.beside(maps_BCHW))
        return summed_BCHW


def resnet_small(classes: int) -> nn.Module:
    """B x 3 x H x W to B x ``classes``, randomly initialised from torch's seed: a 3 x 3 convolution with stride 2,
    four residual blocks, three of them with stride 2, the mean over places, dropout (0 unless set), a linear layer."""
    stem = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU(inplace=True))
    widths = (WIDTHS[0], *WIDTHS)
    blocks = [Residual(*ends, stride=1 if i == 0 else 2) for i, ends in enumerate(zip(widths, WIDTHS, strict=False))]
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.0))
    model = nn.Sequential(
        OrderedDict(stem=stem, layers=nn.Sequential(*blocks), pool=pool, fc=nn.Linear(WIDTHS[-1], classes))
    )
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return model
