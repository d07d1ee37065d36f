"""The real Detectron2 code, where `make .venv/detectron2` put it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

CODE = Path(__file__).parents[3] / ".venv/detectron2"


@pytest.fixture(scope="module")
def detectron2() -> Iterator[None]:
    """Detectron2 can be imported while tests use this."""
    if not CODE.is_dir():
        pytest.skip("needs Detectron2's code: make .venv/detectron2")
    sys.path.insert(0, str(CODE))  # before what others bring: its ANTLR is an old one
    with warnings.catch_warnings():  # of its year: pkg_resources, torch.jit.script
        warnings.simplefilter("ignore")
        import detectron2.engine
        import detectron2.model_zoo  # noqa: F401
    yield
    sys.path.remove(str(CODE))
