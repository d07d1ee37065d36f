"""jobs/notebook.ipynb runs from its first cell to its last, and shows what its text says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
NOTEBOOK = TESTS.parent / "jobs" / "notebook.ipynb"


def shown(notebook: Path) -> list[str]:
    """What each code cell shows, as text."""
    cells: list[dict[str, Any]] = json.loads(notebook.read_text())["cells"]
    outputs = [cell["outputs"][-1] for cell in cells if cell["cell_type"] == "code"]
    return ["".join(output["data"]["text/plain"]) for output in outputs]


@pytest.mark.slow
def test_every_cell_runs(sample_comics: Path, empty_store: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")  # MLflow takes seconds to make one
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "comics").symlink_to(sample_comics)
    copy = shutil.copy(NOTEBOOK, tmp_path / "notebook.ipynb")
    subprocess.run([sys.executable, TESTS / "notebooks.py", copy, tmp_path], check=True)
    steps, table, history, scores, again = shown(tmp_path / "notebook.ipynb")
    assert table.count("accuracy, %") == 2
    assert history.splitlines()[-1].split()[:2] == ["3", "3.0"]
    assert scores == "torch.Size([1, 3])"
    assert [name for name in eval(steps) if f"('{name}', False)" in again] == ["masked", "test-masked", "score-masked"]  # noqa: S307


def test_it_is_kept_executed() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(shown(NOTEBOOK))
