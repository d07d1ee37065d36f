"""Numbers out of columns: classification, retrieval, clustering."""

from mvray.metrics import retrieval
from mvray.metrics.classification import (
    accuracy,
    attention_entropy,
    attention_inside,
    attention_on_masks,
    confusion,
    mask_agreement,
    mean_interval,
    top5,
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

__all__ = [
    "LEFT_OUT",
    "Agglomerative",
    "Clusters",
    "Dbscan",
    "Hdbscan",
    "KMeans",
    "Pca",
    "Retrieval",
    "Umap",
    "accuracy",
    "attention_entropy",
    "attention_inside",
    "attention_on_masks",
    "confusion",
    "group_vectors",
    "mask_agreement",
    "mean_interval",
    "retrieval",
    "top5",
    "work_keys",
]
