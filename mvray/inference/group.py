"""`mvray group`: pictures of an unknown book, sorted into groups of the same character by a trained step.

What is grouped are vectors of length 1 of one layer, as the paper does it (Yanagisawa et al., papers.md
section 2): UMAP to 32 dimensions, HDBSCAN. The number of groups is not a setting.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from mvray.errors import DataError, SettingError
from mvray.inference import contact_sheet, output_folder
from mvray.inference.contact_sheet import Part, Shot
from mvray.inference.model import ENDINGS, Model, PictureVectors, printable
from mvray.metrics import Hdbscan, Umap, retrieval
from mvray.metrics import group_vectors as clustered
from mvray.tracking import Progress

ALONE = "alone"
TABLE, PAGE, FOLDERS = "groups.csv", "index.html", "groups"
LEAST = 10
"""The paper's min_cluster_size."""
NEIGHBOURS = 12
"""For UMAP, which the paper does not give. With umap-learn's 15, 20 characters of 20 pictures each ran into one
group in two of three runs (AMI .39; .58 with 12); books of 600 and 1,500 pictures come out the same (.91, .94), one of
5,080 a little worse (.81; .84 with 15). Seven books of other drawings, not used to choose, prefer 8 (RESULTS.md)."""
FEWEST = 4
"""Pictures of two groups of two."""
_SAME = 1e-4  # vectors of length 1 that are nearer are equal but for rounding
_LONGEST_NAME = 200  # bytes; file systems allow 255


@dataclass(frozen=True)
class Grouping:
    """Groups among N pictures: each picture's group (N int64 from 0, the largest; -1 alone), how far it is from the
    middle of its group, or of the nearest one (N float32, 0..2), and that group (N int64; -1 where there is none)."""

    group: np.ndarray
    distance: np.ndarray
    nearest: np.ndarray

    @property
    def count(self) -> int:
        return int(self.group.max(initial=-1)) + 1

    def members(self, group: int) -> np.ndarray:
        """The group's pictures, nearest to its middle first; those alone (-1) are ordered by the nearest group."""
        rows = np.flatnonzero(self.group == group)
        return rows[np.lexsort((rows, self.distance[rows], self.nearest[rows]))]


def group(
    step_path: str, folder: Path, out: Path, layer: str = "", per_folder: bool = False, min_size: int | None = None
) -> list[str]:
    """Write groups.csv, groups/NN/ with links to the pictures and index.html to ``out``; returns what to say of it.

    With ``per_folder`` each folder in ``folder`` is a book of its own. ``min_size`` is the least number of
    pictures of a group; None is the paper's 10, less for fewer than 100 pictures (see `least_size`).
    Files that cannot be read are named and left out. Raises DataError where ``step_path`` is not the
    folder of a finished Train step, where there are less than two pictures, or where ``out`` has other
    things of these names.
    """
    if min_size is not None and min_size < 2:
        raise SettingError(f"--min-size {min_size}: expected 2 or more.")
    files = list_pictures(folder, out)
    output_folder.check(out, "group", (TABLE, PAGE, FOLDERS))
    model = Model(step_path, layer)
    progress = Progress()
    vectors = model.look(files, lambda done: progress.show("look", f"pictures: {done:,} of {len(files):,}"))
    progress.show("look", None)
    if len(vectors.files) < 2:
        raise DataError(_too_few(folder, vectors))
    books = _books(folder, vectors.files) if per_folder else {"": np.arange(len(vectors.files))}
    progress.show("group", f"grouping {len(vectors.files):,} pictures")
    groupings = {book: find_groups(vectors.vectors[rows], min_size) for book, rows in books.items()}
    progress.show("group", None)
    names = _names(vectors, books, groupings)
    lines = _summary(vectors, groupings, min_size)
    links = _links(folder, vectors.files, names)
    written = {
        TABLE: _table(folder, vectors, books, groupings, names),
        PAGE: _page(model, folder, out, vectors, books, groupings, lines).encode("utf-8", "replace"),
    }
    copies = output_folder.write(out, "group", {**written, **links})
    lines += [f"{copies:,} pictures were copied: links cannot be made in {out}."] if copies else []
    return [*(f"left out: {printable(path)}: {reason}" for path, reason in vectors.left_out), *lines]


def least_size(pictures: int) -> int:
    """Least pictures of a group where none is asked for: the paper's 10; a tenth of fewer than 100, but at least 3."""
    return min(LEAST, max(3, pictures // 10))


def find_groups(vectors_ND: np.ndarray, min_size: int | None = None) -> Grouping:
    """The groups among vectors of length 1, the largest first; equal sizes keep the order of their rows."""
    count = len(vectors_ND)
    if np.ptp(vectors_ND, axis=0).max(initial=0) < _SAME:
        labels_N = np.zeros(count, np.int64) if count > 1 else np.full(count, -1)
    elif count < FEWEST:
        labels_N = np.full(count, -1)
    else:
        least = min(min_size or least_size(count), count)
        how = Hdbscan(min_cluster_size=least, min_samples=1)
        labels_N = clustered(vectors_ND, Umap(dimensions=32, neighbours=NEIGHBOURS), how, seed=0)
    return _grouping(vectors_ND, _number_by_size(labels_N))


def list_pictures(folder: Path, out: Path | None) -> list[Path]:
    """The picture files in ``folder`` and below by their ending, without hidden ones and what lies in ``out``.

    Folders that cannot be opened are among them: who reads them learns why. Raises DataError where there is none.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 (Path.is_dir raises where it may not look)
        raise DataError(f"{printable(folder)}: there is no such folder; expected one with pictures.")
    out_path = out.resolve() if out else None
    closed: list[OSError] = []
    inside = [Path(above, name) for above, _, names in os.walk(folder, onerror=closed.append) for name in names]
    files = [path for path in inside if path.suffix.lower() in ENDINGS and _is_file(path)]
    files += [Path(error.filename) for error in closed]
    files = sorted(path for path in files if not _hidden(path.relative_to(folder)))
    kept = [path for path in files if out_path is None or not _lies_in(path, out_path, folder)]
    if not kept:
        raise DataError(f"{printable(folder)} has no pictures; expected files with {', '.join(sorted(ENDINGS))}.")
    return kept


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError:
        return True  # who reads it learns why not


def _lies_in(path: Path, out_path: Path, folder: Path) -> bool:
    """Whether a picture is one that an earlier command wrote. Where ``out`` is the folder itself, what lies in groups/
    is."""
    where = path.parent.resolve()
    own = out_path / FOLDERS if folder.resolve().is_relative_to(out_path) else out_path
    return where.is_relative_to(own)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _too_few(folder: Path, vectors: PictureVectors) -> str:
    bad = "".join(f"\n  {printable(path)}: {reason}" for path, reason in vectors.left_out[:5])
    if not vectors.files:
        return f"None of the {len(vectors.left_out)} pictures in {printable(folder)} can be read:{bad}"
    unread = f" ({len(vectors.left_out)} more cannot be read:{bad})" if bad else ""
    return f"{printable(folder)} has one picture{unread}; expected at least two to group."


def _books(folder: Path, files: Sequence[Path]) -> dict[str, np.ndarray]:
    """The rows of each folder in ``folder``; of pictures in none under ""."""
    first = [parts[0] if len(parts := path.relative_to(folder).parts) > 1 else "" for path in files]
    return {book: np.flatnonzero([name == book for name in first]) for book in sorted(set(first))}


def _number_by_size(labels_N: np.ndarray) -> np.ndarray:
    labels, at, sizes = np.unique(labels_N, return_index=True, return_counts=True)
    order = [label for _, _, label in sorted(zip(-sizes, at, labels, strict=True)) if label >= 0]
    number = {label: i for i, label in enumerate(order)} | {-1: -1}
    return np.array([number[label] for label in labels_N], np.int64)


def _grouping(vectors_ND: np.ndarray, group_N: np.ndarray) -> Grouping:
    """A group's middle is the mean of its vectors, at length 1."""
    count = int(group_N.max(initial=-1)) + 1
    if not count:
        nothing = np.full(len(group_N), -1)
        return Grouping(group_N, np.zeros(len(group_N), np.float32), nothing)
    middles_GD = retrieval.unit_length(np.stack([vectors_ND[group_N == group].mean(0) for group in range(count)]))
    distance_NG = distances(vectors_ND, middles_GD)
    nearest_N = np.where(group_N >= 0, group_N, distance_NG.argmin(1))
    return Grouping(group_N, distance_NG[np.arange(len(group_N)), nearest_N], nearest_N)


def distances(vectors_ND: np.ndarray, others_MD: np.ndarray) -> np.ndarray:
    """Euclidean distance between vectors of length 1, N x M float32, 0 (same) to 2 (opposite)."""
    ones_ND, others_MD = vectors_ND.astype(np.float64), others_MD.astype(np.float64)
    lengths_NM = (ones_ND**2).sum(1)[:, None] + (others_MD**2).sum(1)  # 2 but for rounding, of which the root is seen
    return np.asarray(np.sqrt(np.maximum(lengths_NM - 2 * ones_ND @ others_MD.T, 0)), np.float32)


# -- what is written -------------------------------------------------------------------------------


def _names(vectors: PictureVectors, books: dict[str, np.ndarray], groupings: dict[str, Grouping]) -> list[str]:
    """The name of each picture's group: "07", "book/07", "alone"."""
    names = [""] * len(vectors.files)
    for book, rows in books.items():
        for row, number in zip(rows, groupings[book].group, strict=True):
            names[row] = PurePosixPath(book, _name(number, groupings[book].count)).as_posix()
    return names


def _name(number: int, count: int) -> str:
    return f"{number + 1:0{max(2, len(str(count)))}d}" if number >= 0 else ALONE


def _summary(vectors: PictureVectors, groupings: dict[str, Grouping], min_size: int | None) -> list[str]:
    count, alone = (
        sum(grouping.count for grouping in groupings.values()),
        sum(int((f.group < 0).sum()) for f in groupings.values()),
    )
    total = len(vectors.files)
    sentences = [f"{total:,} pictures: {_count(count, 'group')}, {alone:,} alone."]
    if vectors.left_out:
        sentences[0] += f" {_count(len(vectors.left_out), 'file')} could not be read."
    if not count:
        sentences.append(_why_none(total, min_size))
    elif count == 1 and not alone and len(groupings) == 1 and next(iter(groupings.values())).distance.max() < _SAME:
        sentences.append("All pictures are the same to this network.")
    return sentences


def _why_none(total: int, min_size: int | None) -> str:
    if total < FEWEST:
        return f"{total} pictures are too few to tell groups apart; {FEWEST} or more may do."
    fewer = "; fewer may do with --min-size 2" if min_size != 2 else ""
    return f"No picture is like enough to others to make a group{fewer}."


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("s" if count != 1 else "")


def _table(
    folder: Path,
    vectors: PictureVectors,
    books: dict[str, np.ndarray],
    groupings: dict[str, Grouping],
    names: list[str],
) -> bytes:
    """file, group, distance to the middle of its group (those alone: of the nearest), sorted by file."""
    distance = np.zeros(len(names), np.float32)
    for book, rows in books.items():
        distance[rows] = groupings[book].distance
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "group", "distance"])
    for path, name, value in zip(vectors.files, names, distance, strict=True):
        table.writerow([path.relative_to(folder).as_posix(), name, f"{value:.4f}"])
    return text.getvalue().encode("utf-8", "surrogateescape")


def _links(folder: Path, files: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    """Where each picture is linked. One whose name others have too is called by its folders as well."""
    times: dict[str, int] = {}
    for path in files:
        times[path.name.lower()] = times.get(path.name.lower(), 0) + 1
    links: dict[str, Path] = {}
    for path, name in zip(files, names, strict=True):
        alone = times[path.name.lower()] == 1
        own = path.name if alone else "__".join(path.relative_to(folder).parts)
        own = os.fsdecode(os.fsencode(own)[-_LONGEST_NAME:])
        at, count = PurePosixPath(FOLDERS, name, own), 1
        while at.as_posix() in links:
            count += 1
            at = at.with_name(f"{PurePosixPath(own).stem}-{count}{path.suffix}")
        links[at.as_posix()] = path
    return links


def _page(
    model: Model,
    folder: Path,
    out: Path,
    vectors: PictureVectors,
    books: dict[str, np.ndarray],
    groupings: dict[str, Grouping],
    lines: list[str],
) -> str:
    parts: list[Part] = []
    for book, rows in books.items():
        groups, parts_of_book = groupings[book], []
        for number in [*range(groups.count), -1]:
            members = rows[groups.members(number)]
            if not len(members):
                continue
            shots = [_shot(folder, vectors, row) for row in members]
            title = f"Group {_name(number, groups.count)}" if number >= 0 else "Alone"
            parts_of_book.append(Part(title, shots, _count(len(members), "picture"), faint=number < 0))
        parts += [replace(part, chapter=printable(book)) for part in parts_of_book]
    how = (
        f"Step {model.step.name}, layer {model.layer}: vectors of length 1, UMAP to 32 dimensions, HDBSCAN. "
        "In each group the most typical picture comes first."
    )
    title = f"Groups in {printable(folder.resolve().name or folder)}"
    return contact_sheet.page(title, [*lines, how], parts, out, overview=True)


def _shot(folder: Path, vectors: PictureVectors, row: int) -> Shot:
    path = vectors.files[row]
    return Shot(vectors.thumbnails[row], path.relative_to(folder).as_posix(), path)
