"""ArcFace and the other losses as a method: what it loses, says, refuses and takes over."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import Here, step_of, task, weights

from mvray.data import sampler
from mvray.errors import DataError, SettingError
from mvray.experiment.contracts import Facts
from mvray.experiment.inputs import Pictures
from mvray.methods import arcface, classifier
from mvray.nn import margins
from mvray.training.loop import train

FACTS = Facts(classes=("ada", "ben", "cleo"), height=32, width=32, channels=3, samples=12)
LOSSES = ("arcface", "subcenter", "cosface", "contrastive", "triplet")
pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(**settings: object) -> arcface.Config:
    paired = settings.get("loss") in arcface.PAIRED
    return arcface.Config(**{"network": "resnet-small", "dimensions": 16, "per_class": 2 if paired else 0, **settings})


def method_of(seed: int = 0, **settings: object) -> arcface.ArcFace:
    torch.manual_seed(seed)
    return config_of(**settings).build(FACTS)


def batch_of(samples: int = 12, channels: int = 3) -> dict[str, torch.Tensor]:
    rand = torch.Generator().manual_seed(5)
    label = torch.arange(samples) % 3
    noise = torch.randint(0, 60, (samples, channels, 32, 32), generator=rand) + 60 * label[:, None, None, None]
    return {"image": noise.to(torch.uint8), "label": label, "index": torch.arange(samples)}


def fitted(method: arcface.ArcFace, steps: int = 25) -> list[float]:
    optimiser = torch.optim.Adam(method.parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        (loss,) = method.train()(batch_of(), "train").values()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_who_is_who(loss: str) -> None:
    method = method_of(loss=loss)
    losses = fitted(method)
    assert losses[-1] < 0.5 * losses[0]
    assert list(method(batch_of(), "train")) == [loss]
    with torch.no_grad():
        made = method.eval().predict(batch_of())
    found = method.score({"embedding": made["embedding"].numpy(), "label": batch_of()["label"].numpy()})
    assert 0 < found.pop("threshold") < 1.5
    assert found == {"recall_at_1": 1.0, "f1": 1.0, "map_at_r": 1.0}
    assert made["embedding"].shape == (12, 16)
    torch.testing.assert_close(made["embedding"].norm(dim=1), torch.ones(12))
    expected = torch.full((12,), -1) if loss in arcface.PAIRED else batch_of()["label"]
    assert torch.equal(made["predicted"], expected)


@pytest.mark.parametrize(("loss", "margin"), [("arcface", 0.5), ("subcenter", 0.5), ("cosface", 0.35)])
def test_the_loss_is_cross_entropy_of_the_margin_s_logits(loss: str, margin: float) -> None:
    method, batch = method_of(loss=loss, scale=30.0).eval(), batch_of()
    with torch.no_grad():
        found = method(batch, "train")[loss]
        embedding_BE = method.network((batch["image"].float() - method.mean) / method.std)
    centres_SCE = method.centres.detach().unflatten(0, (3, -1)).transpose(0, 1)
    cosine_BC = torch.stack(
        [torch.nn.functional.cosine_similarity(embedding_BE[:, None], c, dim=2) for c in centres_SCE]
    )
    logits_BC, rows = cosine_BC.amax(0), torch.arange(12)
    own_B = logits_BC[rows, batch["label"]]
    logits_BC[rows, batch["label"]] = own_B - margin if loss == "cosface" else (own_B.acos() + margin).cos()
    expected = torch.nn.functional.cross_entropy(30 * logits_BC, batch["label"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(method.centres) == (9 if loss == "subcenter" else 3)


@pytest.mark.parametrize("miner", arcface.MINERS)
@pytest.mark.parametrize("loss", arcface.PAIRED)
def test_miners_choose_what_is_compared(loss: str, miner: str) -> None:
    method, batch = method_of(loss=loss, miner=miner), batch_of()
    loss_ = method(batch, "train")[loss]
    loss_.backward()
    assert loss_.isfinite()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_triplets_pair_by_pair() -> None:
    """Schroff et al. 2015, equation 2 with distances of unit vectors, the mean over those that are not 0 yet."""
    method, batch = method_of(loss="triplet", margin=0.3).eval(), batch_of()
    with torch.no_grad():
        found, x = method(batch, "train")["triplet"].item(), method.predict(batch)["embedding"].double()
    label, count = batch["label"], len(x)
    losses = [
        float((x[a] - x[p]).norm() - (x[a] - x[n]).norm() + 0.3)
        for a in range(count)
        for p in range(count)
        for n in range(count)
        if a != p and label[a] == label[p] and label[a] != label[n]
    ]
    assert found == pytest.approx(np.mean([each for each in losses if each > 0]), rel=1e-4)


@pytest.mark.parametrize("loss", arcface.PAIRED)
def test_a_batch_with_nothing_to_compare_loses_nothing(loss: str) -> None:
    method = method_of(loss=loss)
    batch = {name: values[:2] for name, values in batch_of().items()} | {"label": torch.tensor([0, 0])}
    batch["image"] = batch["image"][[0, 0]]
    found = method.train()(batch, "train")[loss]
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_pictures_that_are_all_alike_are_no_trouble() -> None:
    for loss in LOSSES:
        method = method_of(loss=loss)
        batch = batch_of() | {"image": torch.full((12, 3, 32, 32), 128, dtype=torch.uint8)}
        (found,) = method.train()(batch, "train").values()
        found.backward()
        assert found.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters()), loss


def test_grey_pictures_are_repeated() -> None:
    method, grey = method_of().eval(), batch_of(channels=1)
    with torch.no_grad():
        expected = method.predict({**grey, "image": grey["image"].repeat(1, 3, 1, 1)})
        assert torch.equal(method.predict(grey)["embedding"], expected["embedding"])


def test_class_scores_are_scaled_cosines() -> None:
    method, batch = method_of(scale=10.0).eval(), batch_of()
    with torch.no_grad():
        scores_BC = method.class_scores(batch["image"])
        expected = 10 * margins.cosines(method.predict(batch)["embedding"], method.centres)
    torch.testing.assert_close(scores_BC, expected, rtol=1e-4, atol=1e-5)
    assert method.attention_layer == "network.layers"
    with pytest.raises(SettingError, match="no class scores"):
        method_of(loss="triplet").class_scores(batch["image"])


def test_a_validation_split_without_two_of_a_class_has_no_score() -> None:
    found = method_of().score({"embedding": np.eye(3), "label": np.arange(3)})
    assert found.keys() == set(arcface.Config.scores)
    assert all(math.isnan(value) for value in found.values())


# -- starting from another step ------------------------------------------------------------------


def test_starts_from_a_classifier_of_other_classes() -> None:
    """The network is taken over; the head, which has other outputs, is not."""
    torch.manual_seed(3)
    given = classifier.Config(network="resnet-small").build(FACTS).state_dict()
    method = method_of()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.start(given)
    for name, value in method.state_dict().items():
        own = name in ("centres", "network.fc.weight", "network.fc.bias")
        assert torch.equal(value, before[name] if own else given[name]), name


def test_starts_from_itself_with_everything() -> None:
    given, method = method_of(seed=1).state_dict(), method_of(loss="arcface", margin_rad=0.2)
    method.start(given)
    assert all(torch.equal(value, given[name]) for name, value in method.state_dict().items())


def test_does_not_start_from_another_network() -> None:
    given = classifier.Config(network="alexnet-small").build(FACTS).state_dict()
    with pytest.raises(DataError, match=r"no weights for \d+ of \d+ entries of resnet-small, such as network.stem"):
        method_of().start(given)


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "sphereface"}, "'sphereface'; expected one of arcface, subcenter, cosface, contrastive, triplet"),
        ({"miner": "easy"}, "'easy'; expected one of all, semihard, hard"),
        ({"margin_rad": 28.6}, r"margin_rad is 28.6; expected radians, 0 to 1.57 \(0.5 is 28.6"),
        ({"scale": 0.0}, "scale is 0.0; expected above 0"),
        ({"dimensions": 0}, "dimensions is 0; expected at least 1"),
        ({"per_class": -1}, "per_class is -1; expected at least 0"),
        ({"margin": 3.0}, "margin is 3.0; expected None, or 0 to 2"),
        ({"centres": 0}, "centres is 0; expected at least 1"),
        ({"loss": "triplet", "per_class": 1}, "per_class is 1; the loss 'triplet' compares pictures of the same class"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        config_of(**settings)


def test_data_that_cannot_be_learnt_is_refused_before_the_start() -> None:
    one = Facts(classes=("ada",), height=32, width=32, channels=3, samples=2)
    with pytest.raises(DataError, match=r"has 1 class to train with \(ada\).* at least 2"):
        config_of().check(one)
    with pytest.raises(SettingError, match="no network 'resnet35'"):
        config_of(network="resnet35").check(FACTS)
    config_of().check(FACTS)


# -- in the loop ---------------------------------------------------------------------------------

SIZE = Pictures(height=32, width=32, channels=3)


def test_balanced_batches_in_training(drawings: Path, tmp_path: Path) -> None:
    """Every rank's batches hold whole classes, in the order that before_epoch gives."""
    step = step_of(drawings, config_of(loss="triplet", per_class=3), pictures=SIZE, batch_size=6, select="f1")
    given = task(step, tmp_path)
    here = Here()
    train(given, here)
    assert all(math.isfinite(row["train/triplet"]) for row in here.reported)

    class Work:
        seed, world, batch_size = 0, 1, 6
        labels = torch.arange(24) % 3

        def __init__(self, epoch: int) -> None:
            self.epoch = epoch

    orders = [step.method.build(given.facts).before_epoch(Work(epoch))["order"] for epoch in (0, 1)]
    assert not torch.equal(*orders)
    for batch in sampler.order(24, 6, rows=orders[0].numpy()):
        assert sorted(Counter(Work.labels[batch].tolist()).values()) == [3, 3]


def test_a_class_with_one_picture(tmp_path: Path) -> None:
    """It is trained with, balanced or not, and nothing is looked for by it."""
    from PIL import Image

    rand = np.random.default_rng(0)
    for name, split, count in (("ada", "train", 6), ("ben", "train", 1), ("ada", "validation", 3)):
        folder = tmp_path / "data" / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rand.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    for per_class in (0, 2):
        step = step_of(tmp_path / "data", config_of(per_class=per_class), pictures=SIZE, batch_size=4, select="f1")
        given = task(step, tmp_path / str(per_class))
        here = Here()
        train(given, here)
        assert weights(given)
        assert here.reported[-1]["validation/recall_at_1"] == 1.0
