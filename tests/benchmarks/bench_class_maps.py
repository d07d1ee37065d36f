"""Class maps decoded per second, from files: our readers against Pillow with torchvision.

Sample segments of VOC's size, one thread, one process; both read every file in turns, and the median of the rounds'
ratios counts. Both results are compared.

  palette  VOC2012.read_target, which also refuses values that are no class, against
           PILToTensor()(Image.open(file)), as torchvision's VOCSegmentation with its reference transforms
  colours  Pairs.read_target with colours.txt against Image.open(file).convert("RGB") and a comparison for each colour

Run: python tests/benchmarks/bench_class_maps.py [--pictures 40] [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from mvray.data.palette import colours
from mvray.data.readers import VOC2012, Pairs
from mvray.data.synthetic import segments
from mvray.experiment import IGNORE

SIZE = 500
Read = Callable[[str], np.ndarray]


def make(root: Path, pictures: int) -> list[str]:
    """Sample segments below root/voc, their class maps as colours below root/pairs; the files' names."""
    segments.compose(root / "voc", pictures=pictures, size=SIZE)
    (root / "pairs/masks").mkdir(parents=True)
    named = [*zip(range(len(segments.CLASSES)), segments.CLASSES, strict=True), (IGNORE, "ignore")]
    lines = [f"{' '.join(map(str, colours()[class_]))} {name}" for class_, name in named]
    (root / "pairs/colours.txt").write_text("\n".join(lines))
    files = sorted((root / "voc/SegmentationClass").iterdir())
    for file in files:
        Image.open(file).convert("RGB").save(root / "pairs/masks" / file.name)
    return [file.name for file in files]


def by_torchvision(root: Path) -> Read:
    to_tensor = v2.PILToTensor()
    return lambda name: to_tensor(Image.open(root / "voc/SegmentationClass" / name))[0].numpy()


def by_comparison(root: Path) -> Read:
    of_class = {i: colours()[i] for i in (*range(1, len(segments.CLASSES)), IGNORE)}

    def read(name: str) -> np.ndarray:
        rgb_HWC = np.asarray(Image.open(root / "pairs/masks" / name).convert("RGB"))
        classes_HW = np.zeros(rgb_HWC.shape[:2], np.uint8)
        for class_, colour in of_class.items():
            classes_HW[(rgb_HWC == colour).all(2)] = class_
        return classes_HW

    return read


def seconds(ours: Read, theirs: Read, names: Sequence[str]) -> tuple[float, float]:
    """What each takes for all files, file by file in turns: what else the machine does falls on both."""
    ours_s = theirs_s = 0.0
    for name in names:
        begun = time.perf_counter()
        ours(name)
        middle = time.perf_counter()
        theirs(name)
        ours_s, theirs_s = ours_s + middle - begun, theirs_s + time.perf_counter() - middle
    return ours_s, theirs_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = make(root, options.pictures)
        voc, pairs = VOC2012(root=str(root / "voc")), Pairs(root=str(root / "pairs"))
        cases: dict[str, tuple[Read, Read]] = {
            "palette": (
                lambda name: voc.read_target(f"SegmentationClass/{name}", "mask"),
                by_torchvision(root),
            ),
            "colours": (lambda name: pairs.read_target(f"masks/{name}", "mask"), by_comparison(root)),
        }
        print(f"{len(names)} class maps, up to {SIZE} x {SIZE}, one thread, median of {options.rounds} rounds")
        print(f"{'case':10}{'mvray/s':>10}{'Pillow + torchvision/s':>24}{'ratio':>8}  wanted 1")
        for case, (ours, theirs) in cases.items():
            assert all(np.array_equal(ours(name), theirs(name)) for name in names)
            rounds = [seconds(ours, theirs, names) for _ in range(options.rounds)]
            mine, peer = (len(names) / statistics.median(times) for times in zip(*rounds, strict=True))
            ratio = statistics.median(theirs_s / ours_s for ours_s, theirs_s in rounds)
            print(f"{case:10}{mine:10.0f}{peer:24.0f}{ratio:8.2f}", flush=True)


if __name__ == "__main__":
    main()
