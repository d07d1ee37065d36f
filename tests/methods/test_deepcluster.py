"""DeepCluster: its feature, its labels against the same made with other tools, its epochs in the loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from toys import BUILT, Here, Kept, Killed, initial, step_of, task, weights

from mvray.data.tables import read_table, write_table
from mvray.errors import DataError, SettingError
from mvray.experiment.contracts import Facts
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import LAST
from mvray.methods import classifier, deepcluster
from mvray.nn.k_means import kmeans
from mvray.storage.storage import Storage
from mvray.training.loop import train
from mvray.training.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")
Ranks = Callable[..., list[str]]
FACE = Pictures(32, 32, 1)
FACTS = Facts(classes=("ada", "ben", "cleo"), height=32, width=32, channels=1, samples=90)
SMALL = {"network": "vgg-small", "clusters": 6, "components": 8}
LOOP = {"batch_size": 8, "epochs": 3, "lr": 0.05, "select": LAST, "pictures": FACE}


def method_of(seed: int = 0, facts: Facts = FACTS, **settings: object) -> deepcluster.DeepCluster:
    torch.manual_seed(seed)
    return deepcluster.Config(**{**SMALL, **settings}).build(facts)


def images(samples: int = 90, channels: int = 1, side: int = 32) -> torch.Tensor:
    """Stripes of five kinds in noise."""
    rand = torch.Generator().manual_seed(5)
    period = torch.arange(samples)[:, None] % 5 + 2
    stripes = torch.arange(side) // period % 2 * 120
    noise = torch.randint(0, 120, (samples, channels, side, side), generator=rand)
    return (stripes[:, None, None, :] + noise).to(torch.uint8)


@dataclass
class Alone:
    """What one rank gives a method before an epoch: batches of ``images``, without what is in ``left_out``."""

    method: deepcluster.DeepCluster
    epoch: int = 0
    left_out: tuple[int, ...] = ()
    labels: torch.Tensor = field(default_factory=lambda: torch.full((90,), -1))
    notes: dict[str, float] = field(default_factory=dict)
    forgotten: list[torch.nn.Parameter] = field(default_factory=list)
    seed: int = 3
    rank: int = 0
    world: int = 1
    samples: int = 90
    batch_size: int = 16

    def predictions(self) -> Iterator[tuple[torch.Tensor, Mapping[str, torch.Tensor]]]:
        self.method.eval()
        for rows in torch.arange(90).split(16):
            kept = torch.tensor([row for row in rows.tolist() if row not in self.left_out])
            with torch.no_grad():
                yield kept, self.method.predict({"image": images()[kept]})

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def note(self, name: str, value: float) -> None:
        self.notes[name] = value

    def fresh(self, parameters: Iterator[torch.nn.Parameter]) -> None:
        self.forgotten += parameters


# -- the network ---------------------------------------------------------------------------------


def test_loss_is_cross_entropy_with_the_given_label() -> None:
    method, label = method_of().eval(), torch.arange(90) % 6
    with torch.no_grad():
        scores_BK = method.class_scores(images()).double()
        found = method({"image": images(), "label": label}, "train")["cross_entropy"]
    assert scores_BK.shape == (90, 6)
    expected = -(scores_BK - scores_BK.exp().sum(1, keepdim=True).log())[torch.arange(90), label].mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_feature_is_what_the_layer_before_the_last_gives_before_its_relu() -> None:
    method = method_of().eval()
    with torch.no_grad():
        made = method.predict({"image": images()})
        head = method.network.get_submodule("classifier.7")
        torch.testing.assert_close(head(made["feature"].relu()), method.class_scores(images()))
    assert made["feature"].shape == (90, 256)
    assert float(made["feature"].min()) < 0
    assert torch.equal(made["predicted"], method.class_scores(images()).argmax(1))


@pytest.mark.parametrize(
    ("network", "ends"),
    [
        ("vgg16", ("classifier.6", "classifier.4")),
        ("vgg16_bn", ("classifier.6", "classifier.4")),
        ("alexnet", ("classifier.6", "classifier.5")),
        ("mobilenet_v2", ("classifier.1", "classifier.0")),
        ("resnet18", ("fc", "fc")),
    ],
)
def test_heads_of_other_networks(network: str, ends: tuple[str, str]) -> None:
    with torch.device("meta"):
        method = deepcluster.Config(network=network).build(FACTS)
    assert (method.head, method.feature_at) == ends
    assert method._head().out_features == 3000


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(SettingError, match="squeezenet1_1 ends in a convolution; expected a network with a linear"):
        method_of(network="squeezenet1_1")


def test_pictures_are_normalised_and_grey_is_repeated() -> None:
    method, seen = method_of().eval(), []
    method.network.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    with torch.no_grad():
        grey, colour = (method.class_scores(each) for each in (images(), images().repeat(1, 3, 1, 1)))
    assert torch.equal(grey, colour)
    pixels = images().double() / 255
    mean, std = method.config.mean, method.config.std
    expected = torch.cat([(pixels - m) / s for m, s in zip(mean, std, strict=True)], dim=1)
    torch.testing.assert_close(seen[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_sobel_is_what_scipy_makes_of_the_grey_picture() -> None:
    from scipy import ndimage

    method, seen = method_of(sobel=True, mean=(0.0,) * 3, std=(1.0,) * 3).eval(), []
    method.network.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    colour = images(4, channels=3)
    with torch.no_grad():
        assert method.class_scores(colour).shape == (4, 6)
    grey = colour.double().mean(1).numpy() / 255
    for axis, found in ((2, seen[0][:, 0]), (1, seen[0][:, 1])):
        edges = -np.stack([ndimage.sobel(each, axis=axis - 1, mode="constant") for each in grey])
        np.testing.assert_allclose(found, edges, atol=1e-5)


def test_dropout_is_as_asked_for() -> None:
    rates = [each.p for each in method_of(dropout=0.4).modules() if isinstance(each, torch.nn.Dropout)]
    assert rates == [0.4, 0.4]


# -- before an epoch -----------------------------------------------------------------------------


def test_labels_are_the_clusters_of_whitened_features() -> None:
    from sklearn.decomposition import PCA

    method = method_of()
    work = Alone(method)
    with torch.no_grad():
        feature = method.eval().predict({"image": images()})["feature"].double().numpy()
    values = method.before_epoch(work)
    points = PCA(8, whiten=True, svd_solver="full").fit_transform(feature)
    points = torch.from_numpy(points / np.linalg.norm(points, axis=1, keepdims=True))
    numbers = torch.arange(90)
    expected = kmeans(points, numbers, 90, 6, seed=3 * 1_000_003, sum_over_ranks=lambda tensor: tensor)
    assert torch.equal(values["label"], expected.labels)
    torch.testing.assert_close(values["weight"], 1 / expected.counts.double()[expected.labels])
    assert work.notes["inertia"] == pytest.approx(expected.inertia, rel=1e-3)
    assert work.notes["clusters_used"] == 6
    assert work.notes["largest_cluster"] == pytest.approx(int(expected.counts.max()) / 90)
    assert "nmi_previous" not in work.notes
    assert {"seconds_features", "seconds_pca", "seconds_kmeans"} <= work.notes.keys()
    assert torch.equal(method.assigned, expected.labels)
    torch.testing.assert_close(method.centroids.norm(dim=1), expected.centroids.norm(dim=1).float(), rtol=1e-3, atol=0)


def test_the_head_begins_anew_and_its_optimiser_with_it() -> None:
    heads = []
    for epoch, seed in ((0, 0), (0, 1), (1, 0)):
        method = method_of(seed)
        torch.nn.init.ones_(method._head().bias)
        work = Alone(method, epoch=epoch)
        method.before_epoch(work)
        assert [id(each) for each in work.forgotten] == [id(each) for each in method._head().parameters()]
        assert not method._head().bias.any()
        heads.append(method._head().weight.detach().clone())
    assert torch.equal(heads[0], heads[1])  # the run's seed and the epoch decide, not what was drawn before
    assert not torch.equal(heads[0], heads[2])
    assert float(heads[0].std()) == pytest.approx(0.01, rel=0.1)


def test_assignments_are_compared_with_those_before() -> None:
    from sklearn.metrics import normalized_mutual_info_score

    method = method_of()
    first = method.before_epoch(Alone(method))["label"]
    work = Alone(method, epoch=1)
    second = method.before_epoch(work)["label"]
    assert work.notes["nmi_previous"] == pytest.approx(normalized_mutual_info_score(first, second))
    assert 0 < work.notes["nmi_previous"] < 1  # another start of k-means


def test_labels_stay_between_assignments() -> None:
    method = method_of(every=2)
    first = method.before_epoch(Alone(method))
    between, work = method.before_epoch(Alone(method, epoch=1)), Alone(method, epoch=1)
    assert torch.equal(first["label"], between["label"])
    assert torch.equal(first["weight"], between["weight"])
    assert not work.notes
    again = Alone(method, epoch=2)
    method.before_epoch(again)
    assert "nmi_previous" in again.notes


def test_samples_that_cannot_be_read_are_never_drawn() -> None:
    method = method_of()
    values = method.before_epoch(Alone(method, left_out=(0, 17, 89)))
    assert values["label"][[0, 17, 89]].tolist() == [-1, -1, -1]
    assert values["weight"][[0, 17, 89]].tolist() == [0, 0, 0]
    assert int((values["weight"] > 0).sum()) == 87
    assert float(values["weight"].sum()) == pytest.approx(6)


# -- in the loop ---------------------------------------------------------------------------------


def history(given: Task) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = json.loads(Storage(given.folder).read("history.json"))
    return [
        {name: value for name, value in row.items() if "_s" not in name.replace("epoch/seconds", "_s")} for row in rows
    ]


def config(**settings: object) -> deepcluster.Config:
    return deepcluster.Config(**{**SMALL, **settings})


@pytest.mark.slow
@pytest.mark.parametrize("steps", [7, 10])
def test_a_run_that_was_stopped_ends_as_the_uninterrupted_one(drawings: Path, tmp_path: Path, steps: int) -> None:
    """5 steps an epoch: in the middle of the second, and after its last step."""
    step = step_of(drawings, config(every=1), **LOOP)
    whole, broken = (task(step, tmp_path / name) for name in ("whole", "broken"))
    train(whole, Here())
    train(broken, Here(stop_after=steps))
    assert not Storage(broken.folder).exists("metrics.json")
    train(broken, Here())
    assert weights(whole).keys() >= {"assigned", "centroids"}
    assert all(torch.equal(value, weights(broken)[name]) for name, value in weights(whole).items())
    assert history(broken) == history(whole)
    assert [sorted(row) for row in history(whole)][1].count("epoch/nmi_previous") == 1


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_the_uninterrupted_one(drawings: Path, tmp_path: Path) -> None:
    step = step_of(drawings, Kept(config(every=2)), checkpoint_steps=2, **LOOP)
    whole, broken = (task(step, tmp_path / name) for name in ("whole", "broken"))
    train(whole, Here())
    with pytest.raises(Killed):
        train(replace(broken, step=replace(step, method=Kept(config(every=2), kill_at=9))), Here())
    train(broken, Here())
    assert BUILT[-1].forwards < 15
    assert all(torch.equal(value, weights(broken)[name]) for name, value in weights(whole).items())
    assert history(broken) == history(whole)


def test_samples_without_labels(drawings: Path, tmp_path: Path) -> None:
    """Clusters need none; training on given labels says what is wrong."""
    for labels in ("clusters", "given"):
        given = task(step_of(drawings, config(labels=labels), **{**LOOP, "epochs": 1}), tmp_path / labels)
        rows = read_table(Storage(given.folder), "index.parquet")
        nothing = pa.array([-1] * len(rows), rows["label"].type)
        rows = rows.set_column(rows.column_names.index("label"), rows.schema.field("label"), nothing)
        write_table(Storage(given.folder), "index.parquet", rows)
        if labels == "clusters":
            train(replace(given, facts=replace(given.facts, classes=())), Here())
            assert "validation/neighbour_accuracy" not in history(given)[0]
        else:
            with pytest.raises(
                DataError, match=r"42 of 42 training samples have no label, which method.labels='given'"
            ):
                train(given, Here())


@pytest.mark.slow
def test_supervised_training_and_clusters_from_there(drawings: Path, tmp_path: Path) -> None:
    """ft, then ft+dc: the network is taken over but for its head, and so it is from a classifier."""
    ft = task(step_of(drawings, config(labels="given"), **{**LOOP, "epochs": 6, "lr": 0.02}), tmp_path / "ft")
    found = train(ft, Here())
    assert found["validation/accuracy"] >= 0.5
    assert {"validation/accuracy", "validation/neighbour_accuracy"} <= found.keys()
    assert not {"assigned", "centroids"} & weights(ft).keys()
    plain = classifier.Config(network="vgg-small")
    other = task(step_of(drawings, plain, **{**LOOP, "epochs": 1}), tmp_path / "other")
    train(other, Here())
    for start in (ft, other):
        both = task(step_of(drawings, config(), **{**LOOP, "epochs": 1, "lr": 1e-30}), tmp_path / f"{start.folder}-dc")
        train(replace(both, start_weights=f"{start.folder}/weights.safetensors"), Here())
        for name, value in weights(start).items():
            if name.startswith("network.") and value.is_floating_point() and "running" not in name:
                found = weights(both)[name]
                if "classifier.7" in name:
                    assert found.shape[0] == 6
                else:
                    torch.testing.assert_close(found, value, rtol=0, atol=1e-20)
    assert not torch.equal(weights(both)["network.features.0.weight"], initial(both)["network.features.0.weight"])


def test_weights_of_another_network_are_refused() -> None:
    for other, found in (
        (
            method_of(network="resnet18"),
            r"\d+ of \d+ entries of vgg-small are missing or .*, such as network.features.0",
        ),
        (method_of(sobel=True), r"1 of \d+ entries of vgg-small are missing or of another shape"),
    ):
        with pytest.raises(DataError, match=f"another network's: {found}"):
            method_of().start(other.state_dict())


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.save(method_of(seed=1).network.state_dict(), tmp_path / "weights.pth")
    given, other = method_of(weights=str(tmp_path / "weights.pth")).state_dict(), method_of(seed=1).state_dict()
    assert all(torch.equal(given[name], value) for name, value in other.items())


# -- what is learnt ------------------------------------------------------------------------------


@pytest.mark.slow
def test_clusters_come_to_mean_something(tmp_path: Path) -> None:
    """Six patterns, at any place and size, in noise: told apart without a label, far better than at random weights."""
    from sklearn.metrics import adjusted_mutual_info_score

    root, draw = tmp_path / "pictures", np.random.default_rng(0)
    for kind in range(6):
        (root / str(kind)).mkdir(parents=True)
        tile = np.kron(np.random.default_rng(kind + 10).integers(0, 2, (4, 4)), np.ones((2, 2))) * 100
        for number in range(60):
            pattern = np.roll(np.tile(tile, (4, 4)), draw.integers(0, 8, 2), (0, 1))
            pixels = (pattern + draw.integers(0, 100, (32, 32))).astype(np.uint8)
            Image.fromarray(pixels).save(root / str(kind) / f"{number:02d}.png")
    pictures = replace(FACE, crop_scale=(0.6, 1.0))
    settings = {"lr": 0.02, "momentum": 0.9, "batch_size": 16, "select": LAST, "pictures": pictures}
    agreement = {}
    for epochs in (1, 7):
        given = task(step_of(root, config(clusters=12), epochs=epochs, **settings), tmp_path / str(epochs))
        train(given, Here())
        rows = read_table(Storage(given.folder), "index.parquet").to_pylist()
        label = [row["label"] for row in rows if row["split"] == "train"]
        agreement[epochs] = adjusted_mutual_info_score(label, weights(given)["assigned"])
    assert agreement[1] < 0.35  # from the features of random weights
    assert agreement[7] > 0.5
    found = [row["epoch/nmi_previous"] for row in history(given)[1:]]
    assert found[-1] > found[0] + 0.2
    assert history(given)[-1]["validation/neighbour_accuracy"] > 0.6


# -- what is refused and what is said ------------------------------------------------------------


def test_score() -> None:
    feature = np.array([[1, 0], [3, 0.1], [0, 1], [0.1, 9], [5, 5]], np.float32)
    columns = {"feature": feature, "label": np.array([0, 0, 1, 2, -1]), "predicted": np.array([0, 1, 1, 2, 0])}
    assert method_of().score(columns) == {"neighbour_accuracy": 0.5}
    both = {"accuracy": 0.75, "neighbour_accuracy": 0.5}
    assert method_of(labels="given").score(columns) == both
    nothing = {**columns, "label": np.full(5, -1)}
    assert method_of().score(nothing) == method_of(labels="given").score(nothing) == {}
    assert config().scores == ("neighbour_accuracy",)
    assert config(labels="given").scores == ("accuracy", "neighbour_accuracy")


def test_what_cannot_be_trained_is_refused_before() -> None:
    config().check(FACTS)
    config(labels="given", clusters=3000).check(FACTS)
    for settings, message in (
        ({"clusters": 91}, "method.clusters is 91 and there are 90 training samples; expected no more clusters"),
        ({"components": 90}, "method.components is 90 and there are 90 training samples; expected far fewer"),
        ({"network": "vgg17"}, "There is no network 'vgg17'"),
    ):
        with pytest.raises(SettingError, match=message):
            config(**settings).check(FACTS)
    with pytest.raises(SettingError, match=r"labels is 'given', and the training data has no classes; .* Use labels="):
        config(labels="given").check(replace(FACTS, classes=()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "mine"}, "method.labels is 'mine'; expected clusters or given."),
        ({"clusters": 1}, "method.clusters is 1; expected 2 or more."),
        ({"components": 0}, "method.components is 0; expected 1 or more."),
        ({"every": 0}, "method.every is 0; expected 1 or more."),
        ({"dropout": 1.0}, "method.dropout is 1.0; expected None, or 0 up to below 1."),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        config(**settings)


def test_all_pictures_may_be_the_same() -> None:
    method = method_of()
    work = Alone(method)
    grey = torch.full((16, 1, 32, 32), 128, dtype=torch.uint8)

    def predictions() -> Iterator[tuple[torch.Tensor, Mapping[str, torch.Tensor]]]:
        for rows in torch.arange(80).split(16):
            with torch.no_grad():
                yield rows, method.eval().predict({"image": grey})

    work.predictions = predictions
    values = method.before_epoch(work)
    assert values["weight"].isfinite().all()
    assert int((values["label"] < 0).sum()) == 10
    assert 1 <= work.notes["clusters_used"] <= 6
