"""`mvray look`: where a trained step looks on anyone's pictures, as overlays and a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mvray import figures
from mvray.data.quarantine import Unreadable
from mvray.data.sources import picture, pixels
from mvray.data.view import View, seen
from mvray.errors import DataError
from mvray.job import Train
from mvray.manifest import MANIFEST
from mvray.method import Facts, Generator
from mvray.settings import decoded
from mvray.storage import Storage

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SHEET_PICTURES = 24


def look(step_path: str, pictures: Sequence[Path], out: Path, layer: str = "") -> Path:
    """Write an overlay for each picture and sheet.png to ``out``; returns the sheet's path.

    ``step_path`` is the folder of a finished Train step (a path or s3://...). Raises DataError where
    it is not one, or where no picture can be read; single bad pictures are named and left out.
    """
    from mvray.generate import load_method
    from mvray.generators import gradcam

    folder = Storage(step_path)
    step, facts = _finished(folder, step_path)
    generator = gradcam.Config(of=step, layer=layer).build(load_method(step, facts, folder), folder.read)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[list[np.ndarray]] = []
    names: list[str] = []
    for path in _found(pictures):
        try:
            given = _read(path, facts)
        except (Unreadable, OSError) as error:
            print(f"left out: {path}: {error}")
            continue
        map_HW, predicted, probability = _looked(generator, given)
        shown = np.ascontiguousarray(np.broadcast_to(given, (3, *given.shape[1:])).transpose(1, 2, 0))
        over = figures.overlay(shown, map_HW)
        Image.fromarray(over).save(out / f"{len(names):04d}-{path.stem}.png")
        names.append(f"{path.name}\n{facts.classes[predicted]}\n{probability:.0%}")
        rows.append([shown, over])
    if not rows:
        raise DataError(f"None of {', '.join(map(str, pictures))} is a picture that can be read.")
    sheet = out / "sheet.png"
    sheet.write_bytes(
        figures.sheet(rows[:SHEET_PICTURES], ["picture", f"where {step.name} looks"], names[:SHEET_PICTURES], step.name)
    )
    return sheet


def _finished(folder: Storage, step_path: str) -> tuple[Train, Facts]:
    if not folder.exists(MANIFEST):
        raise DataError(
            f"{step_path} is not the folder of a finished step (it has no {MANIFEST}). "
            "`mvray report JOB --json` lists the path of every step."
        )
    manifest = json.loads(folder.read(MANIFEST))
    step = decoded(manifest["step"])
    if not isinstance(step, Train):
        raise DataError(f"{step_path} is a {manifest['kind']} step; expected a Train step.")
    samples = manifest["data"]["samples"]["train"]
    return step, Facts.of(tuple(manifest["data"]["classes"]), step.data.pictures, samples)


def _found(given: Sequence[Path]) -> Iterator[Path]:
    for path in given:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS)
        elif path.is_file():
            yield path
        else:
            raise DataError(f"{path}: there is no such picture or folder.")


def _read(path: Path, facts: Facts) -> np.ndarray:
    """The picture as the network gets it, C x H x W uint8."""
    image = pixels(picture(path.read_bytes(), facts.height, facts.width, grey=facts.channels == 1))
    view = seen(image[..., 0] if image.shape[2] == 1 else image, facts.height, facts.width, View())
    planes = view[None] if view.ndim == 2 else view.transpose(2, 0, 1)
    return np.array(np.broadcast_to(planes, (facts.channels, facts.height, facts.width)))


def _looked(generator: Generator, image_CHW: np.ndarray) -> tuple[np.ndarray, int, float]:
    """The attention map, the predicted class, and its probability."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = {"image": torch.from_numpy(image_CHW)[None].to(device), "label": torch.tensor([-1], device=device)}
    made = generator(batch)
    shape = [int(side) for side in made.schema.field("map").metadata[b"shape"].split(b",")]
    predicted = made["predicted"][0].as_py()
    map_HW = np.array(made["map"][0].as_py(), np.float32).reshape(shape)
    return map_HW, predicted, float(made["scores"][0].as_py()[predicted])
