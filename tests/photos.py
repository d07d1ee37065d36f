"""Real photographs with class maps, in PASCAL VOC 2012's layout, composed on this machine out of Debian's packages.

tuxpaint-stamps-default (GPL-2+) has animals, flowers, fruit, vegetables and signs that were cut out of photographs,
gcompris-qt-data (GPL-3+, some files under other free licences) photographs of monuments to put them before. Neither
may be shipped with mvray, so apt-get fetches them (205 MB) and dpkg-deb unpacks them, into a temporary folder.
Stamps and backgrounds are split two to one before anything is composed. LICENCES.txt in the result names every file
that was used and has both packages' terms.

Run: python tests/photos.py OUT [--pictures 300] [--size 320] [--seed 0]
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from mvray.data.synthetic.collage import collage
from mvray.data.synthetic.segments import TRAIN, VAL, Line, Picture, Work, check_settings, plan, write, write_sample
from mvray.data.synthetic.stamps import Stamp, two_to_one
from mvray.data.synthetic.whole import is_whole, replacing
from mvray.errors import DataError, UserError

VERSION = 1
"""Grows when the same packages and settings give other pictures."""
STAMPS, GROUNDS = "tuxpaint-stamps-default", "gcompris-qt-data"
STAMPS_AT, GROUNDS_AT = Path("usr/share/tuxpaint/stamps"), Path("usr/share/gcompris-qt/rcc/explore_monuments.rcc")
FOLDERS = {
    "bird": ("animals/birds",),
    "mammal": ("animals/mammals",),
    "flower": ("plants/flowers",),
    "produce": ("food/fruit", "food/vegetables"),
    "sign": ("town/roadsigns",),
    "": ("household", "hobbies", "sports", "clothes"),
}
"""Where the photographs of each class are, and of things of no class."""
CLASSES = ("background", *(kind for kind in FOLDERS if kind))
DRAWN = ("cartoon", "toys", "plastic", "hedgehog", "rubberduck")
"""Parts of names of what is no photograph of its class."""
TWINS = ("xing_school_mirror", "stoplight_02_yellow", "stoplight_03_green", "measuring_tape_mirror")
"""Nearly the same picture as another one, which could be in the other split."""
LEAST_COLOURS = 110
"""A photograph has more colours of 5 bits than that. Signs are painted, and are as photographs show them."""
LEAST_SIDE, MOST_SIDE = 300, 1024
ABOUT = """Pictures with class maps, composed of photographs out of the Debian packages {packages}
by mvray's tests/photos.py, in PASCAL VOC 2012's layout. What was used, and on which terms:
"""


@dataclass(frozen=True)
class PhotoWork(Work):
    """All pictures before one background: ``kind`` is its name, ``folder`` where both packages are unpacked."""

    folder: Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=300, help="pictures in all, a fifth of them for val")
    parser.add_argument("--size", type=int, default=320, help="pixels of the longer side")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    try:
        if missing := [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]:
            raise DataError(
                f"There is no {missing[0]} here; expected Debian or Ubuntu: their packages have the photos."
            )
        with tempfile.TemporaryDirectory() as folder:
            packages = fetch(Path(folder))
            print(f"{', '.join(packages)} are unpacked ({time.monotonic() - started:.0f} s).", flush=True)
            compose(options.out.resolve(), Path(folder), packages, options.pictures, options.size, options.seed)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Wrote {options.pictures} pictures with class maps to {options.out} ({time.monotonic() - started:.0f} s).")
    return 0


def fetch(folder: Path) -> list[str]:
    """Both packages unpacked into ``folder``; their names with versions. Raises DataError."""
    files = []
    for name in (STAMPS, GROUNDS):
        _run(
            ["apt-get", "download", "-q", name],
            folder,
            f"{name} could not be fetched; expected apt to know it. Try apt-get update.",
        )
        [file] = folder.glob(f"{name}_*.deb")
        _run(["dpkg-deb", "-x", file.name, "."], folder, f"{file.name} could not be unpacked.")
        file.unlink()
        files.append(file.name)
    return [" ".join(file.split("_")[:2]) for file in files]


def _run(command: list[str], folder: Path, message: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        why = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()[-1:]
        raise DataError(f"{message} ({' '.join(command)}: {' '.join(why)})")


def compose(
    out: Path, folder: Path, packages: Sequence[str], pictures: int, size: int, seed: int, processes: int | None = None
) -> None:
    """Compose ``pictures`` pictures of photographs under ``folder``; the same settings give the same bytes."""
    check_settings(pictures, size, seed)
    settings = {"sample": "photos", "version": VERSION, "packages": list(packages)}
    settings |= {"pictures": pictures, "size": size, "seed": seed}
    if is_whole(out, settings):
        return
    works = works_of(folder, pictures, size, seed)
    with replacing(out, settings) as part:
        write_sample(part, works, write_photos, CLASSES, processes, _say)
        (part / "LICENCES.txt").write_text(licences(folder, packages, works), encoding="utf-8")


def _say(done: int, total: int) -> None:
    print(f"\r{done} of {total} pictures", end="\n" if done == total else "", flush=True)


def works_of(folder: Path, pictures: int, size: int, seed: int) -> list[PhotoWork]:
    """What is composed: pictures by their backgrounds. No stamp and no background is in both splits."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    splits = np.array([TRAIN] * (pictures - pictures // 5) + [VAL] * (pictures // 5))
    rng.shuffle(splits)
    stamps = stamps_of(folder / STAMPS_AT)
    dealt = [two_to_one([stamp for stamp in stamps if stamp.kind == kind], rng) for kind in FOLDERS]
    grounds = two_to_one(sorted(unpacked(folder)), rng)
    works = []
    for which, split in enumerate((TRAIN, VAL)):
        numbers = [int(number) for number in np.flatnonzero(splits == split)]
        planned = plan(numbers, split, size, [stamp for shares in dealt for stamp in shares[which]], rng)
        for i, ground in enumerate(grounds[which][: len(planned)]):
            works.append(PhotoWork(ground, i, tuple(planned[i :: len(grounds[which])]), seed, folder))
    return works


def stamps_of(top: Path) -> list[Stamp]:
    """The photographs that were cut out, by class; sorted."""
    stamps = []
    for kind, places in FOLDERS.items():
        for file in sorted(file for place in places for file in (top / place).rglob("*.png")):
            name = file.relative_to(top).with_suffix("")
            if any(part in str(name) for part in DRAWN) or name.name in TWINS:
                continue
            if kind == "sign" or colours_of(file) > LEAST_COLOURS:
                stamps.append(Stamp(kind, str(name.parent), name.name))
    return stamps


def colours_of(file: Path) -> int:
    """How many colours of 5 bits a channel its opaque pixels have."""
    rgba_HW4 = np.asarray(Image.open(file).convert("RGBA"))
    bits_N3 = rgba_HW4[rgba_HW4[..., 3] >= 128][:, :3].astype(np.int64) >> 3
    return len(np.unique(bits_N3 @ [1 << 10, 1 << 5, 1]))


@cache
def unpacked(folder: Path) -> dict[str, bytes]:
    """The backgrounds: large pictures in GCompris' resource file by their names."""
    return {
        Path(path).stem: data
        for path, data in resources((folder / GROUNDS_AT).read_bytes())
        if path.endswith((".jpg", ".png", ".webp")) and min(Image.open(io.BytesIO(data)).size) >= LEAST_SIDE
    }


def resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The files in a Qt resource file (rcc, versions 1 to 3), by their paths. Source: qtbase, tools/rcc/rcc.cpp."""
    magic, version, tree, files, names = struct.unpack(">4s4I", data[:20])
    if magic != b"qres" or version > 3:
        raise DataError(f"a resource file starts with {data[:8].hex(' ')}; expected qres and version 1 to 3.")
    node_bytes = 14 if version == 1 else 22

    def walk(node: int, above: str) -> Iterator[tuple[str, bytes]]:
        name, flags, first, second = struct.unpack_from(">IHII", data, tree + node * node_bytes)
        length = struct.unpack_from(">H", data, names + name)[0]
        path = above + data[names + name + 6 : names + name + 6 + 2 * length].decode("utf-16-be") if node else ""
        if flags & 2:  # a folder: how many, and where the first one is
            for below in range(second, second + first):
                yield from walk(below, f"{path}/" if path else "")
            return
        at = files + second
        content = data[at + 4 : at + 4 + struct.unpack_from(">I", data, at)[0]]
        if flags & 4:
            raise DataError(f"{path} in a resource file is compressed by zstd; expected zlib or none.")
        yield path, zlib.decompress(content[4:]) if flags & 1 else content

    return walk(0, "")


def write_photos(part: Path, work: PhotoWork) -> list[Line]:
    """Write the pictures before a background, and say what is in them."""
    ground = Image.open(io.BytesIO(unpacked(work.folder)[work.kind])).convert("RGB")
    ground.thumbnail((MOST_SIDE, MOST_SIDE))

    def paint(stamp: Stamp, rng: np.random.Generator) -> Image.Image:
        image = Image.open(work.folder / STAMPS_AT / f"{stamp.key}.png").convert("RGBA")
        image.thumbnail((MOST_SIDE, MOST_SIDE))
        light, gamma = float(rng.uniform(0.85, 1.1)), float(rng.uniform(0.8, 1.25))
        curve = [min(255, round(255 * light * (value / 255) ** gamma)) for value in range(256)]
        changed = image.convert("RGB").point(curve * 3)
        changed.putalpha(image.getchannel("A"))
        return changed

    lines = []
    for picture in work.pictures:
        rng = np.random.default_rng(np.random.SeedSequence([work.seed, 2, picture.number]))
        made = collage(ground, picture.size, picture.stamps, picture.things, rng, paint)
        write(part, picture.name, made, CLASSES)
        shown = " ".join(stamp.key for stamp in (*made.used, *picture.things))
        lines.append((picture.name, picture.split, work.kind, shown))
    return lines


def licences(folder: Path, packages: Sequence[str], works: Sequence[PhotoWork]) -> str:
    """What was used of both packages, and their terms as the packages have them."""
    pictures: list[Picture] = [picture for work in works for picture in work.pictures]
    stamps = sorted({stamp.key for picture in pictures for stamp in (*picture.stamps, *picture.things)})
    used = ([f"{STAMPS_AT}/{key}.png" for key in stamps], sorted(f"{GROUNDS_AT.name}: {work.kind}" for work in works))
    text = ABOUT.format(packages=" and ".join(packages))
    for name, package, files in zip((STAMPS, GROUNDS), packages, used, strict=True):
        terms = (folder / "usr/share/doc" / name / "copyright").read_text(encoding="utf-8", errors="replace")
        listed = "".join(f"  {file}\n" for file in files)
        text += f"\n{'=' * 80}\n{package}: {len(files)} files\n{listed}\nIts terms:\n\n{re.sub('[ ]+$', '', terms)}\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
