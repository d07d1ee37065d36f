"""The features generator: the columns that it writes, of a trained step, of ImageNet's weights and of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mvray.errors import SettingError
from mvray.experiment.contracts import Batch, Facts, MethodConfig
from mvray.experiment.inputs import Clips
from mvray.experiment.steps import Data, Train
from mvray.generators import features
from mvray.methods import classifier
from mvray.nn import networks
from mvray.nn.method import Method

FACTS = Facts(classes=("ada", "ben", "cleo", "dan"), height=73, width=52, channels=1, samples=6)
CONFIG = classifier.Config(network="alexnet-small")

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Embedded(MethodConfig):
    """A network with an embedding beside its prediction, as the metric learners have it."""

    def build(self, facts: Facts) -> Method:
        return EmbeddedMethod(facts)


class EmbeddedMethod(Method):
    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.network = networks.network("alexnet-small", 8)

    def forward(self, batch: Batch, phase: str) -> dict[str, torch.Tensor]:
        raise AssertionError("not trained here")

    def predict(self, batch: Batch) -> dict[str, torch.Tensor]:
        outputs = self.network(batch["image"].expand(-1, 3, -1, -1) / 255)
        return {"embedding": torch.nn.functional.normalize(outputs), "predicted": outputs.argmax(1)}

    def score(self, columns: Mapping[str, Any]) -> dict[str, float]:
        return {}


def train(method: MethodConfig = CONFIG, data: Data | None = None) -> Train:
    return Train(name="plain", method=method, data=data or Data(source=None))


def built(method: MethodConfig = CONFIG) -> Method:
    torch.manual_seed(0)
    return method.build(FACTS).eval()


@pytest.fixture(name="batch")
def _batch() -> dict[str, torch.Tensor]:
    rand = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, 1, FACTS.height, FACTS.width), dtype=torch.uint8, generator=rand)
    return {"image": images, "label": torch.tensor([0, 1, 2, 3, 0, 1])}


def rows(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), np.float32)


def test_columns_of_a_trained_step(batch: dict[str, torch.Tensor]) -> None:
    method = built()
    wanted = ("conv1", "fc1", "network.features.16", "penultimate", "pixels")
    table = features.Config(of=train(), layers=wanted).build(method, None)(batch)
    assert table.column_names == ["conv1", "fc1", "network_features_16", "penultimate", "pixels"]
    lengths = {"conv1": 16 * 4, "fc1": 256, "network_features_16": 48 * 4, "penultimate": 256, "pixels": 32 * 32}
    for name, length in lengths.items():
        assert table.schema.field(name).type == pa.list_(pa.float16(), length)
    metadata = {name: table.schema.field(name).metadata for name in table.column_names}
    assert metadata == {
        "conv1": {b"shape": b"16,2,2"},
        "network_features_16": {b"shape": b"48,2,2"},
        "pixels": {b"shape": b"1,32,32"},
        "fc1": None,
        "penultimate": None,
    }
    with torch.inference_mode():  # what the method makes of its penultimate layer are its own scores
        scores = method.network.classifier[7](torch.from_numpy(rows(table, "penultimate")))
        expected = method.predict(batch)["scores"]
    torch.testing.assert_close(scores.softmax(1), expected, rtol=1e-2, atol=1e-3)


def test_a_second_batch_is_the_same_though_it_ends_early(batch: dict[str, torch.Tensor]) -> None:
    made = features.Config(of=train(), layers=("conv2",), pool=3).build(built(), None)
    assert made(batch).equals(made(batch))
    alone = made({name: values[2:3] for name, values in batch.items()})
    np.testing.assert_allclose(rows(alone, "conv2")[0], rows(made(batch), "conv2")[2], rtol=2e-3, atol=1e-3)


def test_what_a_method_predicts(batch: dict[str, torch.Tensor]) -> None:
    method = built(Embedded())
    made = features.Config(of=train(Embedded()), layers=("embedding", "fc2")).build(method, None)
    for table in (made(batch), made(batch)):
        embedding = rows(table, "embedding")
        assert embedding.shape == (6, 8)
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=2e-3)
        assert rows(table, "fc2").shape == (6, 256)
    with pytest.raises(SettingError, match="predicts no 'feature'; it has embedding, predicted"):
        features.Config(of=train(Embedded()), layers=("feature",)).build(method, None)(batch)


def test_an_unknown_layer_names_those_that_there_are() -> None:
    with pytest.raises(SettingError, match=r"no layer 'fc9'; expected one of conv1, conv2, conv3, fc1, fc2, penult"):
        features.Config(of=train(), layers=("fc1", "fc9")).build(built(), None)


def test_pixels_alone_need_no_network() -> None:
    """The mean over places, in 0..1, in colour where the pictures are."""
    image = torch.zeros(1, 3, 64, 20, dtype=torch.uint8)
    image[0, 0, :2], image[0, 1, 1] = 255, 51
    table = features.Config(layers=("pixels",)).build(None, None)({"image": image})
    assert table.schema.field("pixels").metadata == {b"shape": b"3,32,20"}
    pixels = rows(table, "pixels").reshape(3, 32, 20)
    np.testing.assert_allclose(pixels[:, 0, 7], [1, 0.1, 0], rtol=1e-3)
    assert not pixels[:, 1:].any()


def test_a_network_with_weights_from_a_file(batch: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Normalised as torchvision's weights expect, whatever number of classes the file has."""
    torch.manual_seed(3)
    network = networks.network("alexnet-small", 7).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    config = features.Config(layers=("fc2", "pixels"), network="alexnet-small", weights=str(tmp_path / "weights.pth"))
    config.check()
    table = config.build(None, None)(batch)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    given = (batch["image"].expand(-1, 3, -1, -1) / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        fc2 = network.classifier[:7](network.avgpool(network.features(given)))
    np.testing.assert_allclose(rows(table, "fc2"), fc2.numpy(), rtol=5e-3, atol=5e-3)
    assert rows(table, "pixels").shape == (6, 32 * 32)


def test_values_beyond_float16_become_its_greatest(batch: dict[str, torch.Tensor]) -> None:
    method = built()
    with torch.no_grad():
        method.network.classifier[2].weight.mul_(1e9)
    fc1 = rows(features.Config(of=train(), layers=("fc1",)).build(method, None)(batch), "fc1")
    assert np.isfinite(fc1).all()
    assert fc1.max() == 65504


def test_survives_parquet(batch: dict[str, torch.Tensor], tmp_path: Path) -> None:
    made = features.Config(of=train(), layers=("conv1", "fc1")).build(built(), None)
    pq.write_table(pa.concat_tables([made(batch), made(batch)]), tmp_path / "00000.parquet")
    read = pq.read_table(tmp_path / "00000.parquet")
    assert read.schema.field("conv1").metadata == {b"shape": b"16,2,2"}
    assert read[:6].equals(made(batch))


def test_a_layer_that_sees_parts_of_pictures_is_refused(batch: dict[str, torch.Tensor]) -> None:
    """As the box head of a detector does."""
    halves = torch.nn.Sequential(torch.nn.Linear(FACTS.width, 2)).eval()
    run = lambda given: {"predicted": halves(given["image"].float().flatten(0, 2))}  # noqa: E731
    made = features.Features(("penultimate",), 2, halves, run)
    with pytest.raises(SettingError, match=r"gives 438 rows for 6 pictures; expected one for each"):
        made(batch)


def test_clips_are_refused() -> None:
    config = features.Config(of=train(data=Data(source=None, pictures=Clips())), layers=("fc1",))
    with pytest.raises(SettingError, match="'plain' is trained on clips; features are those of pictures"):
        config.check()
    with pytest.raises(SettingError, match="these samples are clips"):
        features.Config(layers=("pixels",)).build(None, None)({"clip": torch.zeros(1, 3, 2, 8, 8)})


WRONG = {
    "no layer": ({"layers": ()}, r"layers is \(\); expected one or more"),
    "twice": ({"layers": ("a.b", "a_b")}, "expected one or more different names"),
    "negative": ({"pool": -1}, "generator.pool is -1"),
    "no batch": ({"batch_size": 0}, "generator.batch_size is 0"),
    "both": ({"network": "vgg16", "weights": "w.pth"}, r"both given; expected one"),
    "no weights": ({"of": None, "network": "vgg16"}, "expected both or none"),
    "nothing": ({"of": None}, "without a network; expected pixels alone"),
    "no step": ({"of": None, "network": "vgg16", "weights": "w.pth", "layers": ("embedding",)}, "give generator.of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_refused(name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(SettingError, match=message):
        replace(features.Config(of=train(), layers=("fc1",)), **changes)
