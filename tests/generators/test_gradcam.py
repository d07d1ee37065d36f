"""The Grad-CAM generator: the columns that it writes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mvray.errors import DataError, SettingError
from mvray.experiment.contracts import Facts
from mvray.experiment.steps import Data, Train
from mvray.generators import gradcam
from mvray.methods import classifier
from mvray.nn import cam
from mvray.nn.method import Method

FACTS = Facts(classes=("ada", "ben", "cleo", "dan"), height=73, width=52, channels=1, samples=6)
CONFIG = classifier.Config(network="alexnet-small")


def train() -> Train:
    return Train(name="plain", method=CONFIG, data=Data(source=None))


@pytest.fixture(name="method", scope="module")
def _method() -> Method:
    torch.manual_seed(0)
    return CONFIG.build(FACTS).eval()


@pytest.fixture(name="batch")
def _batch() -> dict[str, torch.Tensor]:
    rand = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, 1, FACTS.height, FACTS.width), dtype=torch.uint8, generator=rand)
    return {"image": images, "label": torch.tensor([0, 1, 2, 3, 0, 1])}


def test_columns(method: Method, batch: dict[str, torch.Tensor]) -> None:
    table = gradcam.Config(of=train()).build(method, None)(batch)
    maps_BHW, scores_BK = cam.grad_cam(method.class_scores, method, "network.features.16", batch["image"])
    height, width = maps_BHW.shape[1:]
    assert (height, width) == (8, 5)
    assert table.schema.field("map").metadata == {b"shape": b"8,5"}
    types = {"map": pa.list_(pa.float16(), 40), "peak": pa.float32(), "predicted": pa.int32()}
    assert dict(zip(table.column_names, table.schema.types, strict=True)) == {
        **types,
        "scores": pa.list_(pa.float16(), 4),
    }
    stored = np.array(table["map"].to_pylist(), np.float16).reshape(6, 8, 5)
    assert np.array_equal(stored, cam.normalise(maps_BHW).numpy().astype(np.float16))
    assert np.array_equal(table["peak"].to_numpy(), maps_BHW.amax((1, 2)).numpy())
    assert table["predicted"].to_pylist() == scores_BK.argmax(1).tolist()
    scores = np.array(table["scores"].to_pylist())
    np.testing.assert_allclose(scores, scores_BK.softmax(1).numpy(), rtol=1e-3, atol=1e-6)


def test_labels_or_predictions_are_explained(method: Method, batch: dict[str, torch.Tensor]) -> None:
    predicted = gradcam.Config(of=train()).build(method, None)(batch)
    labelled = gradcam.Config(of=train(), target="label").build(method, None)
    assert labelled({**batch, "label": torch.tensor(predicted["predicted"].to_pylist())}).equals(predicted)
    other = labelled({**batch, "label": (torch.tensor(predicted["predicted"].to_pylist()) + 1) % 4})
    assert other["scores"].equals(predicted["scores"])
    assert not other["map"].equals(predicted["map"])
    with pytest.raises(DataError, match="have no label; expected one for each"):
        labelled({**batch, "label": torch.full((6,), -1)})
    assert gradcam.Config(of=train()).build(method, None)({"image": batch["image"]}).equals(predicted)


def test_another_layer_has_maps_of_its_own_size(method: Method, batch: dict[str, torch.Tensor]) -> None:
    table = gradcam.Config(of=train(), layer="network.features.2").build(method, None)(batch)
    assert table.schema.field("map").metadata == {b"shape": b"37,26"}
    with pytest.raises(SettingError, match=r"no layer 'network.features.99'"):
        gradcam.Config(of=train(), layer="network.features.99").build(method, None)(batch)


def test_a_method_that_names_no_layer_is_seen_through_its_last_convolution(
    method: Method, batch: dict[str, torch.Tensor]
) -> None:
    method.attention_layer = ""
    assert gradcam.Config(of=train()).build(method, None)(batch).num_rows == 6


def test_survives_parquet(method: Method, batch: dict[str, torch.Tensor], tmp_path: Path) -> None:
    made = gradcam.Config(of=train()).build(method, None)
    table = made(batch)
    pq.write_table(pa.concat_tables([table, made(batch)]), tmp_path / "00000.parquet")
    read = pq.read_table(tmp_path / "00000.parquet")
    assert read.schema.equals(table.schema)
    assert read.schema.field("map").metadata == {b"shape": b"8,5"}
    assert read[:6].equals(table)


def test_a_map_takes_a_few_hundred_bytes(method: Method, batch: dict[str, torch.Tensor]) -> None:
    table = gradcam.Config(of=train()).build(method, None)(batch)
    assert table.nbytes / len(table) < 200


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(SettingError, match=r"generator.target is 'top'; expected label or predicted"):
        gradcam.Config(of=train(), target="top")
    with pytest.raises(SettingError, match=r"generator.batch_size is 0"):
        gradcam.Config(of=train(), batch_size=0)
