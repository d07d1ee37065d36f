"""Instance masks, frames per second: our generator with Detectron2 against a loop over its DefaultPredictor.

The same Mask R-CNN R50-FPN with the same weights (random, made to find --instances in each frame: see
tests/generators/segmenters/lively.py), the same frames of UCF101's size, the same device and threads, in one run.
Ours ends with a table of run lengths; the loop ends with masks as numpy arrays and, second figure, with
these as run lengths. Rounds alternate and each ratio is taken within a round, so what else the machine
does falls on all; the median round counts. "one by one" is ours given a frame at a time: what is left
when no frames are worked on side by side.

The masks are compared too: the least IoU of all instances is printed. On one thread, which each of our
frames has on a CPU; beside it DefaultPredictor's own on one thread and on all: a sum in another order is
other masks where weights are random.

Run: python tests/benchmarks/bench_masks.py [--frames 8] [--rounds 5] [--short-side 800] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from mvray.data import rle
from mvray.experiment.contracts import Frame
from mvray.generators.instance_masks import Config, InstanceMasks
from mvray.generators.segmenters import detectron2 as ours

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests/generators/segmenters")]
sys.path.append(str(ROOT / ".venv/detectron2"))
from lively import CONFIG, frame, make_lively  # noqa: E402

HEIGHT, WIDTH = 240, 320
WANTED = 1.3
"""On a CPU with 2 cores."""
Run = Callable[[], Any]


def peers(options: tuple[str, ...], folder: Path, device: str) -> tuple[Any, InstanceMasks]:
    """DefaultPredictor, and our generator with the same weights."""
    from detectron2 import model_zoo
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultPredictor

    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(CONFIG))
    cfg.merge_from_list(list(options))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, ""
    torch.manual_seed(0)
    predictor = DefaultPredictor(cfg)
    make_lively(predictor, frame(0, HEIGHT, WIDTH))
    weights = str(folder / "lively.pth")
    torch.save({"model": predictor.model.state_dict()}, weights)
    generator = Config(segmenter=ours.Config(weights=weights, options=options)).build(None, Path.read_bytes)
    assert isinstance(generator, InstanceMasks)
    return predictor, generator


def measured(predictor: Any, generator: InstanceMasks, frames: list[Frame], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round, after one round to warm up."""
    masks: list[np.ndarray] = []

    def loop() -> None:
        masks[:] = [predictor(each.pixels[:, :, ::-1])["instances"].pred_masks.cpu().numpy() for each in frames]

    def encoding() -> None:
        for found in masks:
            rle.encode(torch.from_numpy(found))

    compared: dict[str, Run] = {
        "mvray": lambda: generator(frames),
        "one by one": lambda: [generator([each]) for each in frames],
        "DefaultPredictor": loop,
        "and run lengths": encoding,
    }
    found: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(rounds + 1):
        for name, run in compared.items():
            begun = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - begun)
        found["and run lengths"][-1] += found["DefaultPredictor"][-1]
    return {name: seconds[1:] for name, seconds in found.items()}


def their_masks(predictor: Any, frames: list[Frame], threads: int) -> list[np.ndarray]:
    """DefaultPredictor's masks of each frame, N x H x W, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [predictor(each.pixels[:, :, ::-1])["instances"].pred_masks.cpu().numpy() for each in frames]
    finally:
        torch.set_num_threads(before)


def least_iou(found: list[np.ndarray], others: list[np.ndarray]) -> float:
    """The least IoU between an instance and the same of the others, frame by frame."""
    least = 1.0
    for mine_NHW, theirs_NHW in zip(found, others, strict=True):
        both, either = (mine_NHW & theirs_NHW).sum((1, 2)), (mine_NHW | theirs_NHW).sum((1, 2))
        least = min([least, *(both[either > 0] / either[either > 0]).tolist()])
    return least


def show(found: dict[str, list[float]], frames: int) -> None:
    print(f"{'':20}{'frames/s':>10}  mvray is faster by")
    for name, seconds in found.items():
        ratios = [each / mine for each, mine in zip(seconds, found["mvray"], strict=True)]
        rate = frames / statistics.median(seconds)
        wanted = f"wanted {WANTED}" if name == "DefaultPredictor" else ""
        print(
            f"{name:20}{rate:10.3f}  {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})  {wanted}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--short-side", type=int, default=800, help="pixels; 800 is Detectron2's default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: skipped")
        return
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")  # Detectron2's, of its year
    frames = [Frame(f"{at // 4}.avi", at % 4, frame(at + 1, HEIGHT, WIDTH)) for at in range(given.frames)]
    options = ("INPUT.MIN_SIZE_TEST", str(given.short_side), "TEST.DETECTIONS_PER_IMAGE", str(given.instances))
    with tempfile.TemporaryDirectory() as folder:
        predictor, generator = peers(options, Path(folder), given.device)
        print(
            f"{given.device}, {given.threads} threads, {given.frames} frames of {WIDTH} x {HEIGHT} at "
            f"{given.short_side}, median of {given.rounds} rounds"
        )
        show(measured(predictor, generator, frames, given.rounds), given.frames)
        table = generator(frames)
        pq.write_table(table, Path(folder, "00000.parquet"), compression="zstd")
        stored = Path(folder, "00000.parquet").stat().st_size / given.frames
        instances = sum(map(len, table["masks"].to_pylist())) / given.frames
    print(f"{instances:.1f} instances and {stored:.0f} bytes of Parquet per frame")
    ours_of = [rle.decode([one["rle"] for one in row], HEIGHT, WIDTH) for row in table["masks"].to_pylist()]
    alone, together = (their_masks(predictor, frames, threads) for threads in (1, given.threads))
    print(f"least IoU of an instance with DefaultPredictor's on one thread: {least_iou(ours_of, alone):.4f}")
    print(f"DefaultPredictor's on one thread and on {given.threads}: {least_iou(alone, together):.4f}")


if __name__ == "__main__":
    main()
