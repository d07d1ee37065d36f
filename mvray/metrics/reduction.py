"""Vectors with fewer dimensions, before they are grouped (clustering.py) or drawn: UMAP and PCA.

Shapes: N samples, D features, d reduced dimensions.
"""

from __future__ import annotations

import tempfile
import threading
import warnings
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np

from mvray.errors import SettingError
from mvray.experiment import Settings, check_above_0

METRICS = ("euclidean", "cosine", "manhattan", "correlation")


@dataclass(frozen=True)
class Pca(Settings):
    """The first ``dimensions`` principal components, or as many as there are."""

    kind: ClassVar[str] = "pca"
    dimensions: int = 32

    def __post_init__(self) -> None:
        check_above_0(self, "pca", "dimensions")

    def reduced(self, vectors_ND: np.ndarray, seed: int) -> np.ndarray:
        """N x d."""
        from sklearn.decomposition import PCA

        dimensions = min(self.dimensions, *vectors_ND.shape)
        if (vectors_ND == vectors_ND[:1]).all():
            return np.zeros((len(vectors_ND), dimensions))
        points_Nd: np.ndarray = PCA(dimensions, random_state=seed).fit_transform(vectors_ND)
        return points_Nd


@dataclass(frozen=True)
class Umap(Settings):
    """UMAP (McInnes et al. 2018) of umap-learn, on exact neighbours, so that only ``seed`` is chance.

    ``min_dist`` 0 is its advice for clustering; the paper says nothing of it, nor of ``neighbours``
    and ``metric`` (umap-learn's defaults). UMAP begins with d + 1 eigenvectors of the neighbours'
    graph, so with N <= d + 1 vectors `Pca` takes its place.
    """

    kind: ClassVar[str] = "umap"
    dimensions: int = 32
    neighbours: int = 15
    min_dist: float = 0.0
    metric: str = "euclidean"

    def __post_init__(self) -> None:
        check_above_0(self, "umap", "dimensions")
        check_above_0(self, "umap", "min_dist", or_0=True)
        if self.neighbours < 2:
            raise SettingError(f"umap.neighbours is {self.neighbours}; expected 2 or more.")
        if self.min_dist > 1:
            raise SettingError(f"umap.min_dist is {self.min_dist}; expected 0 to 1.")
        if self.metric not in METRICS:
            raise SettingError(f"umap.metric is {self.metric!r}; expected one of {', '.join(METRICS)}.")

    def reduced(self, vectors_ND: np.ndarray, seed: int) -> np.ndarray:
        """N x d float32; the same on any number of threads."""
        if len(vectors_ND) <= self.dimensions + 1:
            return Pca(self.dimensions).reduced(vectors_ND, seed)
        from sklearn.neighbors import NearestNeighbors

        largest = np.abs(vectors_ND).max()
        if not 1e-15 < largest < 1e15:  # squares in float32
            vectors_ND = vectors_ND / largest
        near = min(self.neighbours, len(vectors_ND) - 1)
        search = NearestNeighbors(n_neighbors=near, algorithm="brute", metric=self.metric).fit(vectors_ND)
        distances_Nk, rows_Nk = search.kneighbors(vectors_ND)
        points_Nd: np.ndarray = _umap()(
            n_components=self.dimensions,
            n_neighbors=near,
            min_dist=self.min_dist,
            metric=self.metric,
            precomputed_knn=(rows_Nk, distances_Nk.astype(np.float32)),
            disconnection_distance=np.inf,  # else opposite vectors have no place with the cosine
            random_state=seed,
            n_jobs=1,
        ).fit_transform(vectors_ND)
        return points_Nd


Reduce = Umap | Pca


def flat_map(vectors_ND: np.ndarray, reduce: Reduce | None, seed: int) -> np.ndarray:
    """A place for each vector on a map for people, N x 2 float32: UMAP, with the neighbours of ``reduce``."""
    if not len(vectors_ND) or (vectors_ND == vectors_ND[:1]).all():
        return np.zeros((len(vectors_ND), 2), np.float32)
    flat = replace(reduce if isinstance(reduce, Umap) else Umap(), dimensions=2, min_dist=0.1)
    places_N2 = flat.reduced(vectors_ND, seed).astype(np.float32)
    return np.pad(places_N2, ((0, 0), (0, 2 - places_N2.shape[1])))


_LOADING = threading.Lock()


def _umap() -> Any:
    """The class umap.UMAP, made quick to start and safe to run in several threads at once."""
    with _LOADING:
        umap = _prepared_umap()
    # For ever, because `warnings.catch_warnings` is not safe where threads run. No model is kept that could
    # transform more; what fails to begin in an orderly way begins by chance, which the layout then mends.
    warnings.filterwarnings("ignore", "precomputed_knn.* is not an NNDescent object", UserWarning, "umap")
    warnings.filterwarnings("ignore", "Spectral initialisation failed", UserWarning, "umap")
    warnings.filterwarnings("ignore", "Graph is not fully connected", UserWarning, "sklearn.manifold")
    return umap


@cache
def _prepared_umap() -> Any:
    """umap.UMAP whose compiled functions are kept on disk (seconds in each process) and use no thread pool.

    numba's pool ends the process where two threads use it at once. Without it, and without the
    interpreter's lock, works can be reduced side by side.
    """
    import numba
    from numba.core.dispatcher import Dispatcher

    warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
    try:
        import umap.umap_
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        # Neither the package's folder nor the user's cache can be written to.
        numba.config.CACHE_DIR = tempfile.mkdtemp(prefix="mvray-numba-")  # type: ignore[attr-defined]
        import umap.umap_
    for module in (umap.umap_, umap.layouts):
        for function in vars(module).values():
            if isinstance(function, Dispatcher) and function.py_func.__module__ == module.__name__:
                function.targetoptions.update(parallel=False, nogil=True)
                function.enable_caching()
    return umap.UMAP
