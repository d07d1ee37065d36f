"""Instance masks from a file: ground truth, or anyone's.

Two layouts are read: COCO's for pictures, YouTube-VIS' (Yang et al. 2019) for videos. Both are JSON with
categories and annotations; masks are polygons or run lengths, compressed or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np
import torch

from mvray.data import rle
from mvray.errors import DataError
from mvray.experiment import Frame, Instances, Read, Segmenter, SegmenterConfig
from mvray.nn import Method

LAYOUT = "COCO's layout (images, annotations, categories) or YouTube-VIS' (videos, annotations, categories)"
_NAMES_IN_MESSAGE = 3


@dataclass(frozen=True)
class Config(SegmenterConfig):
    """The masks in the JSON file ``path``, below the data's root.

    A sample is found by its key and the file's names, of which one must be the end of the other
    ("UCF-101/Walk/v_Walk_g01_c01.avi" and "Walk/v_Walk_g01_c01.avi" or "v_Walk_g01_c01"). Crowds
    (iscrowd) are left out: they are no instances. All scores are 1.
    """

    kind: ClassVar[str] = "files"
    path: str = "instances.json"

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def uses_gpu(self) -> bool:
        return False

    def build(self, method: Method | None, read: Read) -> Segmenter:
        return FilesSegmenter(self.path, read)


class FilesSegmenter(Segmenter):
    """Looks masks up. Raises DataError for a file in another layout and for a frame that is not in it."""

    def __init__(self, path: str, read: Read) -> None:
        self._path = path
        try:
            whole = json.loads(read(path))
        except FileNotFoundError:
            raise DataError(f"There is no {path} below the data's root; expected masks in {LAYOUT}.") from None
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({error}); expected masks in {LAYOUT}.") from None
        try:
            categories = sorted(whole["categories"], key=lambda category: int(category["id"]))
            self.classes = tuple(str(category["name"]) for category in categories)
            self._labels = {category["id"]: label for label, category in enumerate(categories)}
            self._found = _by_name(whole)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(
                f"{path} has another layout ({type(error).__name__}: {error}); expected masks in {LAYOUT}."
            ) from None
        self._names = _Names(self._found)

    def __call__(self, frames: Sequence[Frame]) -> list[Instances]:
        return [self._instances(frame) for frame in frames]

    def _instances(self, frame: Frame) -> Instances:
        height, width = frame.pixels.shape[:2]
        numbers = self._found[self._name(frame.key)]
        if frame.number not in numbers:
            has = ", ".join(str(number) for number in list(numbers)[:_NAMES_IN_MESSAGE])
            raise DataError(
                f"{self._path} has no frame {frame.number} of {frame.key}, but {len(numbers)}: {has} ...; expected one "
                "for every frame that is looked at. See generator.every."
            )
        annotations = numbers[frame.number]
        try:
            runs = [rle.compressed(annotation["segmentation"], height, width) for annotation in annotations]
            labels = [self._labels[annotation["category_id"]] for annotation in annotations]
            masks_NHW = rle.decode(runs, height, width)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{self._path}: the masks of {frame.key}, frame {frame.number}, cannot be read "
                f"({type(error).__name__}: {error}); expected polygons or run lengths of {height} x {width} pixels."
            ) from None
        boxes_N4 = _boxes(runs, height, width)
        return Instances(torch.from_numpy(masks_NHW), torch.tensor(labels).long(), torch.ones(len(runs)), boxes_N4)

    def _name(self, key: str) -> str:
        names = self._names.of(key)
        if len(names) == 1:
            return names[0]
        known = sorted(names or self._found)[:_NAMES_IN_MESSAGE]
        what = f"fits {len(names)} names in" if names else "is not in"
        raise DataError(
            f"{key} {what} {self._path}, which has {', '.join(known)} ...; expected one name that ends as the "
            "key does, or is the end of it."
        )


Annotation = dict[str, Any]


def _by_name(whole: dict[str, Any]) -> dict[str, dict[int, list[Annotation]]]:
    """Annotations by the picture's or video's name, then by the frame's number."""
    if "videos" in whole:
        return _videos(whole["videos"], whole["annotations"])
    by_image: dict[Any, list[Annotation]] = {image["id"]: [] for image in whole["images"]}
    for annotation in whole["annotations"]:
        if not annotation.get("iscrowd"):
            by_image[annotation["image_id"]].append(annotation)
    return {str(image["file_name"]): {0: by_image[image["id"]]} for image in whole["images"]}


def _videos(
    videos: Iterable[dict[str, Any]], annotations: Iterable[dict[str, Any]]
) -> dict[str, dict[int, list[Annotation]]]:
    by_name: dict[str, dict[int, list[Annotation]]] = {}
    by_id: dict[Any, dict[int, list[Annotation]]] = {}
    for video in videos:
        files = [PurePosixPath(file) for file in video["file_names"]]
        by_id[video["id"]] = {number: [] for number in _numbers(files)}
        by_name[str(video.get("name") or files[0].parent)] = by_id[video["id"]]
    for track in annotations:
        frames = by_id[track["video_id"]]
        if len(track["segmentations"]) != len(frames):
            raise IndexError(f"{len(track['segmentations'])} segmentations in a video of {len(frames)} frames")
        for of_frame, mask in zip(frames.values(), track["segmentations"], strict=True):
            if mask is not None and not track.get("iscrowd"):
                of_frame.append({"segmentation": mask, "category_id": track["category_id"]})
    return by_name


def _numbers(files: Sequence[PurePosixPath]) -> list[int]:
    """The numbers of a video's frames: those in the names where they count from 0, else the positions."""
    stems = [file.stem for file in files]
    if stems and all(stem.isdecimal() for stem in stems) and int(stems[0]) == 0 and len(set(stems)) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(len(files)))


class _Names:
    """Names by their endings."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_last: dict[str, list[str]] = {}
        for name in names:
            for last in dict.fromkeys(_lasts(name)):
                self._by_last.setdefault(last, []).append(name)

    def of(self, key: str) -> list[str]:
        """The names that fit best: with most folders in common, then with the suffix, or one that neither has."""
        fits: dict[tuple[int, int], list[str]] = {}
        for last in dict.fromkeys(_lasts(key)):
            for name in self._by_last.get(last, []):
                folders, own = _folders(key), _folders(name)
                shared = min(len(folders), len(own))
                if folders[len(folders) - shared :] == own[len(own) - shared :]:
                    alike = sum(end == last for end in (*_lasts(key)[:1], *_lasts(name)[:1]))
                    fits.setdefault((shared, alike), []).append(name)
        return fits[max(fits)] if fits else []


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "."))


def _folders(name: str) -> tuple[str, ...]:
    return _parts(name)[:-1]


def _lasts(name: str) -> tuple[str, str]:
    """The file's name with its suffix and without."""
    last = PurePosixPath(_parts(name)[-1])
    return last.name, last.stem


def _boxes(runs: Sequence[bytes], height: int, width: int) -> torch.Tensor:
    """x0, y0, x1, y1 around each mask, N x 4."""
    from pycocotools import mask as coco

    boxes = [coco.toBbox({"size": [height, width], "counts": run}) for run in runs]
    boxes_N4 = torch.tensor(np.array(boxes, np.float32).reshape(-1, 4))
    boxes_N4[:, 2:] += boxes_N4[:, :2]
    return boxes_N4
