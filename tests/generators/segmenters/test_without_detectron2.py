"""Where Detectron2 is not installed, one message says so before anything is started."""

import sys

import pytest

from mvray.errors import SettingError
from mvray.generators.instance_masks import Config
from mvray.generators.segmenters import detectron2


def test_one_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)  # as where it is not installed
    with pytest.raises(SettingError, match=r"not installed.*--no-build-isolation.*detectron2.git.*infra/README.md"):
        Config(segmenter=detectron2.Config()).check()
