"""The fully connected CRF, seconds a picture: ours against pydensecrf2 on the same scores and picture.

Both make the two lattices and all iterations of mean field inference; the settings are CRF's own. Rounds alternate
and each ratio is taken within a round, so what else the machine does falls on both; the median counts. CPU seconds
are of all threads, which other work on the machine disturbs less. pydensecrf2 uses one thread. On a GPU ours is
measured there, pictures of ``--batch`` together.

pydensecrf2 is an sdist: pip install cython setuptools wheel; pip install --no-build-isolation pydensecrf2, in a virtual
environment of its own. Without it ours is measured alone.

Run: python tests/benchmarks/bench_crf.py [--classes 21] [--height 320] [--width 480] [--threads 1] [--rounds 5]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_sample_image

from mvray.nn import CRF, marginals

WANTED = 1.0
"""Of ours on CPUs; 5 on a GPU."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sample(classes: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A photo (1 x 3 x H x W uint8) and scores (1 x K x H x W) for parts by brightness, with noise in blocks of 8."""
    photo_HW3 = torch.from_numpy(load_sample_image("china.jpg")[40 : 40 + height, 60 : 60 + width].copy())
    labels_HW = photo_HW3.sum(2) // 40 % classes
    noise = torch.randn(1, classes, -(-height // 8), -(-width // 8), generator=torch.Generator().manual_seed(0))
    noise = noise.repeat_interleave(8, 2).repeat_interleave(8, 3)[..., :height, :width]
    scores_1KHW = 1.5 * noise + 2 * torch.nn.functional.one_hot(labels_HW.long(), classes).permute(2, 0, 1)
    return scores_1KHW, photo_HW3.permute(2, 0, 1)[None].contiguous()


def theirs(scores_1KHW: torch.Tensor, photo_13HW: torch.Tensor, settings: CRF) -> np.ndarray:
    from pydensecrf.densecrf import DenseCRF2D

    _, classes, height, width = scores_1KHW.shape
    peer = DenseCRF2D(width, height, classes)
    peer.setUnaryEnergy(np.ascontiguousarray(-scores_1KHW[0].log_softmax(0).flatten(1).numpy()))
    peer.addPairwiseGaussian(sxy=settings.gaussian_width, compat=settings.gaussian_weight)
    peer.addPairwiseBilateral(
        sxy=settings.position_width,
        srgb=settings.colour_width,
        rgbim=np.ascontiguousarray(photo_13HW[0].permute(1, 2, 0).numpy()),
        compat=settings.bilateral_weight,
    )
    return np.array(peer.inference(settings.iterations)).reshape(classes, height, width)


def spent(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = CRF(iterations=given.iterations)
    scores, photo = sample(given.classes, given.height, given.width)
    batch = [each.expand(given.batch, -1, -1, -1).to(DEVICE) for each in (scores, photo)]
    runs: dict[str, Callable[[], object]] = {"mvray": lambda: marginals(batch[0], batch[1], settings)}
    if importlib.util.find_spec("pydensecrf"):
        runs["pydensecrf2"] = lambda: theirs(scores, photo, settings)
        found, expected = marginals(scores, photo, settings)[0].numpy(), theirs(scores, photo, settings)
        equal, apart = (found.argmax(0) == expected.argmax(0)).mean(), np.abs(found - expected)
        print(f"labels equal {100 * equal:.3f} %, probabilities apart {apart.mean():.1e} (at most {apart.max():.1e})")
    rounds: dict[str, list[tuple[float, float]]] = {who: [] for who in runs}
    spent(runs["mvray"])
    for _ in range(given.rounds):
        for who, run in runs.items():
            share = given.batch if who == "mvray" else 1
            wall, cpu = spent(run)
            rounds[who].append((wall / share, cpu / share))
    print(
        f"{given.classes} x {given.height} x {given.width}, {given.iterations} iterations, {DEVICE}, {given.threads} "
        f"threads, median of {given.rounds} rounds"
    )
    print(f"{'':14}{'seconds':>9}{'cpu':>9}  mvray is faster by; in CPU seconds")
    for who, numbers in rounds.items():
        wall, cpu = (statistics.median(column) for column in zip(*numbers, strict=True))
        pairs = zip(numbers, rounds["mvray"], strict=True)
        ratios = [(each[0] / own[0], each[1] / own[1]) for each, own in pairs]
        walls, cpus = ([ratio[at] for ratio in ratios] for at in (0, 1))
        spread = f"{statistics.median(walls):.2f} ({min(walls):.2f} to {max(walls):.2f}); {statistics.median(cpus):.2f}"
        wanted = "" if who == "mvray" else f"  wanted {WANTED if DEVICE == 'cpu' else 5.0}"
        print(f"{who:14}{wall:9.3f}{cpu:9.3f}  {spread}{wanted}")


if __name__ == "__main__":
    main()
