"""A method's predictions as columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mvray.data.readers.videos import Videos
from mvray.errors import SettingError
from mvray.experiment.contracts import Facts
from mvray.experiment.inputs import Clips
from mvray.experiment.steps import Data, Train
from mvray.generators import predictions
from mvray.methods import classifier, object_abn

pytestmark = pytest.mark.usefixtures("one_thread")
FACTS = Facts(("a", "b"), 64, 64, 3, 4, 2)
STEP = Train("abn", object_abn.Config(network="x3d-tiny"), Data(Videos(), Clips()), select="top1")


def test_every_prediction_is_a_column_of_its_kind() -> None:
    method = STEP.method.build(FACTS).eval()
    batch = {"clip": torch.randint(0, 256, (3, 3, 2, 64, 64), dtype=torch.uint8), "label": torch.zeros(3)}
    table = predictions.Config(of=STEP).build(method, None)(batch)
    with torch.no_grad():
        expected = method.predict(batch)
    assert set(table.column_names) == set(expected)
    assert table["predicted"].to_pylist() == expected["predicted"].tolist()
    assert table["attention_entropy_bits"].to_pylist() == pytest.approx(expected["attention_entropy_bits"].tolist())
    assert table.schema.field("attention").metadata[b"shape"] == b"2,4,4"
    stored = np.array(table["attention"].to_pylist()).reshape(3, 2, 4, 4)
    np.testing.assert_allclose(stored, expected["attention"].numpy(), atol=1e-3)
    assert str(table.schema.field("scores").type) == "fixed_size_list<item: halffloat>[2]"


def test_it_asks_for_the_columns_that_the_method_uses() -> None:
    assert predictions.Config(of=STEP).needs == ("masks",)
    plain = Train("plain", classifier.Config(), Data(Videos()))
    assert predictions.Config(of=plain).needs == ()
    with pytest.raises(SettingError, match=r"generator.batch_size is 0"):
        predictions.Config(of=STEP, batch_size=0)


def test_jobs_know_where_it_looks(tmp_path: Path) -> None:
    """`STEP.generator.of` is what the step looks through."""
    from mvray.experiment.steps import Generate

    step = Generate("look", predictions.Config(of=STEP), STEP.data)
    assert step.of is STEP
    assert step.inputs == (STEP,)


def test_what_looks_through_a_step_must_have_one() -> None:
    with pytest.raises(SettingError, match=r"generator\.of is missing; expected the Train step that predictions"):
        predictions.Config()
