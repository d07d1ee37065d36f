"""`mvray apply`: what a trained step makes of anyone's pictures, in their own size: class maps, for now.

DIR/maps/NAME.png        a palette PNG: the number of each pixel's class, in VOC's colours
DIR/overlays/NAME.png    the colours over the picture, orange for grey
DIR/classes.csv          the classes' numbers, names and colours
DIR/areas.csv            for each picture the share of each class
DIR/sheet.png            the first pictures with a legend
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mvray.data import PADDING, Unreadable, View, colours, cut_view, open_upright, palette_png, pixels_of
from mvray.errors import DataError, SettingError
from mvray.experiment import PAD, Facts, Pictures, Train
from mvray.inference import output_folder
from mvray.inference.model import ENDINGS, load_step, picture_files, printable
from mvray.nn import CRF, Method, enlarged, marginals
from mvray.reports import class_maps, figures
from mvray.tracking import Progress

MAPS, OVERLAYS, CLASSES, AREAS, SHEET = "maps", "overlays", "classes.csv", "areas.csv", "sheet.png"
_SHOWN, _A_ROW = 24, 3
_THUMB = 320


def apply(step_path: str, files: Sequence[Path], out: Path, crf: bool = False) -> list[str]:
    """Write the class map of each picture, and what is above, to ``out``; returns what to say of it.

    ``step_path`` is the folder of a finished Train step that segments pictures. With ``crf`` the fully connected CRF
    sharpens its probabilities, with the weights and widths that `CRF` has by itself. Files that cannot be read are
    named and left out. Raises DataError where it is not such a folder, or where no file can be read; SettingError for
    a step whose method says nothing of places.
    """
    pictures = list(picture_files(files, ENDINGS))
    method, step, facts = load_step(step_path)
    if type(method).class_maps is Method.class_maps or not isinstance(step.data.pictures, Pictures):
        raise SettingError(
            f"{step_path} was trained as {type(method).__name__}, which says nothing of places; expected a step that "
            "segments pictures, as jobs/semantic_segmentation.py trains it."
        )
    output_folder.check(out, "apply", (MAPS, OVERLAYS, CLASSES, AREAS, SHEET))
    written: dict[str, bytes | Path] = {}
    rows: list[tuple[str, str, int, int, np.ndarray]] = []
    shown: list[tuple[str, np.ndarray, np.ndarray]] = []
    lines, progress = [], Progress()
    for number, path in enumerate(pictures):
        progress.show("apply", f"pictures: {number:,} of {len(pictures):,}")
        try:
            image_HWC = pixels_of(open_upright(path.read_bytes(), 1 << 30, 1 << 30, grey=False))
        except (Unreadable, OSError) as error:
            lines.append(f"left out: {printable(path)}: {getattr(error, 'reason', error)}")
            continue
        classes_HW = class_map(method, image_HWC, step, facts, CRF() if crf else None)
        name = f"{path.stem}.png" if f"{MAPS}/{path.stem}.png" not in written else f"{path.stem}-{number}.png"
        colour_HWC = np.broadcast_to(image_HWC, (*image_HWC.shape[:2], 3))
        over_HWC = class_maps.painted(colour_HWC, classes_HW)
        written[f"{MAPS}/{name}"] = palette_png(classes_HW)
        written[f"{OVERLAYS}/{name}"] = figures.picture_png(Image.fromarray(over_HWC))
        shares = np.bincount(classes_HW.ravel(), minlength=len(facts.classes)) / classes_HW.size
        rows.append((printable(path), name, image_HWC.shape[1], image_HWC.shape[0], shares))
        if len(shown) < _SHOWN:
            shown.append((path.name, _small(colour_HWC), _small(over_HWC)))
    progress.show("apply", None)
    if not rows:
        raise DataError(f"None of {', '.join(map(str, files))} is a picture that can be read; {lines[0]}.")
    written |= {
        CLASSES: _table(("number", "name", "red", "green", "blue"), _class_rows(facts)),
        AREAS: _table(("picture", "map", "width", "height", *facts.classes), _area_rows(rows)),
        SHEET: _sheet(shown, step, facts, {int(i) for *_, shares in rows for i in np.flatnonzero(shares)}),
    }
    output_folder.write(out, "apply", written)
    return [*lines, f"{len(rows):,} pictures, {len(lines):,} left out."]


def class_map(method: Method, image_HWC: np.ndarray, step: Train, facts: Facts, crf: CRF | None = None) -> np.ndarray:
    """The likeliest class of each pixel, H x W uint8, of a picture of any size: as evaluation sees it, brought back.

    ``step`` says how pictures become as large as ``facts``: what was padded is cut off again, and the probabilities are
    enlarged to the picture before the likeliest is chosen.
    """
    pictures = step.data.pictures
    assert isinstance(pictures, Pictures)
    size = image_HWC.shape[0], image_HWC.shape[1]
    view = View.padded(pictures, size, None) if pictures.fit == PAD else View()
    if facts.channels == 1 and image_HWC.shape[2] == 3:
        image_HWC = pixels_of(Image.fromarray(image_HWC).convert("L"))
    grey = image_HWC.shape[2] == 1
    array = image_HWC[..., 0] if grey else image_HWC
    cut = cut_view(array, facts.height, facts.width, view, padding=PADDING[1] if grey else PADDING)
    cut_CHW = np.broadcast_to(
        cut[None] if grey else cut.transpose(2, 0, 1), (facts.channels, facts.height, facts.width)
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.inference_mode():
        batch_BCHW = torch.from_numpy(np.ascontiguousarray(cut_CHW))[None].to(device)
        probabilities_BKHW = method.class_maps(batch_BCHW)
        if crf is not None:
            scores_BKHW = probabilities_BKHW.float().clamp_min(1e-12).log()
            probabilities_BKHW = marginals(scores_BKHW, batch_BCHW.expand(-1, 3, -1, -1), crf)
        rows, columns = view.inside(facts.height, facts.width)
        own = probabilities_BKHW[:, :, rows, columns]
        classes_HW: np.ndarray = enlarged(own, size).argmax(1)[0].to(torch.uint8).cpu().numpy()
    return classes_HW


def _small(image_HWC: np.ndarray) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(image_HWC))
    image.thumbnail((_THUMB, _THUMB))
    return np.asarray(image)


def _class_rows(facts: Facts) -> list[list[object]]:
    table = colours(len(facts.classes)).tolist()
    return [[number, name, *table[number]] for number, name in enumerate(facts.classes)]


def _area_rows(rows: Sequence[tuple[str, str, int, int, np.ndarray]]) -> list[list[object]]:
    return [[*head, *(f"{share:.5f}" for share in shares)] for *head, shares in rows]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue().encode("utf-8", "replace")


def _sheet(shown: Sequence[tuple[str, np.ndarray, np.ndarray]], step: Train, facts: Facts, seen: set[int]) -> bytes:
    rows = [shown[at : at + _A_ROW] for at in range(0, len(shown), _A_ROW)]
    blank = np.full((8, 8, 3), 255, np.uint8)
    cells = [[image for _, *pair in row for image in pair] for row in rows]
    cells[-1] += [blank] * (2 * min(_A_ROW, len(shown)) - len(cells[-1]))
    names = ["\n".join(name for name, *_ in row) for row in rows]
    png = figures.sheet(cells, ["picture", f"what {step.name} sees"] * (len(cells[0]) // 2), names, step.name)
    return class_maps.with_legend(Image.open(io.BytesIO(png)).convert("RGB"), facts.classes, sorted(seen))
