"""DeepCluster (Caron et al. 2018, arXiv 1807.05520), and supervised training with the same network.

    labels="clusters"   before each epoch, the features of all training samples are clustered by k-means and the
                        number of its cluster becomes each sample's label; the head begins anew
    labels="given"      ordinary cross-entropy on the labels of the data

What the paper leaves open follows the authors' code (github.com/facebookresearch/deepcluster): the feature is what the
layer before the last gives, before its ReLU and dropout; each k-means has another start; the head is drawn from
N(0, 0.01^2) and its optimiser remembers nothing. Only the head's momentum differs, which the authors leave out.

Shapes: B samples of a batch, N samples of this rank, S training samples of all ranks, K clusters, D features.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from mvray.errors import DataError, SettingError
from mvray.experiment import FILE, Batch, Facts, MethodConfig
from mvray.nn import Clusters, EpochWork, Method, kmeans, layers, networks, whitening

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_NAMES_IN_MESSAGE = 3
_EDGES = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
"""The Sobel filter for vertical edges."""


@dataclass(frozen=True)
class Config(MethodConfig):
    """``network`` is any of nn/networks.py that ends in a linear layer, ``weights`` a file for it.

    ``labels`` is "clusters" or "given". ``clusters`` are made by at most ``iterations`` of k-means from features in
    ``components`` whitened dimensions, before every ``every``-th epoch. The features are what ``layer`` gives (a name
    of nn/layers.py; maps averaged over 2 x 2 places) or, where it is "", what goes into the last one. Where ``sobel``,
    the network sees the edges of the grey picture (two channels) in place of the picture. ``dropout``, ``mean`` and
    ``std`` are as in classifier.Config. Only ``neighbour_accuracy`` is scored where labels are clusters, for watching:
    select by LAST.
    """

    kind: ClassVar[str] = "deepcluster"
    network: str = "vgg16"
    weights: str = field(default="", metadata=FILE)
    sobel: bool = False
    labels: str = "clusters"
    clusters: int = 3000
    components: int = 256
    iterations: int = 20
    layer: str = ""
    every: int = 1
    dropout: float | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name, value, holds, expected in (
            ("labels", self.labels, self.labels in ("clusters", "given"), "clusters or given"),
            ("clusters", self.clusters, self.clusters >= 2, "2 or more"),
            ("components", self.components, self.components >= 1, "1 or more"),
            ("iterations", self.iterations, self.iterations >= 1, "1 or more"),
            ("every", self.every, self.every >= 1, "1 or more"),
            ("dropout", self.dropout, self.dropout is None or 0 <= self.dropout < 1, "None, or 0 up to below 1"),
            ("std", self.std, min(self.std) > 0, "values above 0"),
        ):
            if not holds:
                raise SettingError(f"method.{name} is {value!r}; expected {expected}.")

    @property
    def scores(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("neighbour_accuracy",) if self.labels == "clusters" else ("accuracy", "neighbour_accuracy")

    def check(self, facts: Facts) -> None:
        networks.check_name(self.network)
        if self.labels == "given":
            if not facts.classes:
                raise SettingError(
                    "method.labels is 'given', and the training data has no classes; expected labelled samples. "
                    "Use labels='clusters' for samples without labels."
                )
            return
        if self.clusters > facts.samples:
            raise SettingError(
                f"method.clusters is {self.clusters} and there are {facts.samples} training samples; expected no more "
                "clusters than samples. Set method.clusters; Caron et al. find 10 times the number of classes best."
            )
        if self.components >= facts.samples:
            raise SettingError(
                f"method.components is {self.components} and there are {facts.samples} training samples; expected "
                "far fewer components: whitened in so many, all samples are equally far apart. Use a tenth or less."
            )

    def build(self, facts: Facts) -> Method:
        return DeepCluster(self, facts)


class DeepCluster(Method):
    """A network with a head for the clusters, or for the classes. Grey pictures are repeated to three channels.

    ``assigned`` (S) is each training sample's cluster (-1: none) and ``centroids`` (K x components) where it lies;
    they are kept with the weights because the next epoch is compared with them.
    """

    mean: Tensor
    std: Tensor
    edges: Tensor
    assigned: Tensor
    centroids: Tensor

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.config = config
        clusters = config.labels == "clusters"
        outputs = config.clusters if clusters else len(facts.classes)
        self.network = networks.network(config.network, outputs, config.weights, channels=2 if config.sobel else 3)
        self.head, self.feature_at = _ends(self.network, config.network)
        if config.dropout is not None:
            for layer in self.network.modules():
                if isinstance(layer, torch.nn.Dropout):
                    layer.p = config.dropout
        self._read_at = _named_layer(self, config.layer)
        self._width = self._features_width(facts) if config.layer else self._head().in_features
        self.attention_layer = "network." + networks.last_convolution(self.network)
        for name, values in (("mean", config.mean), ("std", config.std)):
            self.register_buffer(name, 255 * torch.tensor(values).reshape(3, 1, 1), persistent=False)
        edges = torch.tensor(_EDGES)
        self.register_buffer("edges", torch.stack([edges, edges.T])[:, None], persistent=False)
        if clusters:
            self.register_buffer("assigned", torch.full((facts.samples,), -1))
            self.register_buffer("centroids", torch.zeros(config.clusters, config.components))

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        loss = torch.nn.functional.cross_entropy(self.class_scores(batch["image"]), batch["label"])
        return {"cross_entropy": loss}

    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        """Scores of clusters or classes before softmax, B x K, of pictures with values 0..255."""
        three_BCHW = images_BCHW.expand(-1, 3, -1, -1).to(self.mean.dtype, memory_format=torch.channels_last)
        seen_BCHW = (three_BCHW - self.mean) / self.std
        if self.config.sobel:
            seen_BCHW = torch.nn.functional.conv2d(seen_BCHW.mean(1, keepdim=True), self.edges, padding=1)
        scores_BK: Tensor = self.network(seen_BCHW)
        return scores_BK

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``feature``: what is clustered, B x D float32; ``predicted``: the best cluster or class, B int64."""
        kept: list[Tensor] = []
        if self._read_at:
            layer = self.get_submodule(self._read_at)
            hook = layer.register_forward_hook(lambda _layer, _given, output: kept.append(_pooled_rows(output)))
        else:
            layer = self.network.get_submodule(self.feature_at)
            hook = layer.register_forward_pre_hook(lambda _layer, inputs: kept.append(inputs[0]))
        with hook:
            scores_BK = self.class_scores(batch["image"])
        return {"feature": kept[0].float(), "predicted": scores_BK.argmax(1)}

    def _features_width(self, facts: Facts) -> int:
        """D of a layer that is read by name."""
        blank = torch.zeros(1, facts.channels, facts.height, facts.width, dtype=torch.uint8)
        training = self.training
        with torch.no_grad():
            width = self.eval().predict({"image": blank})["feature"].shape[1]
        self.train(training)
        return width

    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        """``neighbour_accuracy``: share of the labelled samples whose nearest other one by the cosine of the features
        has the same label, left out where there are fewer than two; ``accuracy`` where labels are given. 0..1."""
        known = columns["label"] >= 0
        label, numbers = columns["label"][known], {}
        if len(label) > 1:
            nearest = _nearest_other(torch.from_numpy(columns["feature"][known])).numpy()
            numbers["neighbour_accuracy"] = float((label[nearest] == label).mean())
        if self.config.labels == "given" and len(label):
            numbers["accuracy"] = float((columns["predicted"][known] == label).mean())
        return numbers

    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the network but for its head, from a step of any method that keeps it as ``network``."""
        head = f"network.{self.head}."
        own = {k: v for k, v in self.state_dict().items() if k.startswith("network.") and not k.startswith(head)}
        wrong = [name for name, value in own.items() if name not in weights or weights[name].shape != value.shape]
        if wrong:
            raise DataError(
                f"The weights to start from are another network's: {len(wrong)} of {len(own)} entries of "
                f"{self.config.network} are missing or of another shape, such as "
                f"{', '.join(wrong[:_NAMES_IN_MESSAGE])}. Start from a step with the same network and sobel."
            )
        self.load_state_dict({name: weights[name] for name in own}, strict=False)

    def before_epoch(self, work: EpochWork) -> Mapping[str, Tensor]:
        """``label``: the clusters. ``weight``: as many samples of each cluster are drawn in the mean."""
        if self.config.labels == "given":
            _check_labelled(work)
            return {}
        if work.epoch % self.config.every == 0:
            self._assign(work)
        label_S = self.assigned.to("cpu", copy=True)  # the next assignment is written over it
        sizes_K = torch.bincount(label_S[label_S >= 0], minlength=self.config.clusters)
        weight_S = torch.where(label_S >= 0, 1.0 / sizes_K.double()[label_S], 0.0)
        return {"label": label_S, "weight": weight_S}

    def _assign(self, work: EpochWork) -> None:
        """New clusters from the features as they are now, and a new head."""
        config, begun = self.config, time.perf_counter()
        index_N, features_ND = self._features(work)
        featured = time.perf_counter()
        whiten = whitening.fit(features_ND, config.components, rank=work.rank, sum_over_ranks=work.sum)
        points = whiten(features_ND)
        del features_ND
        whitened = time.perf_counter()
        seed = _seed(work)
        clusters = kmeans(
            points, index_N, work.samples, config.clusters,
            seed=seed, sum_over_ranks=work.sum, iterations=config.iterations,
        )  # fmt: skip
        assigned_S = torch.zeros_like(self.assigned)
        assigned_S[index_N] = clusters.labels + 1
        assigned_S = work.sum(assigned_S) - 1
        clustered = time.perf_counter()
        self._note(work, assigned_S, clusters)
        for name, since, until in (
            ("features", begun, featured),
            ("pca", featured, whitened),
            ("kmeans", whitened, clustered),
        ):
            work.note(f"seconds_{name}", until - since)
        self.assigned.copy_(assigned_S)
        self.centroids.zero_()
        self.centroids[:, : points.shape[1]] = clusters.centroids
        self._renew_head(seed)
        work.fresh(self._head().parameters())

    def _features(self, work: EpochWork) -> tuple[Tensor, Tensor]:
        """Numbers and features of this rank's share of the training samples."""
        numbers, features = [self.assigned[:0]], [self.centroids.new_empty(0, self._width)]
        for index_B, columns in work.predictions():
            numbers.append(index_B)
            features.append(columns["feature"])
        return torch.cat(numbers), torch.cat(features)

    def _note(self, work: EpochWork, assigned_S: Tensor, clusters: Clusters) -> None:
        from sklearn.metrics import normalized_mutual_info_score

        both_S = (self.assigned >= 0) & (assigned_S >= 0)
        if bool(both_S.any()):
            old, new = self.assigned[both_S].cpu().numpy(), assigned_S[both_S].cpu().numpy()
            work.note("nmi_previous", normalized_mutual_info_score(old, new))
        work.note("clusters_used", int((clusters.counts > 0).sum()))
        work.note("largest_cluster", float(clusters.counts.max() / clusters.counts.sum()))
        work.note("inertia", clusters.inertia)

    def _head(self) -> torch.nn.Linear:
        head = self.network.get_submodule(self.head)
        assert isinstance(head, torch.nn.Linear)
        return head

    def _renew_head(self, seed: int) -> None:
        """The head as it begins: equal on all ranks, and after every restart."""
        head = self._head()
        drawn = torch.empty(head.weight.shape).normal_(std=0.01, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            head.weight.copy_(drawn)
            head.bias.zero_()


def _ends(network: torch.nn.Module, name: str) -> tuple[str, str]:
    """Names of the head, the last layer with weights, and of the layer whose input is the feature.

    That is the head, or the ReLU and dropout right before it in a Sequential.
    """
    layers = dict(network.named_modules())
    head = [key for key, layer in layers.items() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)][-1]
    if not isinstance(layers[head], torch.nn.Linear):
        raise SettingError(f"{name} ends in a convolution; expected a network with a linear layer, such as vgg16.")
    parent, _, last = head.rpartition(".")
    inside = layers[parent]
    if not isinstance(inside, torch.nn.Sequential):
        return head, head
    children = list(inside.named_children())
    at = [key for key, _ in children].index(last)
    while at and isinstance(before := children[at - 1][1], torch.nn.ReLU | torch.nn.Dropout):
        at -= 1
        before.inplace = False  # it would write over the feature
    return head, f"{parent}.{children[at][0]}".lstrip(".")


def _named_layer(method: torch.nn.Module, name: str) -> str:
    """The dotted name of the layer that nn/layers.py calls ``name``; "" for "". Raises SettingError."""
    known = layers.named_layers(method)
    known.pop(layers.PENULTIMATE, None)  # what "" is
    if name and name not in known:
        raise SettingError(
            f"method.layer is {name!r}; this network has {', '.join(known)}; '' is the last one's input."
        )
    return known[name] if name else ""


def _pooled_rows(features: Tensor) -> Tensor:
    """A layer's output as one row per sample; a copy, as what follows may work in place."""
    if features.ndim == 4:
        height, width = features.shape[2:]
        features = torch.nn.functional.adaptive_avg_pool2d(features, (min(2, height), min(2, width)))
    return features.flatten(1).clone()


def _seed(work: EpochWork) -> int:
    return work.seed * 1_000_003 + work.epoch


def _check_labelled(work: EpochWork) -> None:
    missing = int((work.labels < 0).sum())
    if missing:
        raise DataError(
            f"{missing} of {work.samples} training samples have no label, which method.labels='given' needs; "
            "expected a label for each. Leave them out, or use labels='clusters'."
        )


def _nearest_other(features_ND: Tensor) -> Tensor:
    """The row whose feature has the greatest cosine with each row's, other than itself, N int64."""
    features_ND = torch.nn.functional.normalize(features_ND.float())
    nearest = []
    for rows in torch.split(torch.arange(len(features_ND)), 1024):
        cosine = features_ND[rows] @ features_ND.T
        cosine[torch.arange(len(rows)), rows] = -torch.inf
        nearest.append(cosine.argmax(1))
    return torch.cat(nearest)
