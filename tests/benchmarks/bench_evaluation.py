"""Evaluation of class maps over a whole split: memory and seconds of ours against torchmetrics' loop.

Both take the same truth and predictions, batch after batch: ours is the segmenter's PixelCounts with the state that
ranks add up, theirs MulticlassJaccardIndex(ignore_index=255), updated and computed. Rounds alternate and each ratio is
taken within a round; the median counts. Both must say the same mean IoU, or this ends with an error. Memory is the
peak of this process above where it stood, of a quarter of the pictures and of all of them: flat means that they are
equal. Wanted: 1.

Run: python tests/benchmarks/bench_evaluation.py [--pictures 1449] [--classes 21] [--height 375] [--width 500]
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from mvray.methods.segmenter import PixelCounts

WANTED = 1.0
BATCHES = 4
"""Different ones, used over and over, so that making them costs neither side."""
Batch = tuple[Tensor, Tensor]


def batches(pictures: int, classes: int, height: int, width: int, size: int) -> Iterator[Batch]:
    """Truth and prediction (B x H x W uint8) in blocks, as objects are; a tenth of the truth is 255."""
    generator = torch.Generator().manual_seed(0)
    blocks = size, -(-height // 25), -(-width // 25)
    pairs = []
    for _ in range(BATCHES):
        truth = torch.randint(classes, blocks, generator=generator, dtype=torch.uint8)
        wrong = torch.rand(blocks, generator=generator) < 0.3
        guess = torch.where(wrong, torch.randint(classes, blocks, generator=generator, dtype=torch.uint8), truth)
        truth = truth.masked_fill(torch.rand(blocks, generator=generator) < 0.1, 255)
        large = [part.repeat_interleave(25, 1).repeat_interleave(25, 2) for part in (truth, guess)]
        pairs.append((large[0][:, :height, :width].contiguous(), large[1][:, :height, :width].contiguous()))
    for number, first in enumerate(range(0, pictures, size)):
        truth, guess = pairs[number % BATCHES]
        yield truth[: pictures - first], guess[: pictures - first]


def ours(given: argparse.Namespace, pictures: int) -> float:
    evaluation = PixelCounts(given.classes, "mask")
    for truth, guess in batches(pictures, given.classes, given.height, given.width, given.batch):
        evaluation.update({"mask": truth}, {"classes": guess})
    return evaluation.compute(evaluation.joined([evaluation.state()]))["mean_iou"]


def theirs(given: argparse.Namespace, pictures: int) -> float:
    metric = MulticlassJaccardIndex(num_classes=given.classes, ignore_index=255)
    for truth, guess in batches(pictures, given.classes, given.height, given.width, given.batch):
        metric.update(guess.long(), truth.long())
    return float(metric.compute())


def peak_mb(run: Callable[[], float]) -> float:
    """How far memory rises above where it stands."""
    process, ended = psutil.Process(), threading.Event()
    start = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.002):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    ended.set()
    watcher.join()
    return (most - start) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1449)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for run in (ours, theirs):
        run(given, BATCHES * given.batch)  # the first call pays for what is made once
    rounds: list[tuple[float, float]] = []
    for _ in range(given.rounds):
        seconds, values = [], []
        for run in (ours, theirs):
            began = time.perf_counter()
            values.append(run(given, given.pictures))
            seconds.append(time.perf_counter() - began)
        if abs(values[0] - values[1]) > 1e-5:
            raise SystemExit(f"mean IoU: mvray {values[0]:.7f}, torchmetrics {values[1]:.7f}; expected the same.")
        rounds.append((seconds[0], seconds[1]))
    ratios = [theirs_s / ours_s for ours_s, theirs_s in rounds]
    print(
        f"{given.pictures} x {given.classes} classes x {given.height} x {given.width}, batches of {given.batch}, "
        f"{given.threads} threads, median of {given.rounds} rounds; mean IoU of both {values[0]:.5f}"
    )
    for name, numbers in zip(("mvray", "torchmetrics"), zip(*rounds, strict=True), strict=True):
        run = ours if name == "mvray" else theirs
        peaks = [
            peak_mb(lambda run=run, count=count: run(given, count)) for count in (given.pictures // 4, given.pictures)
        ]
        print(
            f"{name:14}{statistics.median(numbers):7.2f} s   peak MB of a quarter {peaks[0]:.0f}, of all {peaks[1]:.0f}"
        )
    print(
        f"mvray is faster by {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), wanted {WANTED}"
    )


if __name__ == "__main__":
    main()
