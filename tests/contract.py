"""Every Train step of every job in its tiny form, and batches for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mvray.api import load_job
from mvray.data.masks import MOST_INSTANCES
from mvray.experiment import CLASSES as CLASS_MAPS
from mvray.experiment.contracts import Batch, Facts
from mvray.experiment.inputs import Clips, Pictures
from mvray.experiment.serialisation import encoded
from mvray.experiment.steps import Data, Train
from mvray.nn.method import Method

SAMPLES, CLASSES = 8, ("ada", "ben", "cleo")
SIZES = ((48, 32), (96, 64), (224, 224))
"""Heights and widths in pixels: the first that the network can take. Clips are square, of a frame or two."""


def _train_steps() -> dict[str, Train]:
    """Train steps whose method differs, by "job-step"."""
    found: dict[str, Train] = {}
    methods: list[Any] = []
    for file in sorted((Path(__file__).parents[1] / "jobs").glob("*.py")):
        for step in load_job(file, True, None).walk():
            # FCN decoders begin with scores of 0, so that nothing before them learns in the first step: they are in
            # tests/methods/test_segmenter.py and test_tagger.py, which hold them to the same.
            alike = isinstance(step, Train) and str(getattr(step.method, "decoder", "")).startswith("fcn")
            if isinstance(step, Train) and not alike and encoded(step.method) not in methods:
                methods.append(encoded(step.method))
                found[f"{file.stem}-{step.name}"] = step
    return found


STEPS = _train_steps()


def sized(data: Data, height: int, width: int) -> Pictures | Clips:
    if isinstance(data.pictures, Pictures):
        return replace(data.pictures, height=height, width=width)
    frames = 2 if data.masks.union else 1  # telling instances apart takes long enough with one
    sides = {"height": width, "width": width, "short_side": (width, width), "test_side": width}
    return replace(data.pictures, frames=frames, every=2, **sides)


def facts_of(step: Train) -> Facts:
    return Facts.of(CLASSES, step.data.pictures, SAMPLES)


def built(step: Train, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    return step.method.build(facts_of(step))


def batch_of(step: Train, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random pictures, each class with a brightness of its own so that there is something to learn.

    Where the method reads instance masks, there is one instance: a block that is brighter still.
    """
    rand, pictures = torch.Generator().manual_seed(seed), step.data.pictures
    height, width, needs = pictures.height, pictures.width, {*step.method.needs, *step.method.predict_uses}
    label = torch.arange(SAMPLES) % len(CLASSES)
    noise = torch.randint(0, 60, (SAMPLES, pictures.channels, pictures.frames, height, width), generator=rand)
    noise += 60 * label[:, None, None, None, None]
    batch = {"label": label, "index": torch.arange(SAMPLES)}
    batch["draw"] = torch.randint(-(2**60), 2**60, (SAMPLES,), generator=rand)
    if "masks" in needs:
        batch["masks"] = torch.zeros(SAMPLES, pictures.frames, height, width, dtype=torch.uint8)
        for i, at in enumerate(torch.randint(0, width // 2, (SAMPLES,), generator=rand).tolist()):
            batch["masks"][i, :, at : at + height // 2, at : at + width // 2] = 1
        noise += 60 * batch["masks"][:, None]
        if not step.data.masks.union:
            batch["mask_labels"] = torch.full((SAMPLES, pictures.frames, MOST_INSTANCES), -1)
            batch["mask_labels"][..., 0] = 0
    targets = set(class_maps_of(step))
    batch |= {name: torch.rand(SAMPLES, height, width, generator=rand) for name in needs - {"masks"} - targets}
    for name in targets:  # the upper half is the background
        batch[name] = label[:, None, None].repeat(1, height, width).to(torch.uint8)
        batch[name][:, : height // 2] = 0
        noise[:, :, :, : height // 2] //= 4
    name, values = ("image", noise[:, :, 0]) if isinstance(pictures, Pictures) else ("clip", noise)
    return {name: values.to(torch.uint8), **batch}


def class_maps_of(step: Train) -> list[str]:
    """The class maps among the source's targets that the step reads."""
    return [name for name in step.targets if step.data.source.targets[name] == CLASS_MAPS]


def losses(method: Method, batch: Batch, seed: int = 0) -> dict[str, torch.Tensor]:
    """The losses of all phases, as "phase/name"."""
    torch.manual_seed(seed)  # for dropout
    return {f"{phase}/{name}": loss for phase in method.phases for name, loss in method(batch, phase).items()}


def predicted(method: Method, batch: Batch) -> dict[str, torch.Tensor]:
    method.eval()
    with torch.no_grad():
        return method.predict(batch)
