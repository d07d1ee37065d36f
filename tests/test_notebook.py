"""jobs/notebook.ipynb runs from its first cell to its last, and shows what its text says."""

import json
from pathlib import Path

import pytest
from notebooks import execute

import mvray

NOTEBOOK = Path(__file__).parents[1] / "jobs" / "notebook.ipynb"
pytestmark = pytest.mark.slow


def test_every_cell_runs(sample_comics: Path, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "comics").symlink_to(sample_comics)
    names = execute(json.loads(NOTEBOOK.read_text()), tmp_path)
    result: mvray.Result = names["result"]
    assert result.table.loc["masked"]["seed 0"].between(0, 100).all()
    assert [step.name for step in result.steps if not step.finished] == []
    assert not names["network"].training
    assert [step.name for step in names["again"].steps if step.path != result[step.name].path] == [
        "masked",
        "test-masked",
        "score-masked",
    ]


def test_it_is_kept_executed() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells)
