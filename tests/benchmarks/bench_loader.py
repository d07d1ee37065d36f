"""Decoded pages per second: our loader against torchvision's ImageFolder with torch's DataLoader.

Same JPEG files, same number of workers, same output (414 x 585 grey pages, uint8 batches), in one
run; rounds alternate, and the median counts. Two cases:

  pages    files that hold one page each, in a folder per title: Folder against ImageFolder
  spreads  double-page spreads of 1654 x 1170: Manga109 against one ImageFolder per side, whose transform
           cuts the page out of the decoded spread and halves it

"whole" counts from the call to the last batch, with the workers' start; "running" from the first batch
on. Run: python tests/benchmarks/bench_loader.py [--workers 2] [--batch 16] [--spreads 160]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import torchvision
from PIL import Image

from mvray.data import sampler
from mvray.data.loader import loader
from mvray.data.pictures import PictureDataset
from mvray.data.readers.base import PictureSource
from mvray.data.readers.folder import Folder
from mvray.data.readers.manga109 import Manga109
from mvray.data.synthetic import comics
from mvray.experiment.inputs import Pictures

Cut = Callable[[Image.Image], Image.Image]
Start = Callable[[], Iterator[torch.Tensor]]

HEIGHT, WIDTH = 585, 414
ROUNDS = 5
EVERYTHING = {"train": 1.0, "validation": 0.0, "test": 0.0}


def make(root: Path, spreads: int) -> None:
    """Sample comics below root/spreads, and each of their pages as a file below root/pages."""
    titles = 4
    comics.compose(root / "spreads", titles=titles, pages=2 * (spreads // titles))
    source = Manga109(root=str(root / "spreads"), **EVERYTHING)
    for row in source.index().rows.to_pylist():
        page = Image.fromarray(source.read(row["location"], row["part"])[..., 0])
        folder = root / "pages" / row["group"]
        folder.mkdir(parents=True, exist_ok=True)
        page.save(folder / f"{Path(row['location']).stem}-{row['part']}.jpg", quality=90)


def ours(source: PictureSource, workers: int, batch: int) -> Start:
    rows = source.index().rows
    dataset = PictureDataset(source, rows, Pictures(HEIGHT, WIDTH, 1), train=True)
    order = list(sampler.order(len(rows), batch))
    return lambda: (given["image"] for given in loader(dataset, order, workers=workers))


def theirs(source: PictureSource, root: Path, cuts: Mapping[str, Cut], workers: int, batch: int) -> Start:
    def grey(path: str) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("L")

    to_tensor = torchvision.transforms.PILToTensor()
    folders = []
    for part, cut in cuts.items():
        steps = torchvision.transforms.Compose([cut, to_tensor])
        folders.append(torchvision.datasets.ImageFolder(str(root), transform=steps, loader=grey))
        location = Path(folders[-1].samples[7][0]).relative_to(source.root).as_posix()
        difference = folders[-1][7][0][0].int() - torch.tensor(source.read(location, part)[..., 0])
        assert difference.abs().float().mean() < 3, "the two do not show the same page"
    dataset = torch.utils.data.ConcatDataset(folders)
    batches = torch.utils.data.DataLoader(dataset, batch, shuffle=True, drop_last=True, num_workers=workers)
    return lambda: (images for images, _ in batches)


def left(spread: Image.Image) -> Image.Image:
    return spread.crop((0, 0, 2 * WIDTH, spread.height)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


def right(spread: Image.Image) -> Image.Image:
    return spread.crop((spread.width - 2 * WIDTH, 0, *spread.size)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


def rates(start: Start) -> tuple[float, float, float]:
    """(pages/s whole, pages/s running, seconds to the first batch) of one epoch."""
    begun = time.perf_counter()
    batches = start()
    first, pages = next(batches), 0
    first_at = time.perf_counter()
    assert first.shape[1:] == (1, HEIGHT, WIDTH)
    assert first.dtype == torch.uint8
    for images in batches:
        pages += len(images)
    ended = time.perf_counter()
    return (pages + len(first)) / (ended - begun), pages / (ended - first_at), first_at - begun


def compare(name: str, mine: Start, peer: Start) -> None:
    measured: dict[str, list[tuple[float, float, float]]] = {"mvray": [], "torchvision": []}
    for _ in range(ROUNDS):
        for who, start in (("mvray", mine), ("torchvision", peer)):
            measured[who].append(rates(start))
    medians = {who: [statistics.median(column) for column in zip(*all_, strict=True)] for who, all_ in measured.items()}
    for who, (whole, running, first_s) in medians.items():
        print(f"{name:8} {who:12} {whole:8.0f} {running:8.0f} {first_s:12.2f}")
    (whole, running, first_s), peers = medians["mvray"], medians["torchvision"]
    print(f"{name:8} {'ratio':12} {whole / peers[0]:8.2f} {running / peers[1]:8.2f} {first_s / peers[2]:12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--spreads", type=int, default=160)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, given.spreads)
        sides = {"left": left, "right": right}
        cases = {
            "pages": (Folder(root=str(root / "pages"), **EVERYTHING), root / "pages", {"": lambda page: page}),
            "spreads": (Manga109(root=str(root / "spreads"), **EVERYTHING), root / "spreads" / "images", sides),
        }
        print(f"{given.workers} workers, batches of {given.batch}, median of {ROUNDS} rounds")
        print(f"{'case':8} {'loader':12} {'whole/s':>8} {'running/s':>8} {'first batch s':>12}")
        for name, (source, files, cuts) in cases.items():
            compare(
                name,
                ours(source, given.workers, given.batch),
                theirs(source, files, cuts, given.workers, given.batch),
            )


if __name__ == "__main__":
    main()
