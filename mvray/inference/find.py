"""`mvray find`: the pictures of a folder that are most like an example, by a trained step.

The distance is the Euclidean one between vectors of length 1 of one layer: 0 for the same picture, 1.41
for nothing in common, 2 for opposites. The smaller the distance, the greater the cosine: d^2 = 2 - 2 cos.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mvray.errors import DataError, SettingError
from mvray.inference import contact_sheet, output_folder
from mvray.inference.contact_sheet import Part, Shot
from mvray.inference.group import distances, list_pictures
from mvray.inference.model import ENDINGS, Model, PictureVectors, picture_files, printable
from mvray.tracking import Progress

TABLE, PAGE = "found.csv", "index.html"
THRESHOLD = "validation/threshold"
"""The key in a step's metrics.json: up to this distance it takes two pictures for the same character."""
MOST = 20


@dataclass(frozen=True)
class Match:
    """A picture and its distance to the nearest of the examples."""

    row: int
    distance: float


def find(
    step_path: str,
    examples: Sequence[Path],
    folder: Path,
    out: Path | None = None,
    layer: str = "",
    most: int | None = None,
    within: float | None = None,
) -> list[str]:
    """The lines to print: the pictures of ``folder`` nearest to any of ``examples``, nearest first.

    At most ``most`` of them (20 where neither is given), and none farther than ``within``. An example that
    lies in the folder is not found itself. With ``out``, found.csv and index.html are written there.
    Raises DataError where no example can be read, where there are no pictures, or where ``step_path`` is
    not the folder of a finished Train step.
    """
    if most is not None and most < 1:
        raise SettingError(f"--most {most}: expected 1 or more.")
    if within is not None and not within >= 0:
        raise SettingError(f"--within {within}: expected a distance from 0 to 2.")
    example_files = list(picture_files(examples, ENDINGS))
    same = {path.resolve() for path in example_files}
    files = [path for path in list_pictures(folder, out) if path.resolve() not in same]
    if out is not None:
        output_folder.check(out, "find", (TABLE, PAGE))
    model = Model(step_path, layer)
    like = model.look(example_files)
    if not like.files:
        reasons = "".join(f"\n  {printable(path)}: {reason}" for path, reason in like.left_out[:5])
        raise DataError(f"No example can be read; expected a picture:{reasons or ' ' + printable(examples[0])}")
    progress = Progress()
    vectors = model.look(files, lambda done: progress.show("look", f"pictures: {done:,} of {len(files):,}"))
    progress.show("look", None)
    matches = _nearest(vectors, like, most if most or within is not None else MOST, within)
    limit = model.metrics.get(THRESHOLD)
    lines = [f"left out: {printable(path)}: {reason}" for path, reason in (*like.left_out, *vectors.left_out)]
    lines += _lines(folder, vectors, matches, limit, within)
    if out is not None:
        table = _table(folder, vectors, matches)
        page = _page(model, folder, out, vectors, like, matches, limit)
        output_folder.write(out, "find", {TABLE: table, PAGE: page.encode("utf-8", "replace")})
    return lines


def _nearest(vectors: PictureVectors, like: PictureVectors, most: int | None, within: float | None) -> list[Match]:
    if not vectors.files:
        return []
    distance_N = distances(vectors.vectors, like.vectors).min(1)
    order = np.argsort(distance_N, kind="stable")
    if within is not None:
        order = order[distance_N[order] <= within]
    return [Match(int(row), float(distance_N[row])) for row in order[:most]]


def _split(matches: Sequence[Match], limit: float | None) -> tuple[list[Match], list[Match]]:
    """Those within the step's threshold, and those beyond."""
    if limit is None:
        return list(matches), []
    return [match for match in matches if match.distance <= limit], [
        match for match in matches if match.distance > limit
    ]


def _lines(
    folder: Path, vectors: PictureVectors, matches: Sequence[Match], limit: float | None, within: float | None
) -> list[str]:
    if not vectors.files:
        return [f"{printable(folder)} has no other picture that can be read."]
    if not matches:
        return [f"None of {len(vectors.files):,} pictures is within {within}."]
    near, far = _split(matches, limit)
    lines = ["distance  picture"]
    lines += [_line(folder, vectors, match) for match in near]
    if limit is not None:
        lines.append(f"  {limit:.4f}  ---- the step's own threshold: up to here the same character ----")
    return lines + [_line(folder, vectors, match) for match in far]


def _line(folder: Path, vectors: PictureVectors, match: Match) -> str:
    return f"  {match.distance:.4f}  {printable(vectors.files[match.row].relative_to(folder).as_posix())}"


def _table(folder: Path, vectors: PictureVectors, matches: Sequence[Match]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "distance"])
    for match in matches:
        table.writerow([vectors.files[match.row].relative_to(folder).as_posix(), f"{match.distance:.4f}"])
    return text.getvalue().encode("utf-8", "surrogateescape")


def _page(
    model: Model,
    folder: Path,
    out: Path,
    vectors: PictureVectors,
    like: PictureVectors,
    matches: Sequence[Match],
    limit: float | None,
) -> str:
    """The examples, then their matches, parted at the step's threshold where it has one."""

    def shots(some: Sequence[Match]) -> list[Shot]:
        rows = [(vectors.thumbnails[match.row], vectors.files[match.row], match.distance) for match in some]
        return [Shot(small, p.relative_to(folder).as_posix(), p, f"{distance:.3f}") for small, p, distance in rows]

    near, far = _split(matches, limit)
    examples = [Shot(small, p.name, p) for small, p in zip(like.thumbnails, like.files, strict=True)]
    parts = [Part("Example" if len(examples) == 1 else "Examples", examples, large=True)]
    if limit is None:
        parts.append(Part("Most like it", shots(near), f"of {len(vectors.files):,} pictures", folded=False))
    else:
        title = f"Up to the step's own threshold, {limit:.3f}"
        parts.append(Part(title, shots(near), "taken for the same character" if near else "nothing", folded=False))
        parts += [Part("Beyond it", shots(far), "others, less and less alike", folded=False)] if far else []
    how = (
        f"Step {model.step.name}, layer {model.layer}; the number is the distance between vectors of length 1: "
        "0 is the same picture, 1.41 nothing in common."
    )
    names = ", ".join(printable(path.name) for path in like.files[:3]) + (" …" if len(like.files) > 3 else "")
    return contact_sheet.page(f"Pictures like {names}", [f"In {printable(folder.resolve())}.", how], parts, out)
