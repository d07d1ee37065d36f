"""What steps hold of a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mvray.data.readers.folder import Folder
from mvray.errors import SettingError
from mvray.experiment.steps import Data, Generate, Measure, Scale, Train
from mvray.generators import gradcam, instance_masks
from mvray.generators.segmenters import detectron2, files
from mvray.methods import classifier

SCALE = Scale(workers=4, cpus_per_worker=2, gpus_per_actor=0.25)
TRAIN = Train("train", classifier.Config(), Data(Folder()), scale=SCALE)
LOOK = Generate("look", gradcam.Config(of=TRAIN), Data(Folder()), SCALE)


def test_training_takes_whole_gpus_and_actors_may_share_them() -> None:
    assert TRAIN.room(gpus=8) == (8, 4)
    assert LOOK.room(gpus=8) == (8, 1)
    assert replace(LOOK, scale=replace(SCALE, gpus_per_actor=0)).room(gpus=8) == (8, 0)
    assert LOOK.room(gpus=0) == TRAIN.room(gpus=0) == (8, 0)
    assert LOOK.room(gpus=8, workers=2) == (4, 0.5)
    assert LOOK.room(gpus=8, workers=0) == (0, 0)
    assert Measure("score", Data(Folder()), ()).room(gpus=8) == (0, 0)


def test_masks_from_files_ask_for_no_gpu() -> None:
    found = instance_masks.Config(files.Config())
    assert replace(LOOK, generator=found).room(gpus=8) == (8, 0)
    assert replace(LOOK, generator=replace(found, segmenter=detectron2.Config())).room(gpus=8) == (8, 1)


def test_a_negative_share_is_refused() -> None:
    with pytest.raises(SettingError, match=r"scale.gpus_per_actor is -1; expected 0 or more"):
        Scale(gpus_per_actor=-1)
