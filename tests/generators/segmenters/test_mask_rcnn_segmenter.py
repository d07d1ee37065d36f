"""torchvision's Mask R-CNN: what it finds is what torchvision's own code finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lively import frame

from mvray.errors import DataError, SettingError
from mvray.experiment.contracts import Frame, Instances
from mvray.experiment.steps import Data, Train
from mvray.generators.segmenters import mask_rcnn as ours
from mvray.methods import classifier
from mvray.nn import mask_rcnn

pytestmark = pytest.mark.slow  # whole detectors

CLASSES = ("person", "ball")
SMALL = {"min_size": 96, "max_size": 160, "detections": 6}


@pytest.fixture(name="network", scope="module")
def _network() -> torch.nn.Module:
    """Random weights that find something: no score is too small, and masks are no mere noise around one half."""
    torch.manual_seed(0)
    settings = {"min_size": 96, "max_size": 160, "box_detections_per_img": 6, "box_score_thresh": 0.0}
    made = mask_rcnn.network("maskrcnn_resnet50_fpn", len(CLASSES), **settings).eval()
    with torch.no_grad():
        for name, layer in made.backbone.body.named_modules():
            if name.endswith("bn3"):
                layer.weight.fill_(0.2)
        made.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(50)
    return made


@pytest.fixture(name="weights", scope="module")
def _weights(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "mask_rcnn.pth"
    torch.save(network.state_dict(), path)
    return str(path)


def frames() -> list[Frame]:
    sizes = ((120, 160), (150, 100))
    return [Frame(f"{at}.avi", 0, frame(at, *size)) for at, size in enumerate(sizes)]


@pytest.mark.slow
def test_finds_what_torchvision_finds(network: torch.nn.Module, weights: str, one_thread: None) -> None:
    made = ours.Config(weights=weights, classes=CLASSES, least_score=0.0, **SMALL).build(None, Path.read_bytes)
    assert made.classes == CLASSES
    for given, found in zip(frames(), made(frames()), strict=True):
        with torch.no_grad():
            [theirs] = network([torch.tensor(given.pixels).permute(2, 0, 1) / 255])
        assert len(theirs["scores"]) == len(found.scores) == 6
        assert torch.equal(found.labels, theirs["labels"] - 1)
        assert set(found.labels.tolist()) <= {0, 1}
        torch.testing.assert_close(found.scores.cpu(), theirs["scores"], rtol=0, atol=1e-3)
        torch.testing.assert_close(found.boxes.cpu(), theirs["boxes"], rtol=0, atol=0.02)
        expected_NHW = theirs["masks"][:, 0] >= 0.5
        assert found.masks.shape == expected_NHW.shape == (6, *given.pixels.shape[:2])
        assert (found.masks.cpu() == expected_NHW).float().mean() > 0.999


def test_looks_through_a_trained_method(network: torch.nn.Module, weights: str) -> None:
    class Trained:
        """What the method of a Train step offers."""

        classes = CLASSES

        def segment(self, images: list[torch.Tensor]) -> list[Instances]:
            return mask_rcnn.segment(network, images)

    step = Train(name="segmenter", method=classifier.Config(), data=Data(source=None))  # type: ignore[arg-type]
    config = ours.Config(of=step)
    config.check()
    made = config.build(Trained(), Path.read_bytes)  # type: ignore[arg-type]
    assert made.classes == CLASSES
    assert [found.masks.shape[1:] for found in made(frames())] == [frame.pixels.shape[:2] for frame in frames()]
    with pytest.raises(SettingError, match=r"segmenter.of names a step that trained object, which finds no instances"):
        config.build(object(), Path.read_bytes)  # type: ignore[arg-type]


def test_weights_come_from_one_place(weights: str) -> None:
    step = Train(name="segmenter", method=classifier.Config(), data=Data(source=None))  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="has no weights; expected either of, a Train step"):
        ours.Config().check()
    with pytest.raises(SettingError, match=r"has both segmenter.of and segmenter.weights"):
        ours.Config(of=step, weights=weights).check()


def test_weights_that_do_not_fit_are_refused(weights: str) -> None:
    with pytest.raises(DataError, match=r"maskrcnn_resnet50_fpn with 90 classes: .* of another shape"):
        ours.Config(weights=weights).build(None, Path.read_bytes)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(SettingError, match=r"segmenter.network is 'yolo'; expected one of maskrcnn_resnet50_fpn,"):
        ours.Config(network="yolo")
    with pytest.raises(SettingError, match="expected 1 <= min_size <= max_size"):
        ours.Config(min_size=900, max_size=800)


def test_the_names_of_coco() -> None:
    names = mask_rcnn.coco_classes()
    assert names[:2] == ("person", "bicycle")
    assert len(names) == 90
    assert np.count_nonzero(np.array(names) == "N/A") == 10
