"""Parts of torch that several methods use, or that are worth a test of their own; Method itself."""

from mvray.nn import (
    balanced,
    batch_norm,
    cam,
    detectors,
    draws,
    hiding,
    layers,
    margins,
    mask_rcnn,
    networks,
    sharpness,
    weak_losses,
    weights,
    whitening,
    x3d,
)
from mvray.nn.attention_branch import AttentionBranch, apply
from mvray.nn.copy_paste import CopyPaste
from mvray.nn.decoders import DECODERS, Plain, enlarged, take_fully_connected
from mvray.nn.dense_crf import CRF, CRFLayers, marginals
from mvray.nn.encoders import Encoder, is_vgg
from mvray.nn.evaluation import CONCATENATE, SUM, Evaluation, Gathered
from mvray.nn.k_means import Clusters, kmeans
from mvray.nn.lanes import in_passes
from mvray.nn.layers import Layers
from mvray.nn.mask_rcnn import segment
from mvray.nn.method import EpochWork, Group, Method, build_method
from mvray.nn.over_ranks import mean_over_ranks
from mvray.nn.roi_align import roi_align
from mvray.nn.saliency import ClassMaps, Saliency, class_saliency
from mvray.nn.weights import local

__all__ = [
    "CONCATENATE",
    "CRF",
    "DECODERS",
    "SUM",
    "AttentionBranch",
    "CRFLayers",
    "ClassMaps",
    "Clusters",
    "CopyPaste",
    "Encoder",
    "EpochWork",
    "Evaluation",
    "Gathered",
    "Group",
    "Layers",
    "Method",
    "Plain",
    "Saliency",
    "apply",
    "balanced",
    "batch_norm",
    "build_method",
    "cam",
    "class_saliency",
    "detectors",
    "draws",
    "enlarged",
    "hiding",
    "in_passes",
    "is_vgg",
    "kmeans",
    "layers",
    "local",
    "marginals",
    "margins",
    "mask_rcnn",
    "mean_over_ranks",
    "networks",
    "roi_align",
    "segment",
    "sharpness",
    "take_fully_connected",
    "weak_losses",
    "weights",
    "whitening",
    "x3d",
]
