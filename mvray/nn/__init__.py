"""Parts of torch that several methods use, or that are worth a test of their own; Method itself."""

from mvray.nn import (
    balanced,
    cam,
    detectors,
    draws,
    hiding,
    layers,
    margins,
    mask_rcnn,
    networks,
    rle,
    sharpness,
    weights,
    whitening,
    x3d,
)
from mvray.nn.attention_branch import AttentionBranch, apply
from mvray.nn.copy_paste import CopyPaste
from mvray.nn.evaluation import CONCATENATE, SUM, Evaluation, Gathered
from mvray.nn.k_means import Clusters, kmeans
from mvray.nn.lanes import in_passes
from mvray.nn.layers import Layers
from mvray.nn.mask_rcnn import segment
from mvray.nn.method import EpochWork, Group, Method, build_method
from mvray.nn.roi_align import roi_align
from mvray.nn.weights import local

__all__ = [
    "CONCATENATE",
    "SUM",
    "AttentionBranch",
    "Clusters",
    "CopyPaste",
    "EpochWork",
    "Evaluation",
    "Gathered",
    "Group",
    "Layers",
    "Method",
    "apply",
    "balanced",
    "build_method",
    "cam",
    "detectors",
    "draws",
    "hiding",
    "in_passes",
    "kmeans",
    "layers",
    "local",
    "margins",
    "mask_rcnn",
    "networks",
    "rle",
    "roi_align",
    "segment",
    "sharpness",
    "weights",
    "whitening",
    "x3d",
]
