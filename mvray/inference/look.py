"""`mvray look`: where a trained step looks on anyone's pictures or videos, as overlays and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mvray.data import ClipView, Unreadable, open_upright
from mvray.data.readers import SUFFIXES
from mvray.data.video import Video
from mvray.errors import DataError, SettingError
from mvray.experiment import Clips, Facts, Generator, Pictures, Train
from mvray.generators import gradcam
from mvray.inference.model import ENDINGS, least_size, load_step, network_input, picture_files
from mvray.nn import Method
from mvray.reports import figures
from mvray.storage import Storage

SHEET_PICTURES = 24
SHEET_CLIPS, SHEET_FRAMES = 12, 8


def look(step_path: str, files: Sequence[Path], out: Path, layer: str = "") -> Path:
    """Write an overlay for each picture, or an animation for each video, and sheet.png to ``out``; returns the
    sheet's path.

    ``step_path`` is the folder of a finished Train step (a path or s3://...): one trained on pictures looks by
    Grad-CAM at ``layer``, one trained on clips by its own attention. Raises DataError where it is not one, or
    where no file can be read; single bad files are named and left out. Raises SettingError for a method for clips
    without attention.
    """
    method, step, facts = load_step(step_path)
    if isinstance(step.data.pictures, Clips):
        return _look_at_videos(step, facts, method, files, out)
    generator = gradcam.Config(of=step, layer=layer).build(method, Storage(step_path).read)
    rows: list[list[np.ndarray]] = []
    names: list[str] = []
    pictures = list(picture_files(files, ENDINGS))
    out.mkdir(parents=True, exist_ok=True)
    for path in pictures:
        try:
            image_CHW = _read(path, step.data.pictures, facts)
        except (Unreadable, OSError) as error:
            print(f"left out: {path}: {error}")
            continue
        map_HW, predicted, probability = _prediction(generator, image_CHW)
        shown = figures.rgb(image_CHW)
        over = figures.overlay(shown, map_HW)
        Image.fromarray(over).save(out / f"{len(names):04d}-{path.stem}.png")
        names.append(f"{path.name}\n{facts.classes[predicted]}\n{probability:.0%}")
        rows.append([shown, over])
    if not rows:
        raise DataError(f"None of {', '.join(map(str, files))} is a picture that can be read.")
    sheet = out / "sheet.png"
    sheet.write_bytes(
        figures.sheet(rows[:SHEET_PICTURES], ["picture", f"where {step.name} looks"], names[:SHEET_PICTURES], step.name)
    )
    return sheet


def _look_at_videos(step: Train, facts: Facts, method: Method, files: Sequence[Path], out: Path) -> Path:
    """The middle clip of each video, as it is made for tests."""
    clips, titles = step.data.pictures, ["clip", f"where {step.name} looks"]
    assert isinstance(clips, Clips)
    at = np.unique(np.linspace(0, clips.frames - 1, min(clips.frames, SHEET_FRAMES)).round().astype(int))
    rows: list[list[np.ndarray]] = []
    names: list[str] = []
    videos = list(picture_files(files, set(SUFFIXES)))
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for path in videos:
        try:
            with Video(path) as video:
                clip = ClipView.of(clips, video.count, video.height, video.width, None)
                frames_THWC = np.ascontiguousarray(clip.cut(video.frames(clip.numbers, *clip.scaled_size)))
        except (Unreadable, OSError) as error:
            print(f"left out: {path}: {error}")
            continue
        maps_Thw, predicted, probability = _own_attention(method, frames_THWC, step.name)
        over = figures.attention_overlays(frames_THWC, maps_Thw)
        name = f"{path.name}\n{facts.classes[predicted]}\n{probability:.0%}"
        moments = [[[frame, attended]] for frame, attended in zip(frames_THWC, over, strict=True)]
        (out / f"{count:04d}-{path.stem}.gif").write_bytes(figures.animation(moments, titles, [name], step.name))
        count += 1
        if count <= SHEET_CLIPS:
            rows += [[frames_THWC[t] for t in at], [over[t] for t in at]]
            names += [name, titles[1]]
    if not rows:
        raise DataError(f"None of {', '.join(map(str, files))} is a video that can be read.")
    sheet = out / "sheet.png"
    sheet.write_bytes(figures.sheet(rows, [f"frame {t}" for t in at], names, step.name))
    return sheet


def _read(path: Path, pictures: Pictures, facts: Facts) -> np.ndarray:
    """The picture as the network gets it, C x H x W uint8."""
    image = open_upright(path.read_bytes(), *least_size(pictures, facts), grey=facts.channels == 1)
    return network_input(image, pictures, facts)


def _own_attention(method: Method, frames_THWC: np.ndarray, name: str) -> tuple[np.ndarray, int, float]:
    """As `_looked`, the method's own map of each frame."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clip_BCTHW = torch.from_numpy(frames_THWC).permute(3, 0, 1, 2)[None].to(device)
    with torch.inference_mode():
        predicted_columns = method.predict({"clip": clip_BCTHW, "label": torch.tensor([-1], device=device)})
    if "attention" not in predicted_columns:
        raise SettingError(f"Step {name} was trained without attention; expected one that has it, such as ABN.")
    predicted = int(predicted_columns["predicted"][0])
    return predicted_columns["attention"][0].cpu().numpy(), predicted, float(predicted_columns["scores"][0, predicted])


def _prediction(generator: Generator, image_CHW: np.ndarray) -> tuple[np.ndarray, int, float]:
    """The attention map, the predicted class, and its probability."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = {"image": torch.from_numpy(image_CHW)[None].to(device), "label": torch.tensor([-1], device=device)}
    columns = generator(batch)
    shape = [int(side) for side in columns.schema.field("map").metadata[b"shape"].split(b",")]
    predicted = columns["predicted"][0].as_py()
    map_HW = np.array(columns["map"][0].as_py(), np.float32).reshape(shape)
    return map_HW, predicted, float(columns["scores"][0].as_py()[predicted])
