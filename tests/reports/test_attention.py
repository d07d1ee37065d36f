"""Attention over samples: which pictures there are of pictures and of clips, and of what is missing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mvray import Job
from mvray.data.readers.folder import Folder
from mvray.data.readers.videos import Videos
from mvray.data.tables import write_table
from mvray.experiment.exhibits import Sheet
from mvray.experiment.inputs import Clips, Pictures
from mvray.experiment.steps import Data, Generate, Optim, Train
from mvray.generators import gradcam, predictions
from mvray.methods import classifier, object_abn
from mvray.pipeline import plan
from mvray.pipeline.plan import MANIFEST, Plan
from mvray.reports import results
from mvray.storage.storage import Storage

pytestmark = pytest.mark.slow  # pictures, half a second each


def of_pictures(drawings: Path, place: Path) -> Plan:
    data = Data(Folder(root=str(drawings)), Pictures(24, 16, 1))
    plain = Train("plain", classifier.Config("alexnet-small"), data, Optim())
    cams = tuple(Generate(name, gradcam.Config(of=plain, target=name), data) for name in ("predicted", "label"))
    method = classifier.Config("alexnet-small", hide="attention", probability=1.0)
    masked = Train("masked", method, data.with_columns(cams[0]), Optim())
    sheet = Sheet("where it looks", data.test, (("plain", cams[0]), ("again", cams[1])), masked, samples=4)
    return plan.make(Job("pages", (*cams, masked), sheets=(sheet,)), Storage(str(place)))


def of_clips(videos: Path, place: Path) -> Plan:
    data = Data(Videos(root=str(videos)), Clips(32, 32, 4, 1, (36, 40), 36))
    trained = Train("abn", object_abn.Config(network="x3d-tiny"), data, Optim(), select="top1")
    made = Generate("attention", predictions.Config(of=trained), data.test)
    sheet = Sheet("where it looks", data.test, (("abn", made),), samples=3)
    return plan.make(Job("clips", (made,), sheets=(sheet,)), Storage(str(place)))


def finish(planned: plan.Planned, column: str, shape: tuple[int, ...]) -> None:
    rand, rows = np.random.default_rng(len(planned.name)), planned.rows()
    values = rand.random((len(rows), int(np.prod(shape)))).astype(np.float16)
    field = pa.field(column, pa.list_(pa.float16(), values.shape[1]), metadata={"shape": ",".join(map(str, shape))})
    columns = {
        "key": rows["key"].combine_chunks(),
        column: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1]),
        "predicted": pa.array(rand.integers(0, 3, len(rows)), pa.int32()),
    }
    fields = [pa.field("key", pa.string()), field, pa.field("predicted", pa.int32())]
    if column == "attention":
        columns["attention_entropy_bits"] = pa.array(3 * rand.random(len(rows)), pa.float32())
        fields.append(pa.field("attention_entropy_bits", pa.float32()))
    write_table(planned.folder, "columns/00000.parquet", pa.table(columns, schema=pa.schema(fields)))
    planned.folder.write(MANIFEST, b"{}")


def test_a_sheet_of_pictures(drawings: Path, tmp_path: Path) -> None:
    made = of_pictures(drawings, tmp_path)
    cams = [planned for planned in made.steps if planned.name in ("predicted", "label")]
    finish(cams[0], "map", (3, 2))
    assert results.pictures(made) == {}, "a step that it shows is not finished"
    finish(cams[1], "map", (3, 2))
    drawn = results.pictures(made)
    assert drawn.keys() == {"sheets/where-it-looks-seed0.png"}
    assert Image.open(io.BytesIO(drawn["sheets/where-it-looks-seed0.png"])).width > 1000
    assert results.pictures(made) == drawn


def test_strips_and_animations_of_clips(videos: Path, tmp_path: Path) -> None:
    made = of_clips(videos, tmp_path)
    (step,) = (planned for planned in made.steps if planned.name == "attention")
    assert results.pictures(made) == {}
    finish(step, "attention", (2, 2, 2))
    drawn = results.pictures(made)
    assert drawn.keys() == {
        "strips/where-it-looks-seed0.png",
        "animations/where-it-looks-seed0.gif",
        "histograms/attention-entropy-where-it-looks-seed0.png",
    }
    assert Image.open(io.BytesIO(drawn["animations/where-it-looks-seed0.gif"])).n_frames == 4
