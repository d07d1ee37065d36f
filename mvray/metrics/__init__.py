"""Numbers out of columns: classification, retrieval, clustering, segmentation."""

from mvray.metrics import retrieval
from mvray.metrics.classification import (
    Accuracy,
    AttentionEntropy,
    AttentionInside,
    AttentionOnMasks,
    MaskAgreement,
    Top5,
    confusion,
    mean_interval,
)
from mvray.metrics.clustering import (
    LEFT_OUT,
    Agglomerative,
    Clusters,
    Dbscan,
    Hdbscan,
    KMeans,
    group_vectors,
    work_keys,
)
from mvray.metrics.reduction import Pca, Umap
from mvray.metrics.retrieval import Retrieval
from mvray.metrics.segmentation import MeanIoU, accuracy, counts_of, iou

__all__ = [
    "LEFT_OUT",
    "Accuracy",
    "Agglomerative",
    "AttentionEntropy",
    "AttentionInside",
    "AttentionOnMasks",
    "Clusters",
    "Dbscan",
    "Hdbscan",
    "KMeans",
    "MaskAgreement",
    "MeanIoU",
    "Pca",
    "Retrieval",
    "Top5",
    "Umap",
    "accuracy",
    "confusion",
    "counts_of",
    "group_vectors",
    "iou",
    "mean_interval",
    "retrieval",
    "work_keys",
]
