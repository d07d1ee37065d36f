"""Training steps per second with 2 workers: our loop on Ray, our loop under torchrun, and a plain DDP script.

The same network, pictures, batches and optimiser on the same machine in one run. The plain script is what
people write: ImageFolder, DataLoader, DistributedSampler, DistributedDataParallel, SGD; "in memory" is the
same with all pictures decoded before the first epoch, so that nothing but steps is left, while ours go
on reading files. Pictures are stored at the size that the network takes. Rounds alternate; each epoch but
a run's first is one measurement, and the median counts. "CPU s" are CPU seconds per step of the whole
process tree, which other work on the machine disturbs less; validation and checkpoints are in ours.

Run: python tests/benchmarks/bench_training.py [--rounds 1] [--epochs 12]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from mvray import Job
from mvray.data.readers.folder import Folder
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Data, Optim, Scale, Train
from mvray.methods import classifier

HEIGHT, WIDTH, CLASSES, BATCH, STEPS = 146, 104, 4, 16, 60
PICTURES, VALIDATION = 1000, 0.04
OPTIM = Optim(lr=0.001, momentum=0.9, batch_size=BATCH)
BIN = Path(sys.executable).parent


def job(tiny: bool = False) -> Job:
    """One Train step; the command line sets its epochs."""
    pages = Data(
        Folder(train=1 - VALIDATION, validation=VALIDATION, test=0.0), Pictures(height=HEIGHT, width=WIDTH, channels=1)
    )
    config = classifier.Config(network="alexnet-small")
    return Job("training", (Train("only", config, pages, OPTIM, scale=Scale(workers=2, loader_workers=1)),))


def make(root: Path) -> None:
    """Grey pictures of noise and blocks in a folder per class, as JPEG."""
    draw = np.random.default_rng(0)
    for number in range(PICTURES):
        folder = root / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (9, 7), dtype=np.uint8))
        coarse.resize((WIDTH, HEIGHT)).save(folder / f"{number:05d}.jpg")


def plain(root: Path, progress: Path, epochs: int, in_memory: bool) -> None:
    """One rank of the plain script; after each epoch it says how fast it was."""
    import torch
    import torchvision
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader
    from torch.utils.data.distributed import DistributedSampler

    from mvray.nn.networks import alexnet_small

    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    grey_to_three = torchvision.transforms.Grayscale(3)
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    steps = torchvision.transforms.Compose([grey_to_three, torchvision.transforms.ToTensor(), normalise])
    data = torchvision.datasets.ImageFolder(str(root), steps)
    if in_memory:
        images, labels = zip(*data, strict=True)
        data = torch.utils.data.TensorDataset(torch.stack(images), torch.tensor(labels))
    workers = 0 if in_memory else 1
    sampler = DistributedSampler(data, shuffle=True, drop_last=True)
    batches = DataLoader(
        data, BATCH // 2, sampler=sampler, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    model = DistributedDataParallel(alexnet_small(CLASSES))
    optimiser = torch.optim.SGD(model.parameters(), OPTIM.lr, OPTIM.momentum)
    history = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        started, count = time.monotonic(), 0
        for images, labels in batches:
            optimiser.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimiser.step()
            count += 1
        history.append({"samples_per_s": count * BATCH / (time.monotonic() - started), "loss": float(loss)})
        if rank == 0:
            whole = progress.with_suffix(".new")
            whole.write_text(json.dumps({"history": history}))
            whole.rename(progress)


def measured(command: list[str | Path], folder: Path, pattern: str, epochs: int) -> tuple[list[float], float]:
    """Steps per second of each epoch but the first, and CPU seconds per step of those."""
    from bench_startup import cpu_seconds

    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder)
    cpu: dict[int, float] = {}
    history: list[dict[str, float]] = []
    while len(history) < epochs:
        if process.poll() not in (None, 0):
            raise RuntimeError(f"{command[0]} ended with {process.returncode}: {log.read_text()[-3000:]}")
        for file in folder.glob(pattern):
            history = json.loads(file.read_text()).get("history", [])
        if history and process.poll() is None:
            cpu.setdefault(len(history), cpu_seconds(psutil.Process(process.pid)))
        time.sleep(0.05)
    process.wait()
    first, last = min(cpu), max(cpu)
    rates = [row["samples_per_s"] / BATCH for row in history[1:]]
    return rates, (cpu[last] - cpu[first]) / ((last - first) * STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--plain", nargs=2, metavar=("ROOT", "PROGRESS"), help=argparse.SUPPRESS)
    parser.add_argument("--in-memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rank", nargs=2, metavar=("DATA", "STORAGE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    settings = [f"only.optim.epochs={given.epochs}"]
    if given.plain:
        plain(Path(given.plain[0]), Path(given.plain[1]), given.epochs, given.in_memory)
        return
    if given.rank:
        from bench_startup import rank

        rank(Path(__file__), *given.rank, settings)
        return
    names = ("mvray on Ray", "mvray under torchrun", "plain DDP", "plain DDP, in memory")
    speed: dict[str, list[float]] = {who: [] for who in names}
    cost: dict[str, list[float]] = {who: [] for who in speed}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "pictures"
        make(root)
        torchrun = [BIN / "torchrun", "--nproc_per_node", "2", __file__, "--epochs", str(given.epochs)]
        commands: dict[str, tuple[list[str | Path], str]] = {
            "mvray on Ray": (
                [BIN / "mvray", "run", __file__, "--data", root, "--storage", "runs", "--set", settings[0]],
                "runs/only-*/progress.json",
            ),
            "mvray under torchrun": ([*torchrun, "--rank", root, "runs"], "runs/only-*/progress.json"),
            "plain DDP": ([*torchrun, "--plain", root, "progress.json"], "progress.json"),
            "plain DDP, in memory": (
                [*torchrun, "--in-memory", "--plain", root, "progress.json"],
                "progress.json",
            ),
        }
        for number in range(given.rounds):
            for who, (command, pattern) in commands.items():
                place = Path(folder) / f"{number}-{who}"
                place.mkdir()
                rates, cpu = measured(command, place, pattern, given.epochs)
                speed[who] += rates
                cost[who].append(cpu)
    print(f"2 workers, batches of {BATCH}; ratios of mvray on Ray to the others, above 1: mvray is faster or cheaper")
    print(f"{'':24} {'steps/s':>8} {'ratio':>6} {'CPU s/step':>11} {'ratio':>6}")
    rate, cpu = (statistics.median(column["mvray on Ray"]) for column in (speed, cost))
    for who in speed:
        theirs, spent = statistics.median(speed[who]), statistics.median(cost[who])
        print(f"{who:24} {theirs:8.2f} {rate / theirs:6.2f} {spent:11.3f} {spent / cpu:6.2f}")


if __name__ == "__main__":
    main()
