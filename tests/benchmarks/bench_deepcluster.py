"""A DeepCluster epoch, seconds: ours in the training loop against the same written plainly with faiss.

The same pictures, network, batches, clusters and threads, each in one process. The plain script is what the authors
published, brought up to date: ImageFolder and DataLoader, features in one array, faiss for PCA and k-means, a list of
drawn samples, SGD. Ours also validates and writes a checkpoint. The first epoch of a run is left out; rounds alternate
and each ratio is taken within a round, the median counts. "outside" is the share of an epoch that is not training.

Run: python tests/benchmarks/bench_deepcluster.py [--pictures 4000] [--clusters 300] [--rounds 3] [--epochs 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from mvray.data.readers.folder import Folder
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import LAST, Data, Optim, Scale, Train
from mvray.methods import deepcluster
from mvray.training.environment import Local

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests")]

SIDE, KINDS, BATCH, LR, ITERATIONS, CROP = 64, 20, 64, 0.02, 20, (0.6, 1.0)
LOADERS = 2
PARTS = ("features", "pca", "kmeans")
WHO = ("mvray", "plain")


def make(root: Path, pictures: int) -> None:
    """Grey pictures: patterns of several kinds in noise, as JPEG."""
    draw = np.random.default_rng(0)
    tiles = np.kron(draw.integers(0, 2, (KINDS, 8, 8)), np.ones((2, 2))) * 120
    for number in range(pictures):
        folder = root / f"kind{number % KINDS:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        pattern = np.roll(np.tile(tiles[number % KINDS], (4, 4)), draw.integers(0, 16, 2), (0, 1))
        Image.fromarray((pattern + draw.integers(0, 100, (SIDE, SIDE))).astype(np.uint8)).save(
            folder / f"{number:05d}.jpg", quality=90
        )


class Watched(Local):
    """Remembers when each epoch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def report(self, task: object, metrics: Mapping[str, float]) -> bool:
        self.rows.append({**metrics, "at": time.perf_counter()})
        return True


def ours(root: Path, place: Path, clusters: int, components: int, epochs: int) -> list[dict[str, float]]:
    from toys import task

    from mvray.training.loop import train

    data = Data(
        Folder(root=str(root), train=0.99, validation=0.01, test=0.0), Pictures(SIDE, SIDE, 1, True, crop_scale=CROP)
    )
    config = deepcluster.Config(
        network="vgg-small", clusters=clusters, components=components, iterations=ITERATIONS, dropout=0.2
    )
    optim = Optim(lr=LR, momentum=0.9, batch_size=BATCH, epochs=epochs)
    step = Train("step", config, data, optim, select=LAST, scale=Scale(loader_workers=LOADERS))
    here = Watched()
    train(task(step, place), here)
    return [
        {"epoch": row["at"] - before["at"], **{name: row[f"epoch/seconds_{name}"] for name in PARTS}}
        for before, row in zip(here.rows, here.rows[1:], strict=False)
    ]


def plain(root: Path, clusters: int, components: int, epochs: int) -> list[dict[str, float]]:
    import faiss
    import torch
    import torchvision
    from torch.utils.data import DataLoader

    from mvray.nn import networks

    faiss.omp_set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    last = [
        torchvision.transforms.Grayscale(3),
        torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    augment = [
        torchvision.transforms.RandomResizedCrop(SIDE, CROP),
        torchvision.transforms.RandomHorizontalFlip(),
    ]
    whole = torchvision.datasets.ImageFolder(str(root), torchvision.transforms.Compose(last))
    files = [path for path, _ in whole.samples]
    model = networks.network("vgg-small", clusters)
    optimiser = torch.optim.SGD(model.parameters(), LR, 0.9)
    rows = []
    for _ in range(epochs):
        marks = [time.perf_counter()]
        head = model.classifier[-1]
        body = torch.nn.Sequential(model.features, model.avgpool, *list(model.classifier)[:-3]).eval()
        with torch.no_grad():
            loader = DataLoader(whole, BATCH, num_workers=LOADERS)
            features = torch.cat([body(images) for images, _ in loader]).numpy()
        marks.append(time.perf_counter())
        reduce = faiss.PCAMatrix(features.shape[1], components, -0.5)
        reduce.train(features)
        points = reduce.apply(features)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        marks.append(time.perf_counter())
        made = faiss.Kmeans(
            components, clusters, niter=ITERATIONS, seed=np.random.randint(1234), max_points_per_centroid=len(points)
        )
        made.train(points)
        label = made.index.search(points, 1)[1][:, 0]
        marks.append(time.perf_counter())
        members = [np.flatnonzero(label == each) for each in range(clusters)]
        used = [each for each in members if len(each)]
        drawn = np.concatenate([np.random.choice(each, len(label) // len(used) + 1) for each in used])
        np.random.shuffle(drawn)
        drawn = drawn[: len(label)]
        train_set = torchvision.datasets.ImageFolder(str(root), torchvision.transforms.Compose([*augment, *last]))
        train_set.samples = [(files[row], int(label[row])) for row in drawn]
        torch.nn.init.normal_(head.weight, std=0.01)
        torch.nn.init.zeros_(head.bias)
        model.train()
        for images, labels in DataLoader(train_set, BATCH, num_workers=LOADERS, drop_last=True):
            optimiser.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
        marks.append(time.perf_counter())
        rows.append({"epoch": marks[-1] - marks[0], **dict(zip(PARTS, np.diff(marks).tolist(), strict=False))})
    return rows[1:]


def measured(who: str, root: Path, place: Path, given: argparse.Namespace) -> dict[str, float]:
    """Medians over the epochs of one run but the first."""
    sizes = [str(each) for each in (given.clusters, given.components, given.epochs)]
    command = [sys.executable, __file__, "--run", who, str(root), str(place), *sizes]
    environ = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def show(found: dict[str, list[dict[str, float]]]) -> None:
    print(f"{'seconds':10}" + "".join(f"{name:>10}" for name in ("epoch", *PARTS)) + "   outside  mvray is faster by")
    for who, rounds in found.items():
        ratios = [each["epoch"] / mine["epoch"] for each, mine in zip(rounds, found["mvray"], strict=True)]
        middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        outside = sum(middle[name] for name in PARTS) / middle["epoch"]
        print(
            f"{who:10}" + "".join(f"{middle[name]:10.2f}" for name in ("epoch", *PARTS)) + f"{outside:10.0%}"
            f"  {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--clusters", type=int, default=300)
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", nargs=6, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        who, root, place, *sizes = given.run
        numbers = [int(each) for each in sizes]
        rows = ours(Path(root), Path(place), *numbers) if who == "mvray" else plain(Path(root), *numbers)
        print(json.dumps(rows))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "pictures"
        make(root, given.pictures)
        found: dict[str, list[dict[str, float]]] = {who: [] for who in WHO}
        for number in range(given.rounds):
            for who, rounds in found.items():
                rounds.append(measured(who, root, Path(folder) / f"{who}{number}", given))
    print(
        f"{given.pictures} pictures of {SIDE} x {SIDE}, vgg-small, {given.clusters} clusters in {given.components} "
        f"dimensions, {given.threads} threads, median of {given.rounds} rounds"
    )
    show(found)


if __name__ == "__main__":
    main()
