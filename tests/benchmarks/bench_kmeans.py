"""K-means, seconds: ours with one worker and with two, against faiss and scikit-learn's Lloyd on the same points.

The points are what DeepCluster clusters: features of a mixture of 1,222 classes through a random network, whitened
and of length 1. All begin with the same points as centroids, make at most --iterations iterations, and end with
labels for the final centroids. "1 worker" is one process on --threads threads, "2 workers" are two processes on one
thread each with half of the points, that add up over gloo. Each runs in a process of its own. Rounds alternate and
each ratio is taken within a round, so what else the machine does falls on all; the median counts. Peak memory is what
the process of a worker needs beyond what it has when its points are loaded; CPU seconds are of all threads and workers,
which other work on the machine disturbs less.

Run: python tests/benchmarks/bench_kmeans.py [--points 77000] [--clusters 3000] [--iterations 20] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WANTED = 1.0
"""Of ours with one worker against faiss, on as many threads, with an inertia within 1 %."""
WHO = ("mvray, 1 worker", "mvray, 2 workers", "faiss", "scikit-learn")
CLASSES, LATENT, FEATURES = 1222, 64, 512


def make(file: Path, points: int, dims: int, clusters: int) -> None:
    """Points, and the numbers of those that k-means begins with: ours chooses them."""
    import torch

    from mvray.nn import whitening
    from mvray.nn.k_means import kmeans

    rand = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, LATENT, generator=rand)
    features = centres[torch.randint(0, CLASSES, (points,), generator=rand)]
    features = features + torch.randn(points, LATENT, generator=rand)
    for size in (LATENT, FEATURES):
        layer = torch.randn(size, FEATURES, generator=rand) * (2 / size) ** 0.5
        features = torch.relu(features @ layer)
    points_ND = whitening.fit(features, dims, rank=0, sum_over_ranks=lambda tensor: tensor)(features)
    numbers = torch.arange(points)
    start = kmeans(
        points_ND, numbers, points, clusters, seed=0, sum_over_ranks=lambda tensor: tensor, iterations=0
    ).centroids
    np.save(file.with_suffix(".points.npy"), points_ND.numpy())
    np.save(file.with_suffix(".start.npy"), start.numpy())


def ours(points: np.ndarray, start: np.ndarray, iterations: int, rank: int, world: int, port: int) -> dict[str, float]:
    import torch

    from mvray.nn.k_means import kmeans

    def reduced(tensor: torch.Tensor) -> torch.Tensor:
        if world > 1:
            tensor = tensor.clone()
            torch.distributed.all_reduce(tensor)
        return tensor

    if world > 1:
        place = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
        reduced(torch.zeros(1))
    share = torch.arange(rank * len(points) // world, (rank + 1) * len(points) // world)
    mine = torch.from_numpy(points[share[0] : share[-1] + 1].copy())
    reduced(torch.zeros(1))
    spent = Spent()
    found = kmeans(mine, share, len(points), len(start), seed=0, sum_over_ranks=reduced, iterations=iterations)
    return {**spent.now(), "inertia": found.inertia, "iterations": found.iterations}


def faiss(points: np.ndarray, start: np.ndarray, iterations: int, threads: int) -> dict[str, float]:
    """As DeepCluster's authors use it: train, then search for the labels."""
    import faiss as library

    library.omp_set_num_threads(threads)
    many = len(points)
    made = library.Kmeans(points.shape[1], len(start), niter=iterations, max_points_per_centroid=many)
    spent = Spent()
    made.train(points, init_centroids=start)
    distances, _ = made.index.search(points, 1)
    return {**spent.now(), "inertia": float(distances.sum(dtype=np.float64)), "iterations": len(made.obj)}


def scikit_learn(points: np.ndarray, start: np.ndarray, iterations: int, threads: int) -> dict[str, float]:
    import warnings

    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    warnings.simplefilter("ignore")
    with threadpool_limits(threads):
        made = KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd", copy_x=False)
        spent = Spent()
        made.fit(points)
        found = spent.now()
    return {**found, "inertia": made.inertia_, "iterations": made.n_iter_}


def resident_mb(name: str) -> float:
    """Memory of this process as Linux counts it: VmRSS now, VmHWM the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


class Spent:
    """Wall seconds, CPU seconds and memory of this process since it was made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        self.before_mb, self.wall, self.cpu = resident_mb("VmRSS"), time.perf_counter(), time.process_time()

    def now(self) -> dict[str, float]:
        seconds, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"seconds": seconds, "cpu": cpu, "peak_mb": resident_mb("VmHWM") - self.before_mb}


def worker(who: str, file: Path, iterations: int, rank: int, port: int) -> None:
    """One measurement, in a process of its own, printed as JSON."""
    points, start = (np.load(file.with_suffix(f".{name}.npy")) for name in ("points", "start"))
    threads = int(os.environ["OMP_NUM_THREADS"])
    if who.startswith("mvray"):
        found = ours(points, start, iterations, rank, int(who.split()[1]), port)
    else:
        found = (faiss if who == "faiss" else scikit_learn)(points, start, iterations, threads)
    print(json.dumps(found))


def measured(who: str, file: Path, iterations: int, threads: int) -> dict[str, float]:
    """The slowest worker's seconds and the most memory of one."""
    world = 2 if "2 workers" in who else 1
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, __file__, "--iterations", str(iterations), "--worker", who, str(file), str(port)]
    environ = {**os.environ, "OMP_NUM_THREADS": str(max(1, threads // world))}
    started = [
        subprocess.Popen([*command, str(rank)], env=environ, stdout=subprocess.PIPE, text=True) for rank in range(world)
    ]
    said = [each.communicate()[0] for each in started]
    if any(each.returncode for each in started):
        raise RuntimeError(f"{who} failed")
    results: list[dict[str, Any]] = [json.loads(text.splitlines()[-1]) for text in said]
    most = {name: max(each[name] for each in results) for name in results[0]}
    return {**most, "cpu": sum(each["cpu"] for each in results)}


def show(found: dict[str, list[dict[str, float]]]) -> None:
    columns = ("seconds", "cpu", "iterations", "inertia", "peak_mb")
    print(f"{'':18}" + "".join(f"{name:>11}" for name in columns) + "  mvray, 1 worker, is faster by; in CPU seconds")
    own = found["mvray, 1 worker"]
    for who, rounds in found.items():
        middle = "".join(f"{statistics.median(each[name] for each in rounds):11.1f}" for name in columns)
        wall, cpu = (
            [each[name] / mine[name] for each, mine in zip(rounds, own, strict=True)] for name in ("seconds", "cpu")
        )
        wanted = f"  wanted {WANTED}" if who == "faiss" else ""
        spread = f"{statistics.median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f})"
        print(f"{who:18}{middle}  {spread}; {statistics.median(cpu):.2f}{wanted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=77_000)
    parser.add_argument("--dims", type=int, default=256)
    parser.add_argument("--clusters", type=int, default=3000)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", nargs=4, metavar=("WHO", "FILE", "PORT", "RANK"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        who, file, port, rank = given.worker
        worker(who, Path(file), given.iterations, int(rank), int(port))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kmeans"
        make(file, given.points, given.dims, given.clusters)
        print(
            f"{given.points} points x {given.dims}, {given.clusters} clusters, at most {given.iterations} iterations, "
            f"{given.threads} threads, median of {given.rounds} rounds"
        )
        found: dict[str, list[dict[str, float]]] = {who: [] for who in WHO}
        for _ in range(given.rounds):
            for who, rounds in found.items():
                rounds.append(measured(who, file, given.iterations, given.threads))
    show(found)


if __name__ == "__main__":
    main()
