"""Detectron2's segmenter against Detectron2's own DefaultPredictor, on its real code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lively import CONFIG, frame, make_lively

from mvray.errors import DataError, SettingError
from mvray.experiment.contracts import Frame
from mvray.generators.segmenters import detectron2 as ours

OPTIONS = ("INPUT.MIN_SIZE_TEST", "160", "INPUT.MAX_SIZE_TEST", "240", "TEST.DETECTIONS_PER_IMAGE", "20")
SIZES = ((120, 160), (240, 320), (150, 100), (120, 160), (90, 250), (240, 320))

# DefaultPredictor's own calls, in the version of 2022
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning", "ignore:.*torch.jit:FutureWarning"),
]


def settings(weights: str, *options: str) -> Any:
    """Detectron2's own settings, made with its own calls."""
    from detectron2 import model_zoo
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(CONFIG))
    cfg.merge_from_list([*OPTIONS, *options, "MODEL.WEIGHTS", weights])
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return cfg


@pytest.fixture(name="weights", scope="module")
def _weights(detectron2: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    from detectron2.engine import DefaultPredictor

    torch.manual_seed(0)
    predictor = DefaultPredictor(settings(""))
    make_lively(predictor, frame(0, 240, 320))
    path = tmp_path_factory.mktemp("weights") / "lively.pth"
    torch.save({"model": predictor.model.state_dict()}, path)
    return str(path)


@pytest.fixture(name="predictor", scope="module")
def _predictor(weights: str) -> Any:
    from detectron2.engine import DefaultPredictor

    return DefaultPredictor(settings(weights))


@pytest.fixture(name="segmenter", scope="module")
def _segmenter(weights: str) -> ours.Detectron2Segmenter:
    made = ours.Config(weights=weights, options=OPTIONS).build(None, Path.read_bytes)
    assert isinstance(made, ours.Detectron2Segmenter)
    return made


def frames() -> list[Frame]:
    return [Frame(f"{at}.avi", at, frame(at + 1, *size)) for at, size in enumerate(SIZES)]


@pytest.mark.parametrize("most", [None, 4], ids=["own choice", "four in a pass"])
def test_finds_what_the_default_predictor_finds(
    predictor: Any, segmenter: ours.Detectron2Segmenter, most: Any, one_thread: None
) -> None:
    segmenter._most = most
    torch.set_num_threads(2)
    found = segmenter(frames())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    for given, mine in zip(frames(), found, strict=True):
        theirs = predictor(given.pixels[:, :, ::-1])["instances"]
        assert len(theirs) == len(mine.scores) == 20
        assert mine.masks.shape == (20, *given.pixels.shape[:2])
        assert mine.masks.dtype == torch.bool
        assert torch.equal(mine.labels, theirs.pred_classes)
        torch.testing.assert_close(mine.scores, theirs.scores, rtol=0, atol=1e-3)
        torch.testing.assert_close(mine.boxes, theirs.pred_boxes.tensor, rtol=0, atol=0.02)
        both = (mine.masks & theirs.pred_masks).sum((1, 2))
        either = (mine.masks | theirs.pred_masks).sum((1, 2))
        assert (either > 0).all()
        assert (both / either).min() >= 0.99
        assert torch.equal(mine.scores, mine.scores.sort(descending=True).values)
        assert len(mine.labels.unique()) > 3


def test_frames_do_not_disturb_one_another(segmenter: ours.Detectron2Segmenter, one_thread: None) -> None:
    """What is found in a frame does not depend on which frames it came with."""
    segmenter._most = None
    given = frames()[:3]
    together = segmenter(given)
    [alone] = segmenter(given[2:])
    assert torch.equal(alone.masks, together[2].masks)
    assert torch.equal(alone.labels, together[2].labels)
    assert segmenter([]) == []


def test_classes_are_those_of_the_data_set(segmenter: ours.Detectron2Segmenter) -> None:
    assert segmenter.classes[:3] == ("person", "bicycle", "car")
    assert len(segmenter.classes) == 80


def test_classes_of_an_unknown_data_set_are_numbers(weights: str, tmp_path: Path) -> None:
    options = (*OPTIONS, "DATASETS.TEST", "()")
    made = ours.Config(weights=weights, options=options).build(None, Path.read_bytes)
    assert made.classes == tuple(str(number) for number in range(80))


def test_a_yaml_file_of_ones_own(weights: str, tmp_path: Path, one_thread: None) -> None:
    cfg = settings(weights)
    (tmp_path / "own.yaml").write_text(cfg.dump())
    made = ours.Config(config_file=str(tmp_path / "own.yaml")).build(None, Path.read_bytes)
    assert len(made(frames()[:1])[0].scores) == 20


def test_batch_norm_becomes_part_of_the_convolution(detectron2: None) -> None:
    from detectron2.layers import Conv2d, FrozenBatchNorm2d

    torch.manual_seed(0)
    made: list[torch.nn.Module] = []
    for norm, bias in ((FrozenBatchNorm2d(5), False), (torch.nn.BatchNorm2d(5), True), (None, True)):
        if norm is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.normal_()
            norm.bias.data.normal_()
        made.append(Conv2d(3, 5, 3, bias=bias, norm=norm, activation=torch.relu).eval())
    images = torch.randn(2, 3, 8, 9)
    with torch.no_grad():
        before = [layer(images) for layer in made]
        ours.fold_batch_norm(torch.nn.ModuleList(made))
        assert [layer.norm for layer in made] == [None] * 3
        for layer, expected in zip(made, before, strict=True):
            torch.testing.assert_close(layer(images), expected)


def test_weights_that_do_not_fit_are_refused(weights: str, tmp_path: Path) -> None:
    torch.save({"model": {"backbone.nothing": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"does not hold weights of this Detectron2 configuration: .* missing"):
        ours.Config(weights=str(tmp_path / "other.pth"), options=OPTIONS).build(None, Path.read_bytes)
    options = (*OPTIONS, "MODEL.ROI_HEADS.NUM_CLASSES", "3")
    with pytest.raises(DataError, match=r"does not hold weights .*cls_score"):
        ours.Config(weights=weights, options=options).build(None, Path.read_bytes)
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"cannot load weights from .*broken.pth"):
        ours.Config(weights=str(tmp_path / "broken.pth"), options=OPTIONS).build(None, Path.read_bytes)


def test_settings_that_detectron2_does_not_take_are_refused(detectron2: None, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x' \(did you mean"):
        ours.Config(config="COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x").check()
    ours.Config().check()
    with pytest.raises(SettingError, match=r"does not take the settings.*INPUT.NOTHING"):
        ours.Config(options=("INPUT.NOTHING", "1")).build(None, Path.read_bytes)
    with pytest.raises(SettingError, match="has no masks"):
        ours.Config(config="COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml").build(None, Path.read_bytes)
    with pytest.raises(SettingError, match="names and values by turns"):
        ours.Config(options=("INPUT.MIN_SIZE_TEST",))


def test_the_zoo_has_the_weights(detectron2: None) -> None:
    """Without weights of one's own they are those of the paper's configuration."""
    cfg = ours._configuration(ours.Config())
    assert cfg.MODEL.WEIGHTS.endswith("mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl")
    assert np.array_equal(cfg.MODEL.PIXEL_MEAN, [103.53, 116.28, 123.675])
