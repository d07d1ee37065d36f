"""COCO's annotation files as a table: a row for each picture, with what its class map is painted from."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mvray.data import rle
from mvray.data.decoding import MAX_MEGAPIXELS
from mvray.errors import DataError
from mvray.experiment import IGNORE

BACKGROUND = "background"
_SEGMENT = pa.struct({"label": pa.uint8(), "id": pa.int64(), "runs": pa.binary()})
_SCHEMA = pa.schema(
    {
        "file": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "mask": pa.string(),
        "reason": pa.string(),
        "segments": pa.list_(_SEGMENT),
    }
)
_ROWS_AT_ONCE = 1000
_LAYOUT = {
    True: "panoptic annotations (images, annotations with file_name and segments_info, categories)",
    False: "instances (images, annotations with image_id, category_id and segmentation, categories)",
}
_WRONG = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


class Categories(NamedTuple):
    """The classes in the order of their numbers, and the number of each category by its id."""

    names: tuple[str, ...]
    numbers: dict[Any, int]


def table_of(data: bytes, path: str, panoptic: bool) -> pa.Table:
    """The annotations in the file ``path``; its schema's metadata has the classes (`classes_of`).

    ``file`` is the picture's, ``height`` and ``width`` what the file says of it, ``mask`` the panoptic PNG file or
    the picture's id, "" where there is none, ``reason`` why its annotations cannot be used, else "". ``segments``
    are in the order in which they are painted: the label (IGNORE for crowds) of each ``id`` of a panoptic PNG, or of
    each instance with its ``runs``, crowds first, then from the largest to the smallest.
    Raises DataError for a file in another layout.
    """
    try:
        whole = json.loads(data)
        categories = _categories(whole["categories"], panoptic)
        images = _images(whole["images"])
        of_image: dict[Any, list[dict[str, Any]]] = {number: [] for number in images}
        for annotation in whole["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        numbers, batches = list(images), []
        for first in range(0, len(numbers), _ROWS_AT_ONCE):
            records = [
                _record(images[number], of_image[number], categories, panoptic)
                for number in numbers[first : first + _ROWS_AT_ONCE]
            ]
            batches.append(pa.RecordBatch.from_pylist(records, schema=_SCHEMA))
    except (*_WRONG, RecursionError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be used ({type(error).__name__}: {str(error)[:200]}); expected COCO's {_LAYOUT[panoptic]}."
        ) from error
    return pa.Table.from_batches(batches, _SCHEMA).replace_schema_metadata({"classes": json.dumps(categories.names)})


def classes_of(table: pa.Table) -> tuple[str, ...]:
    """The classes that a table's labels count through."""
    return tuple(json.loads(table.schema.metadata[b"classes"]))


def painted(segments: list[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """The class map of instances, H x W uint8: BACKGROUND where there is none. Raises ValueError."""
    classes_HW = np.zeros((height, width), np.uint8)
    masks_NHW = rle.decode([segment["runs"] for segment in segments], height, width)
    for segment, mask_HW in zip(segments, masks_NHW, strict=True):
        classes_HW[mask_HW] = segment["label"]
    return classes_HW


def _categories(categories: list[dict[str, Any]], panoptic: bool) -> Categories:
    ordered = sorted(categories, key=lambda category: int(category["id"]))
    names = (*(() if panoptic else (BACKGROUND,)), *(str(category["name"]) for category in ordered))
    numbers = {category["id"]: names.index(str(category["name"])) for category in ordered}
    if len(set(names)) < len(names) or len(numbers) < len(ordered):
        raise ValueError("two classes have one name or one id")
    if not ordered or len(names) >= IGNORE:
        raise ValueError(f"{len(ordered)} categories, expected 1 to {IGNORE - 2}")
    return Categories(names, numbers)


def _images(images: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The pictures by their ids. Raises ValueError where an id or a file is there twice: which one is meant?"""
    by_id: dict[Any, dict[str, Any]] = {}
    files: set[str] = set()
    for image in images:
        if image["id"] in by_id or image["file_name"] in files:
            raise ValueError(f"image {image['id']!r}, {image['file_name']!r}, is there twice")
        by_id[image["id"]] = image
        files.add(image["file_name"])
        height, width = image["height"], image["width"]
        if not (height >= 1 and width >= 1 and height * width <= MAX_MEGAPIXELS * 1_000_000):
            raise ValueError(f"image {image['id']!r} is said to have {height} x {width} pixels")
    return by_id


def _record(
    image: dict[str, Any], annotations: list[dict[str, Any]], categories: Categories, panoptic: bool
) -> dict[str, Any]:
    """A row of the table."""
    size = image["height"], image["width"]
    mask, reason, segments = "" if panoptic else str(image["id"]), "", []
    if panoptic and annotations:
        if len(annotations) > 1:
            raise ValueError(f"image {image['id']!r} has {len(annotations)} annotations")
        mask, annotations = annotations[0]["file_name"], annotations[0]["segments_info"]
    for annotation in annotations:
        try:
            segments.append(_segment(annotation, size, categories, panoptic))
        except _WRONG as error:
            reason = f"its annotation {annotation.get('id')!r} cannot be used ({type(error).__name__}: {error})"
    segments.sort(key=lambda segment: segment.pop("order"))
    return {
        "file": image["file_name"],
        "height": size[0],
        "width": size[1],
        "mask": mask,
        "reason": reason,
        "segments": segments,
    }


def _segment(
    annotation: dict[str, Any], size: tuple[int, int], categories: Categories, panoptic: bool
) -> dict[str, Any]:
    from pycocotools import mask as coco

    if (category := annotation["category_id"]) not in categories.numbers:
        raise ValueError(f"of the category {category!r}, which the file does not name")
    crowd = bool(annotation.get("iscrowd"))
    label = IGNORE if crowd else categories.numbers[category]
    if panoptic:
        return {"label": label, "id": int(annotation["id"]), "runs": b"", "order": 0}
    runs = rle.compressed(annotation["segmentation"], *size)
    pixels = int(coco.area({"size": list(size), "counts": runs}))
    return {"label": label, "id": 0, "runs": runs, "order": (not crowd, -pixels)}
