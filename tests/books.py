"""Small books of faces out of real drawings, and finished steps that look at them, for tests of group and find."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from mvray import Job
from mvray.data.readers.folder import Folder
from mvray.data.synthetic.drawings import artists, drawing
from mvray.data.tables import write_table
from mvray.experiment.contracts import Batch, Facts, MethodConfig
from mvray.experiment.inputs import Clips, Pictures
from mvray.experiment.steps import LAST, Data, Train
from mvray.methods import classifier
from mvray.nn import networks
from mvray.nn.method import Method
from mvray.pipeline import plan
from mvray.pipeline.cost import Cost
from mvray.pipeline.manifest import manifest_of
from mvray.storage.storage import Storage
from mvray.training.checkpoint import weights_to_bytes

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 64
CAST = ("pizza", "whale", "evergreen-tree", "alien-monster", "bicycle", "anchor")
"""Subjects that the first artist drew; they differ in colour and shape."""


@dataclass(frozen=True)
class Embedded(MethodConfig):
    """A network whose predictions are embeddings, as metric learning has them; it is not trained here."""

    def build(self, facts: Facts) -> Method:
        return EmbeddedMethod()


class EmbeddedMethod(Method):
    def __init__(self) -> None:
        super().__init__()
        self.network = networks.network("alexnet-small", 16)

    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        raise AssertionError("not trained here")

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        three_BCHW = batch["image"].expand(-1, 3, -1, -1) / 255 - 0.5
        return {"embedding": torch.nn.functional.normalize(self.network(three_BCHW))}

    def score(self, columns: Mapping[str, Any]) -> dict[str, float]:
        return {}


def faces(folder: Path, subject: str, count: int, seed: int = 0) -> list[Path]:
    """Pictures of one subject, turned and moved a little, on paper of a light colour."""
    draw = random.Random(f"{subject}{seed}")
    source = drawing(artists()[0], subject).image
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        paper = Image.new("RGBA", (SIDE, SIDE), (*(draw.randrange(225, 256) for _ in range(3)), 255))
        side = draw.randrange(52, 64)
        turned = source.rotate(draw.uniform(-8, 8)).resize((side, side))
        paper.alpha_composite(turned, (draw.randrange(SIDE - side + 1), draw.randrange(SIDE - side + 1)))
        made.append(folder / f"face_{number:03d}.png")
        paper.convert("RGB").save(made[-1])
    return made


def book(folder: Path, subjects: Sequence[str] = CAST[:4], count: int = 12) -> Path:
    """A folder with one folder per subject."""
    for subject in subjects:
        faces(folder / subject, subject, count)
    return folder


def finished(
    place: Path,
    data: Path,
    method: MethodConfig = classifier.Config(network="alexnet-small"),
    metrics: Mapping[str, float] | None = None,
    pictures: Pictures | Clips = Pictures(SIDE, SIDE),
) -> Path:
    """The folder of a finished Train step, with the weights that its training would begin with."""
    step = Train("small", method, Data(Folder(root=str(data)), pictures), select=LAST)
    planned = plan.make(Job("books", (step,)), Storage(str(place))).of(step, 0)
    torch.manual_seed(0)
    planned.folder.write("weights.safetensors", weights_to_bytes(method.build(planned.facts).state_dict()))
    write_table(planned.folder, "index.parquet", planned.rows())
    planned.folder.write("metrics.json", json.dumps(dict(metrics or {})).encode())
    manifest = manifest_of(planned, 1.0, None, Cost(1.0))
    planned.folder.write("step.json", json.dumps(manifest).encode())
    return Path(planned.folder.uri)
