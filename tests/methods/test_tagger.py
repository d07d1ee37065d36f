"""The tagger: what each loss makes of a batch, its maps and tags, and that it learns places from pictures' labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import Here, task

from mvray.data.readers import VOC2012
from mvray.errors import SettingError
from mvray.experiment import Data, Facts, Optim, Pictures, Scale, Train
from mvray.methods import tagger
from mvray.storage import Storage
from mvray.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("background", "red", "blue")
FACTS = Facts(NAMES, height=32, width=32, channels=3, samples=8)
SMALL = tagger.Config(network="vgg-small", decoder="fcn8")


def built(config: tagger.Config) -> tagger.Tagger:
    torch.manual_seed(0)
    method = config.build(FACTS)
    assert isinstance(method, tagger.Tagger)
    for layer in method.decoder.scores:
        torch.nn.init.normal_(layer.weight, std=0.1)
    return method


def batch_of() -> dict[str, torch.Tensor]:
    rand = torch.Generator().manual_seed(0)
    cues = torch.randint(0, 3, (3, 32, 32), generator=rand, dtype=torch.uint8)
    cues[:, :20] = 255
    return {
        "image": torch.randint(0, 256, (3, 3, 32, 32), generator=rand, dtype=torch.uint8),
        "labels": torch.tensor([[0.0, 1, 0], [0, 1, 1], [0, 0, 1]]),
        "label_map": cues,
    }


@pytest.mark.parametrize("loss", tagger.LOSSES)
def test_each_loss_trains_every_parameter(loss: str) -> None:
    method, batch = built(replace(SMALL, loss=loss)), batch_of()
    assert set(method.config.needs) == ({"labels", "label_map"} if loss == "sec" else {"labels"})
    losses = method(batch, "train")
    assert set(losses) == ({"seed", "expand", "constrain"} if loss == "sec" else {loss})
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in method.parameters())
    method.eval()
    with torch.no_grad():
        maps_BKHW = method.class_maps(batch["image"])
        tags_BK = method.predict(batch)["tags"]
    torch.testing.assert_close(maps_BKHW.sum(1), torch.ones(3, 32, 32))
    assert bool(((tags_BK >= 0) & (tags_BK <= 1)).all())
    assert bool((tags_BK[:, 0] == 1).all())


def test_a_frozen_encoder_keeps_its_weights() -> None:
    method = built(replace(SMALL, loss="max", frozen=True)).train()
    before = {name: value.clone() for name, value in method.encoder.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    method(batch_of(), "train")["max"].backward()
    optimiser.step()
    for name, value in method.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_maps_of_tags_are_shares_of_the_highest_score() -> None:
    """CAM's, of the classes that are in the picture."""
    method, images = built(replace(SMALL, loss="mean", decoder="fcn32")).eval(), batch_of()["image"]
    with torch.no_grad():
        method.decoder.scores[0].bias.copy_(torch.tensor([0.0, 2.0, -9.0]))
        scores_BKhw = method.score_maps(images)[0]
        maps_BKHW = method.class_maps(images)
    assert bool((scores_BKhw.mean((2, 3)) > 0)[:, 1].all())
    assert not (scores_BKhw.mean((2, 3)) > 0)[:, 2].any()
    large = torch.nn.functional.interpolate(scores_BKhw, (32, 32), mode="bilinear").relu()
    share_BHW = large[:, 1] / large[:, 1].amax((1, 2), keepdim=True)
    expected = torch.stack([torch.full_like(share_BHW, 0.3), share_BHW, torch.zeros_like(share_BHW)], 1)
    torch.testing.assert_close(maps_BKHW, (expected / 0.12).softmax(1))


def test_mean_average_precision_leaves_out_what_is_nowhere() -> None:
    truth = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]], np.float32)
    tags = np.array([[1, 0.9, 0.5], [1, 0.8, 0.1], [1, 0.7, 0.9], [1, 0.1, 0.3]], np.float32)
    score = built(SMALL).score({"label": truth, "tags": tags})
    assert score["mean_ap"] == pytest.approx((1 + 2 / 3) / 2)  # first and third of the ranking are right
    assert np.isnan(built(SMALL).score({"label": truth * 0, "tags": tags})["mean_ap"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "no"}, "method.loss is 'no'; expected one of mil, ilp, max, mean"),
        ({"decoder": "no"}, "method.decoder is 'no'"),
        ({"stride": 4}, "method.stride is 4"),
        ({"background": 1.0}, "method.background is 1.0"),
        ({"softness": 0.0}, "method.softness is 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        tagger.Config(**settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise with a square of one colour or two; VOC's layout without any class map."""
    place, rng = tmp_path_factory.mktemp("voc"), np.random.default_rng(0)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation", "SegmentationClass"):
        (place / folder).mkdir(parents=True)
    for i in range(20):
        pixels = rng.integers(80, 120, (32, 32, 3)).astype(np.uint8)
        chosen = [(1,), (2,), (1, 2)][i % 3]
        for class_ in chosen:
            top = int(rng.integers(0, 20))
            left = int(rng.integers(0, 4)) + 16 * (class_ - 1)
            pixels[top : top + 11, left : left + 11] = ((230, 30, 30), (30, 30, 230))[class_ - 1]
        Image.fromarray(pixels).save(place / f"JPEGImages/{i:02d}.jpg", quality=95)
        objects = "".join(f"<object><name>{NAMES[class_]}</name></object>" for class_ in chosen)
        (place / f"Annotations/{i:02d}.xml").write_text(f"<annotation>{objects}</annotation>")
    (place / "classes.txt").write_text("\n".join(NAMES) + "\n")
    for name, rows in (("train", range(16)), ("val", range(16, 20))):
        (place / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{i:02d}\n" for i in rows))
    return place


def step_of(voc: Path, config: tagger.Config, epochs: int) -> Train:
    data = Data(VOC2012(root=str(voc), validation=0.25), Pictures(32, 32, 3, flip=True, fit="pad"))
    optim = Optim(name="adam", lr=0.003, batch_size=6, epochs=epochs)
    return Train("tags", config, data, optim, select="mean_ap", scale=Scale(loader_workers=0))


def test_it_learns_tags_without_any_class_map(voc: Path, tmp_path: Path) -> None:
    given = task(step_of(voc, replace(SMALL, loss="max"), 25), tmp_path)
    train(given, Here())
    assert max(row["validation/mean_ap"] for row in json.loads(Storage(given.folder).read("history.json"))) > 0.9


@pytest.mark.slow
def test_two_ranks_equal_one(voc: Path, tmp_path: Path, two_ranks: Callable[..., list[str]]) -> None:
    step = step_of(voc, replace(SMALL, loss="ccnn", norm="synchronised"), 2)
    one, two = task(step, tmp_path / "one"), task(replace(step, scale=replace(step.scale, workers=2)), tmp_path / "two")
    train(one, Here())
    assert two_ranks(two) == ["done", "done"]
    first, second = (json.loads(Storage(given.folder).read("history.json")) for given in (one, two))
    for name in ("train/ccnn", "validation/mean_ap"):
        assert second[-1][name] == pytest.approx(first[-1][name], rel=1e-3, abs=5e-3), name
