"""Saliency maps and class maps as columns: limits, thresholds, the CRF, and what training reads of them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from mvray.data.columns import Columns
from mvray.data.geometry import View
from mvray.data.readers import Folder
from mvray.data.tables import write_table
from mvray.errors import SettingError
from mvray.experiment import Data, Facts, Train
from mvray.generators import label_maps, saliency
from mvray.methods import tagger
from mvray.nn import CRF, Saliency, class_saliency, marginals
from mvray.storage import Storage

FACTS = Facts(("background", "a", "b", "c", "d"), height=32, width=32, channels=3, samples=8)
TAGS = Train("tags", tagger.Config(network="vgg-small", decoder="fcn32"), Data(Folder()), select="mean_ap")
SEEN = label_maps.Config(saliency="saliency", threshold=0.3, softness=0.1)


def no_file(path: str) -> bytes:
    raise FileNotFoundError(path)


def images(size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def maps_in(table: pa.Table, name: str = "label_map") -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in table[name].to_pylist()])


def salient() -> dict[str, torch.Tensor]:
    """Two pictures, two candidates each: the left half of the first, the upper half of the second."""
    maps_BMHW = torch.zeros(2, 2, 32, 32)
    maps_BMHW[:, 0, :, :16], maps_BMHW[:, 1, :16] = 0.9, 0.6
    return {
        "image": images(),
        "saliency": maps_BMHW,
        "saliency_classes": torch.tensor([[3, 1], [2, 4]], dtype=torch.int16),
        "saliency_tags": torch.tensor([[0.9, 0.2], [0.8, 0.7]]),
        "labels": torch.tensor([[0.0, 1, 0, 0, 0], [0, 0, 1, 0, 1]]),
    }


def test_a_place_is_of_the_most_salient_class_that_is_in_the_picture() -> None:
    maps_BHW = maps_in(SEEN.build(None, no_file)(salient()))
    assert set(np.unique(maps_BHW[0, :, :16])) == {3}  # class 1 is unlikely (0.2)
    assert set(np.unique(maps_BHW[0, :, 16:])) == {0}
    assert maps_BHW[1, 0, 0] == 2
    assert maps_BHW[1, 0, 31] == 4
    assert maps_BHW[1, 31, 31] == 0
    limited = maps_in(replace(SEEN, limited=True).build(None, no_file)(salient()))
    assert set(np.unique(limited[0, :16])) == {1}  # class 3 is none of the picture's labels
    assert set(np.unique(limited[0, 16:])) == {0}


def test_confidence_is_the_mean_and_what_is_unsure_is_left_out() -> None:
    table = SEEN.build(None, no_file)(salient())
    maps_KHW = torch.cat([torch.full((1, 32, 32), 0.3), salient()["saliency"][1]])
    best_HW = (maps_KHW / 0.1).softmax(0).amax(0)
    assert table["confidence"][1].as_py() == pytest.approx(float(best_HW.mean()), rel=1e-5)
    unsure_BHW = maps_in(replace(SEEN, least=0.94).build(None, no_file)(salient()))
    assert (unsure_BHW[1] == 255).tolist() == (best_HW < 0.94).tolist()
    assert (unsure_BHW == 255).any()


def test_the_crf_sees_the_picture() -> None:
    crf = CRF(5, 3.0, 2.0, 5.0, 8.0, 20.0)
    batch, soft = salient(), replace(SEEN, limited=True, softness=0.5)
    probabilities_BKHW = torch.zeros(2, 5, 32, 32)
    for b in range(2):
        probabilities_BKHW[b, 0] = 0.3
        for m in range(2):
            class_ = int(batch["saliency_classes"][b, m])
            probabilities_BKHW[b, class_] = batch["saliency"][b, m] if batch["labels"][b, class_] else -99.0
        for class_ in set(range(1, 5)) - set(batch["saliency_classes"][b].tolist()):
            probabilities_BKHW[b, class_] = -99.0
    expected = marginals(probabilities_BKHW / 0.5, batch["image"], crf).argmax(1)
    made = maps_in(replace(soft, crf=crf).build(None, no_file)(batch))
    assert (made == expected.numpy()).mean() > 0.999  # classes that cannot be there are left out of its sums
    assert (made != maps_in(soft.build(None, no_file)(batch))).any()


def test_label_maps_of_a_method_are_limited_to_the_pictures_labels() -> None:
    torch.manual_seed(0)
    method = tagger.Config(network="vgg-small", decoder="fcn8", loss="mil").build(FACTS).eval()
    for layer in method.decoder.scores:
        torch.nn.init.normal_(layer.weight, std=1.0)
    batch = salient()
    maps_BHW = maps_in(label_maps.Config(of=TAGS).build(method, no_file)(batch))
    with torch.no_grad():
        assert np.array_equal(maps_BHW, method.class_maps(batch["image"]).argmax(1).numpy())
    assert set(np.unique(maps_BHW)) - {0, 1}
    limited = maps_in(label_maps.Config(of=TAGS, limited=True).build(method, no_file)(batch))
    assert set(np.unique(limited[0])) <= {0, 1}
    assert set(np.unique(limited[1])) <= {0, 2, 4}


def test_saliency_maps_arrive_as_they_were_made(tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = TAGS.method.build(FACTS).eval()
    torch.nn.init.normal_(method.decoder.scores[0].weight, std=0.1)
    config = saliency.Config(of=TAGS, form=Saliency(candidates=3), cell=4)
    batch = {"image": images(64), "labels": salient()["labels"]}
    table = config.build(method, no_file)(batch).append_column("key", pa.array(["x", "y"]))
    expected = class_saliency(method.score_maps, method, method.saliency_layers, images(64), (16, 16), config.form)
    write_table(Storage(str(tmp_path)), "columns/00000.parquet", table)
    columns = Columns.open(str(tmp_path), cache=tmp_path / "cache")
    for position in range(2):
        sample = {}
        for column in columns.values():
            sample |= column.sample(position, 16, 16, View())
        np.testing.assert_allclose(sample["saliency"], expected.maps[position].numpy(), atol=0.5 / 255 + 1e-3)
        assert sample["saliency_classes"].tolist() == expected.candidates[position].tolist()
        mirrored = columns["saliency"].sample(position, 16, 16, View(mirrored=True))["saliency"]
        assert np.array_equal(mirrored, sample["saliency"][:, :, ::-1])
    known = replace(config, limited=True).build(method, no_file)(batch)
    assert known["saliency_classes"][0].as_py()[0] == 1


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(SettingError, match="exclude one another"):
        label_maps.Config(of=TAGS, saliency="saliency")
    with pytest.raises(SettingError, match="exclude one another"):
        label_maps.Config()
    for name, value in (("least", 2.0), ("threshold", -1.0), ("softness", 0.0), ("least_tag", 2.0)):
        with pytest.raises(SettingError, match=f"generator.{name}"):
            replace(SEEN, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"generator\.cell is 0"):
        saliency.Config(of=TAGS, cell=0)
