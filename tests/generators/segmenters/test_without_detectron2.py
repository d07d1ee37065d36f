"""Where Detectron2 is not installed, one message says so before anything is started."""

import subprocess
import sys

import pytest

CHECK = """
from mvray.errors import SettingError
from mvray.generators.instance_masks import Config
from mvray.generators.segmenters import detectron2
try:
    Config(segmenter=detectron2.Config()).check()
except SettingError as error:
    print(error)
"""


def test_one_message_says_how_to_get_it() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True)
    if not done.stdout:
        pytest.skip("Detectron2 is installed here")
    [message] = done.stdout.splitlines()
    for said in ("not installed", "--no-build-isolation", "facebookresearch/detectron2.git", "infra/README.md"):
        assert said in message
