"""A training step of ArcFace with 100,000 classes: ours against pytorch-metric-learning's and insightface's head.

The same network ("resnet-small" at 64 x 64, 512 dimensions), batch, labels and optimiser (SGD with
momentum) for all: forward, loss, backward, a step. insightface's head is its published code written again: both
factors normalised, their product, the margin by cosines and sines put in for the labels. The head alone is
measured too, from given embeddings on. Rounds alternate between all that is compared, each ratio is taken
within a round, and the median round counts. Peak memory is measured in a process of its own for each
row: on CPUs what two steps add to the resident memory that the process had before them, the classes' own
weights (205 MB) not counted; on GPUs what torch allocated in all.

Run: python tests/benchmarks/bench_arcface.py [--classes 100000 --batch 64] [--rounds 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pytorch_metric_learning.losses import ArcFaceLoss
from torch import Tensor

from mvray.nn import margins, networks

DIMENSIONS, MARGIN_RAD, SCALE = 512, 0.5, 64.0
Loss = Callable[[Tensor, Tensor], Tensor]
Head = tuple[list[torch.nn.Parameter], Loss]


def ours(classes: int, device: str) -> Head:
    centres_CE = torch.nn.Parameter(margins.centres(classes, DIMENSIONS).to(device).detach())

    def loss(embedding_BE: Tensor, label_B: Tensor) -> Tensor:
        logits_BC = margins.arcface(margins.cosines(embedding_BE, centres_CE), label_B, MARGIN_RAD, SCALE)
        return torch.nn.functional.cross_entropy(logits_BC, label_B)

    return [centres_CE], loss


def metric_learnings(classes: int, device: str) -> Head:
    head = ArcFaceLoss(classes, DIMENSIONS, margin=math.degrees(MARGIN_RAD), scale=SCALE).to(device)
    return list(head.parameters()), head


def insightfaces(classes: int, device: str) -> Head:
    """recognition/arcface_torch: losses.py, and the product of partial_fc_v2.py on one process."""
    weight_CE = torch.nn.Parameter(torch.normal(0, 0.01, (classes, DIMENSIONS), device=device))

    def loss(embedding_BE: Tensor, label_B: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize
        logits_BC = torch.nn.functional.linear(unit(embedding_BE), unit(weight_CE)).clamp(-1, 1)
        rows = torch.arange(len(label_B), device=label_B.device)
        target_B = logits_BC[rows, label_B]
        moved_B = target_B * math.cos(MARGIN_RAD) - (1 - target_B.square()).sqrt() * math.sin(MARGIN_RAD)
        beyond_B = target_B - math.sin(math.pi - MARGIN_RAD) * MARGIN_RAD
        logits_BC[rows, label_B] = torch.where(target_B > math.cos(math.pi - MARGIN_RAD), moved_B, beyond_B)
        return torch.nn.functional.cross_entropy(logits_BC * SCALE, label_B)

    return [weight_CE], loss


ROWS: Mapping[str, Callable[[int, str], Head]] = {
    "mvray": ours,
    "pytorch-metric-learning": metric_learnings,
    "insightface, plainly": insightfaces,
}


def step_of(title: str, given: argparse.Namespace, alone: bool) -> Callable[[], float]:
    """What is measured: a training step that returns its seconds."""
    torch.manual_seed(0)
    device = given.device
    net = networks.network("resnet-small", DIMENSIONS).to(device, memory_format=torch.channels_last).train()
    images_BCHW = torch.randn(given.batch, 3, 64, 64, device=device).contiguous(memory_format=torch.channels_last)
    embedding_BE = torch.randn(given.batch, DIMENSIONS, device=device, requires_grad=True)
    label_B = torch.randint(given.classes, (given.batch,), device=device)
    weights, loss_of = ROWS[title](given.classes, device)
    optimiser = torch.optim.SGD([*weights, *([] if alone else net.parameters())], 0.01, momentum=0.9)

    def step() -> float:
        begun = time.perf_counter()
        optimiser.zero_grad()
        loss_of(embedding_BE if alone else net(images_BCHW), label_B).backward()
        optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return step


def peak_mb(title: str, given: argparse.Namespace) -> float:
    """Megabytes of two steps, in a process of their own."""
    options = [f"--{name}={getattr(given, name)}" for name in ("classes", "batch", "device", "threads")]
    done = subprocess.run(
        [sys.executable, __file__, *options, f"--memory-of={title}"], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def own_peak_mb(given: argparse.Namespace) -> float:
    step = step_of(given.memory_of, given, alone=False)
    before_mb = highest_resident_mb()
    step()
    step()
    if given.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return highest_resident_mb() - before_mb


def highest_resident_mb() -> float:
    """Of this process; resource.getrusage would give its parent's where that was higher."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def show(given: argparse.Namespace, alone: bool) -> None:
    steps = {title: step_of(title, given, alone) for title in ROWS}
    rounds = [{title: step() for title, step in steps.items()} for _ in range(given.rounds + 1)][1:]
    for title in ROWS:
        median_s = statistics.median(each[title] for each in rounds)
        ratios = [each[title] / each["mvray"] for each in rounds]
        ratio = f"{statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        memory = "" if alone else f"{peak_mb(title, given):8.0f}"
        print(f"{title:30}{1000 * median_s:8.0f}  {ratio:24}{memory}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=tuple(ROWS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory_of:
        print(own_peak_mb(given))
        return
    what = f"{given.classes:,} classes x {DIMENSIONS}, batches of {given.batch}"
    print(f"{given.device}, {given.threads} threads, {what}, median of {given.rounds} rounds")
    for alone, title in ((False, "network and head"), (True, "head alone")):
        print(f"{title:30}{'ms':>8}  {'mvray is faster by':24}{'' if alone else '  add. MB'}")
        show(given, alone)


if __name__ == "__main__":
    main()
