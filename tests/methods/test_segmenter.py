"""The segmenter: its loss by the formula, torchvision's weights, one rank and two, testing at several sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import segmentation
from toys import Here, task

from mvray.data.readers import Pairs
from mvray.errors import DataError, SettingError
from mvray.experiment import Data, Facts, Optim, Pictures, Scale, Train
from mvray.methods import segmenter, tagger
from mvray.nn import CRF, DECODERS, marginals
from mvray.storage import Storage
from mvray.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")
FACTS = Facts(("background", "cat", "dog"), height=32, width=32, channels=3, samples=8)
SMALL = segmenter.Config(network="vgg-small", decoder="fcn8", width=8)


def batch_of(count: int = 2, size: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 3, (count, size, size), generator=generator, dtype=torch.uint8)
    mask[:, :4] = 255
    return {
        "image": torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8),
        "mask": mask,
    }


def built(config: segmenter.Config) -> segmenter.Segmenter:
    torch.manual_seed(0)
    method = config.build(FACTS)
    assert isinstance(method, segmenter.Segmenter)
    for layer in method.decoder.scores if config.decoder.startswith("fcn") else ():
        torch.nn.init.normal_(layer.weight, std=0.1)
    return method


@pytest.mark.parametrize("weights", [(), (1.0, 2.0, 0.5)])
@pytest.mark.parametrize("hardest", [1.0, 0.3])
def test_the_loss_is_the_weighted_mean_of_what_counts(weights: tuple[float, ...], hardest: float) -> None:
    method, batch = built(replace(SMALL, class_weights=weights, hardest=hardest)).eval(), batch_of()
    loss = method(batch, "train")["cross_entropy"]
    with torch.no_grad():
        log_p = method.scores(batch["image"]).double().log_softmax(1)
    terms = []
    for b, y, x in np.ndindex(2, 32, 32):
        if (class_ := int(batch["mask"][b, y, x])) != 255:
            weight = weights[class_] if weights else 1.0
            terms.append((-float(log_p[b, class_, y, x]) * weight, weight))
    terms = sorted(terms, reverse=True)[: int(hardest * len(terms))]
    assert float(loss.detach()) == pytest.approx(
        sum(term for term, _ in terms) / sum(weight for _, weight in terms), rel=1e-5
    )


def test_pixels_that_do_not_count_have_no_gradient() -> None:
    method, batch = built(SMALL).eval(), batch_of(1)
    batch["mask"][:] = 255
    losses = method(batch, "train")
    losses["cross_entropy"].backward()
    assert float(losses["cross_entropy"].detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in method.parameters())


def test_without_a_truth_there_are_no_numbers_and_one_that_is_missing_is_said() -> None:
    batch = batch_of()
    for truth in ("", "mask", "nosuch"):
        method = built(replace(SMALL, truth=truth)).eval()
        evaluation = method.evaluation()
        with torch.no_grad():
            evaluation.update(batch, method.predict(batch))
        state = evaluation.joined([evaluation.state(), {}])
        if truth == "nosuch":
            with pytest.raises(DataError, match="have no 'nosuch' to compare with"):
                evaluation.compute(state)
        else:
            assert set(evaluation.compute(state)) == (set(method.config.scores) if truth else set())


def test_confidence_weighs_a_pictures_pixels() -> None:
    method, batch = built(replace(SMALL, confidence="sure")).eval(), {**batch_of(), "sure": torch.tensor([0.25, 1.0])}
    loss = method(batch, "train")["cross_entropy"]
    each = []
    for b in range(2):
        one = {name: values[b : b + 1] for name, values in batch.items()}
        each.append(float(method(one, "train")["cross_entropy"].detach()))
    assert float(loss.detach()) == pytest.approx((0.25 * each[0] + each[1]) / 1.25, rel=1e-5)


def test_the_crf_as_layers_begins_as_the_crf_and_is_trained_with_the_rest() -> None:
    crf = CRF(2, 3.0, 2.0, 4.0, 8.0, 20.0)
    plain, method, batch = built(SMALL).eval(), built(replace(SMALL, crf=crf)), batch_of()
    method.start(plain.state_dict())
    with torch.no_grad():
        expected = marginals(plain.scores(batch["image"]), batch["image"], crf)
        torch.testing.assert_close(method.eval().class_maps(batch["image"]), expected)
    method.train()(batch, "train")["cross_entropy"].backward()
    assert method.crf is not None
    for parameter in (method.crf.weights_2K, method.crf.costs_KK, method.decoder.scores[0].weight):
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_groups_have_the_papers_factors() -> None:
    method = built(replace(SMALL, head_lr=10.0, bias_lr=2.0))
    factors = {
        id(parameter): (group.lr, group.weight_decay)
        for group in method.groups("train")
        for parameter in group.parameters
    }
    expected = {(True, False): (1, 1), (True, True): (2, 0), (False, False): (10, 1), (False, True): (20, 0)}
    for name, parameter in method.named_parameters():
        assert factors[id(parameter)] == expected[name.startswith("encoder."), name.endswith("bias")]
    assert [(group.lr, group.weight_decay) for group in built(SMALL).groups("train")] == [(1, 1), (1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_torchvisions_weights_give_torchvisions_outputs(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = getattr(segmentation, kind)(weights=None, weights_backbone=None, num_classes=21, aux_loss=True).eval()
    torch.save(theirs.state_dict(), tmp_path / "whole.pth")
    decoder = "plain" if kind.startswith("fcn") else "aspp"
    facts = replace(FACTS, classes=tuple(f"class{i}" for i in range(21)))
    config = segmenter.Config(
        network="resnet50", stride=8, decoder=decoder, auxiliary=0.4, weights=str(tmp_path / "whole.pth")
    )
    ours, images = config.build(facts).eval(), batch_of()["image"]
    normalised = (images / 255 - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[:, None, None]
    with torch.no_grad():
        expected = theirs(normalised)
        torch.testing.assert_close(ours.scores(images), expected["out"], rtol=1e-4, atol=1e-5)
    other = config.build(FACTS)  # another head, the same backbone
    state = other.state_dict()
    assert torch.equal(state["encoder.network.layer4.2.conv3.weight"], theirs.backbone.layer4[2].conv3.weight)
    with pytest.raises(DataError, match="does not hold weights of a segmentation network on resnet101"):
        replace(config, network="resnet101").build(FACTS)


def test_testing_at_several_sizes_and_mirrored_is_the_mean() -> None:
    method, images = built(replace(SMALL, scales=(1.0, 0.5), flipped=True)).eval(), batch_of(size=64)["image"].float()
    with torch.no_grad():
        maps = []
        for size in (64, 32):
            for mirrored in (False, True):
                scaled = torch.nn.functional.interpolate(images, (size, size), mode="bilinear")
                scores = method.scores(scaled.flip(3) if mirrored else scaled).softmax(1)
                large = torch.nn.functional.interpolate(scores, (64, 64), mode="bilinear")
                maps.append(large.flip(3) if mirrored else large)
        torch.testing.assert_close(method.class_maps(images), torch.stack(maps).mean(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": "fcn2"}, "method.decoder is 'fcn2'; expected one of fcn32, fcn16, fcn8, fcn4"),
        ({"stride": 4}, "method.stride is 4; expected 8, 16 or 32"),
        ({"decoder": "unet", "stride": 8}, "method.stride is 8; expected 32 with method.decoder=unet"),
        ({"norm": "no"}, "method.norm is 'no'"),
        ({"scales": ()}, r"method.scales is \(\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        segmenter.Config(**settings)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for folder in ("images", "masks"):
        (place / folder).mkdir()
    for i in range(14):
        classes_HW = rng.integers(0, 3, (4, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        Image.fromarray((classes_HW * 90 + rng.integers(0, 60, (32, 32))).astype(np.uint8)).save(
            place / f"images/{i}.png"
        )
        Image.fromarray(classes_HW).save(place / f"masks/{i}.png")
    (place / "classes.txt").write_text("background\ncat\ndog\n")
    return place


def step_of(pairs: Path, config: segmenter.Config, **optim: object) -> Train:
    data = Data(Pairs(root=str(pairs)), Pictures(32, 32, 3, flip=True, fit="pad", size_range=(0.75, 1.5)))
    optim = {"lr": 0.05, "batch_size": 4, "epochs": 2, **optim}
    return Train("seg", config, data, Optim(**optim), select="mean_iou", scale=Scale(loader_workers=0))


@pytest.mark.slow
@pytest.mark.parametrize("decoder", list(DECODERS))
def test_two_ranks_equal_one(pairs: Path, tmp_path: Path, two_ranks: Callable[..., list[str]], decoder: str) -> None:
    """With synchronised norms, whatever the decoder; dropout is drawn by each rank, so it is off."""
    stride = 32 if decoder in ("unet", "segnet", "deconvnet") else 8
    config = replace(SMALL, decoder=decoder, stride=stride, norm="synchronised", dropout=0.0)
    step = step_of(pairs, config, epochs=1)
    one, two = task(step, tmp_path / "one"), task(replace(step, scale=replace(step.scale, workers=2)), tmp_path / "two")
    train(one, Here())
    assert two_ranks(two) == ["done", "done"]
    histories = [json.loads(Storage(given.folder).read("history.json")) for given in (one, two)]
    for first, second in zip(*histories, strict=True):
        for name in ("train/cross_entropy", "validation/mean_iou"):
            assert second[name] == pytest.approx(first[name], rel=1e-3, abs=5e-3), name


def test_it_learns(pairs: Path, tmp_path: Path) -> None:
    given = task(step_of(pairs, replace(SMALL, norm="trained"), name="adam", lr=0.003, epochs=25), tmp_path)
    train(given, Here())
    rows = json.loads(Storage(given.folder).read("history.json"))
    assert max(row["validation/mean_iou"] for row in rows) > 0.5 > rows[0]["validation/mean_iou"]


def test_it_starts_from_a_taggers_encoder_and_from_no_other() -> None:
    torch.manual_seed(1)
    tags = tagger.Config(network="vgg-small", decoder="fcn32", frozen=True).build(FACTS)
    method = built(SMALL)
    head = method.decoder.state_dict()["scores.0.weight"].clone()
    method.start(tags.state_dict())
    for name, value in tags.encoder.state_dict().items():
        assert torch.equal(method.encoder.state_dict()[name], value), name
    assert torch.equal(method.decoder.state_dict()["scores.0.weight"], head)
    other = built(SMALL)
    other.start(method.state_dict())
    assert torch.equal(other.decoder.state_dict()["scores.0.weight"], head)
    with pytest.raises(SettingError, match="weights to start from are of another network"):
        built(SMALL).start(segmenter.Config(network="resnet18", decoder="fcn8").build(FACTS).state_dict())


def test_batch_norm_over_whole_pictures_needs_two() -> None:
    assert segmenter.Config(decoder="psp").least_share == 2
    for other in ({"norm": "frozen"}, {"norm": "synchronised"}, {"decoder": "fcn8"}):
        assert segmenter.Config(**{"decoder": "psp", **other}).least_share == 1
