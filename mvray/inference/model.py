"""A trained step at work on anyone's files: what `mvray look`, `group` and `find` share."""

from __future__ import annotations

import copy
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from mvray.data import PADDING, Unreadable, View, cut_view, open_upright, pixels_of
from mvray.errors import DataError, SettingError
from mvray.experiment import PAD, Clips, Facts, Pictures, Step, Train, decoded, job_file
from mvray.generators import features
from mvray.metrics import retrieval
from mvray.nn import Method, layers
from mvray.pipeline import MANIFEST
from mvray.storage import Storage
from mvray.training import load_method

if TYPE_CHECKING:
    from mvray.generators import Features

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT, THUMBNAIL_QUALITY = 224, 112, 80
BATCH_SIZE = 32
_CORES = os.cpu_count() or 1
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def load_step(step_path: str) -> tuple[Method, Train, Facts]:
    """The trained method of the finished Train step in ``step_path``, in eval mode on the GPU where there is one, with
    the step and what it was trained for. Raises DataError where it is not the folder of one."""
    folder = Storage(step_path)
    step, facts = trained_step(folder, step_path)
    return load_method(step, facts, folder), step, facts


def trained_step(folder: Storage, step_path: str) -> tuple[Train, Facts]:
    """The Train step whose output ``folder`` is, and what it was trained for. Raises DataError where it is none."""
    if not folder.is_local:
        folder.check(write=False)  # tells at once what reading would wait for
    try:
        is_finished = folder.exists(MANIFEST)
    except PermissionError:
        raise DataError(f"{step_path} cannot be read (no permission).") from None
    if not is_finished:
        raise DataError(
            f"{step_path} is not the folder of a finished step (it has no {MANIFEST}). "
            "`mvray report JOB --json` lists the path of every step."
        )
    manifest = folder.read_json(MANIFEST, dict)
    step = _step_of(manifest)
    if not isinstance(step, Train):
        raise DataError(f"{step_path} is a {step.kind.capitalize()} step; expected a Train step.")
    samples = manifest["data"]["samples"]["train"]
    return step, Facts.of(tuple(manifest["data"]["classes"]), step.data.pictures, samples)


def _step_of(manifest: Mapping[str, Any]) -> Step:
    """The step that step.json describes, whose code may be one's own (job_file.restore)."""
    try:
        step: Step = decoded(manifest["step"])
    except SettingError:
        if not manifest.get("code"):
            raise
        job_file.restore(manifest["code"])
        step = decoded(manifest["step"])
    return step


def picture_files(paths: Sequence[Path], endings: set[str]) -> Iterator[Path]:
    """The files that are named, and those of the folders that are, by their ending. Raises DataError for no such."""
    for path in paths:
        try:
            is_folder, is_file = path.is_dir(), path.is_file()
        except OSError as error:  # in a folder that is closed to us, or too long a name
            raise DataError(f"{printable(path)} cannot be read ({error.strerror}).") from None
        if is_folder:
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in endings)
        elif is_file:
            yield path
        else:
            remote = path.parts[0] == "s3:" if path.parts else False
            raise DataError(
                f"{printable(path)}: there is no such file or folder."
                + " Pictures and videos are read from this machine; copy them first, as with `aws s3 cp`." * remote
            )


def least_size(pictures: Pictures, facts: Facts) -> tuple[int, int]:
    """Down to which height and width a picture may be decoded before it becomes the network's input."""
    # What is padded is not enlarged, so its own size must be seen.
    return (1 << 30, 1 << 30) if pictures.fit == PAD else (facts.height, facts.width)


def network_input(image: Image.Image, pictures: Pictures, facts: Facts) -> np.ndarray:
    """The picture as the network gets it when it is tested, C x H x W uint8: stretched, or padded."""
    if facts.channels == 1:
        image = image.convert("L")
    read_HWC = pixels_of(image)
    view = View.padded(pictures, (image.height, image.width), None) if pictures.fit == PAD else View()
    grey = read_HWC.shape[2] == 1
    array, padding = (read_HWC[..., 0], PADDING[1]) if grey else (read_HWC, PADDING)
    cut = cut_view(array, facts.height, facts.width, view, padding=padding)
    planes = cut[None] if grey else cut.transpose(2, 0, 1)
    return np.array(np.broadcast_to(planes, (facts.channels, facts.height, facts.width)))


def printable(path: Path | str) -> str:
    """A path as text that can be printed on one line, whatever bytes its name has: a line break, or what would
    steer a terminal, is written as Python does."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


# -- pictures as vectors ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG."""

    data: bytes
    width: int
    height: int


@dataclass(frozen=True)
class PictureVectors:
    """Pictures that could be read: their files, vectors (N x D float32 of length 1) and thumbnails; and those
    that could not, each with the reason."""

    files: tuple[Path, ...]
    vectors: np.ndarray
    thumbnails: tuple[Thumbnail, ...]
    left_out: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class _Batch:
    vectors: np.ndarray
    thumbnails: list[Thumbnail]
    bad: dict[Path, str]


class Model:
    """A finished Train step and the layer that its vectors are read from.

    ``layer`` is one of generators/features.py; "" is the first of embedding (metric learning), fc1 (the
    paper's best), feature and penultimate that the method has. Raises DataError where ``step_path`` is not
    the folder of a finished Train step, SettingError for one on clips or an unknown layer.
    """

    def __init__(self, step_path: str, layer: str = "") -> None:
        method, self.step, self.facts = load_step(step_path)
        if isinstance(self.step.data.pictures, Clips):
            raise SettingError(
                f"Step {self.step.name!r} is trained on clips; expected one that is trained on pictures."
            )
        self.layer = layer or _best_layer(method, self.facts)
        self._idle: SimpleQueue[Features] = SimpleQueue()
        for _ in range(_CORES):
            self._idle.put(_features(self.step, _copy_sharing_weights(method), self.layer))
        self.metrics: dict[str, float] = Storage(step_path).read_json("metrics.json", dict)

    def look(self, files: Sequence[Path], note: Callable[[int], None] = lambda done: None) -> PictureVectors:
        """The pictures' vectors and thumbnails; ``note`` is called with the number of pictures done.

        Each core decodes a batch, each picture once, and takes it through the network by itself: torch's
        own threads wait for one another where others decode, and the last bits would depend on their number.
        """
        batches = [files[at : at + BATCH_SIZE] for at in range(0, len(files), BATCH_SIZE)]
        batches_done: list[_Batch] = []
        with _single_threads(_CORES) as pool:
            for batch in pool.map(self._look_at_batch, batches):
                batches_done.append(batch)
                note(min(len(files), len(batches_done) * BATCH_SIZE))
        vectors = [batch.vectors for batch in batches_done if batch.thumbnails]
        bad = {path: reason for batch in batches_done for path, reason in batch.bad.items()}
        return PictureVectors(
            tuple(path for path in files if path not in bad),
            np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32),
            tuple(thumbnail for batch in batches_done for thumbnail in batch.thumbnails),
            tuple(bad.items()),
        )

    def _look_at_batch(self, files: Sequence[Path]) -> _Batch:
        images: list[np.ndarray] = []
        thumbnails: list[Thumbnail] = []
        bad: dict[Path, str] = {}
        pictures = self.step.data.pictures
        assert isinstance(pictures, Pictures), "refused at the start"
        least = least_size(pictures, self.facts)
        least = max(least[0], THUMBNAIL_HEIGHT), max(least[1], THUMBNAIL_HEIGHT)
        for path in files:
            try:
                image = open_upright(path.read_bytes(), *least, grey=False)
            except Unreadable as error:
                bad[path] = error.reason
            except OSError as error:
                bad[path] = error.strerror or str(error)
            else:
                images.append(network_input(image, pictures, self.facts))
                thumbnails.append(_thumbnail(image))
        return _Batch(self._vectors(np.stack(images)) if images else np.zeros((0, 0)), thumbnails, bad)

    def _vectors(self, images_BCHW: np.ndarray) -> np.ndarray:
        """B x D float32, each of length 1."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        images = torch.from_numpy(images_BCHW).to(device)
        batch = {"image": images, "label": torch.full((len(images),), -1, device=device)}
        features = self._idle.get()
        try:
            vectors_BD = features.read(batch)[self.layer].flatten(1).cpu().numpy()
        finally:
            self._idle.put(features)
        if not np.isfinite(vectors_BD).all():
            raise DataError(f"Layer {self.layer} of step {self.step.name!r} gives values that are not finite.")
        return retrieval.unit_length(vectors_BD)


def _best_layer(method: Method, facts: Facts) -> str:
    device = next(method.parameters()).device
    image = torch.zeros(1, facts.channels, facts.height, facts.width, dtype=torch.uint8, device=device)
    with torch.inference_mode():
        predicted = method.predict({"image": image, "label": torch.tensor([-1], device=device)})
    known = {"embedding", "feature"} & set(predicted) | set(layers.named_layers(method))
    for name in ("embedding", "fc1", "feature", layers.PENULTIMATE):
        if name in known:
            return name
    raise SettingError(
        f"{type(method).__name__} has no layer with a row of numbers for each picture; name one: --layer."
    )


def _features(step: Train, method: Method, layer: str) -> Features:
    generator = features.Config(of=step, layers=(layer,)).build(method, lambda path: Path(path).read_bytes())
    assert isinstance(generator, features.Features)
    return generator


def _copy_sharing_weights(method: Method) -> Method:
    """A method with the same weights and its own modules, so that threads can predict side by side."""
    shared = (*method.parameters(), *method.buffers())
    return copy.deepcopy(method, {id(tensor): tensor for tensor in shared})


@contextmanager
def _single_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in each of which torch uses one core."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, "look", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)  # what threads begin with that come later


def _thumbnail(image: Image.Image) -> Thumbnail:
    small = image.copy()
    small.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=THUMBNAIL_QUALITY)
    return Thumbnail(data.getvalue(), *small.size)
