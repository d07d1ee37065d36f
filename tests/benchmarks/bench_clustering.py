"""UMAP to 32 dimensions and HDBSCAN, seconds and memory: ours against umap-learn and the hdbscan package.

Each in a process of its own, as a job or `mvray group` starts: "start" is import and compilation (on 100
vectors), then all vectors are reduced and grouped. The peer is what one writes at first: UMAP(n_components=32,
min_dist=0.0) and hdbscan.HDBSCAN(min_cluster_size=10, min_samples=1), once with a seed, as results that can be
repeated need (ours always has one), and once without, where UMAP uses all cores. Rounds alternate and each ratio
is taken within a round. AMI is against the people that the vectors were made of, and against ours.

The vectors resemble faces: people of very different frequency, whose poses are shared directions with heavy
tails, through a random layer with ReLU. Beside that, as many works as a paper's table has (--works, each of
--faces) by Clusters, which groups them side by side, against one after another.

Run: python tests/benchmarks/bench_clustering.py [--vectors 20000] [--rounds 1] [--works 11] [--faces 700]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

NEEDED = 1.0
"""How many times as fast as the seeded peer ours must be."""
RUNS = ("mvray", "plain, seed", "plain")
PARTS = ("start", "UMAP", "HDBSCAN")


def faces(samples: int, people: int, dimensions: int = 512, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, N x D float32, and the person of each."""
    rand = np.random.default_rng(seed)
    share = np.arange(1, people + 1) ** -0.9
    person_N = rand.choice(people, samples, p=share / share.sum())
    centres = rand.normal(size=(people, 64))
    poses_NP = rand.standard_t(4, size=(samples, 24))
    hidden_N64 = centres[person_N] + 0.25 * poses_NP @ rand.normal(size=(24, 64)) + rand.normal(size=(samples, 64))
    layer = rand.normal(size=(64, dimensions)) / 8
    vectors_ND = hidden_N64 @ layer + 0.1 * rand.normal(size=dimensions) + 0.2 * rand.normal(size=(samples, dimensions))
    return np.maximum(vectors_ND, 0).astype(np.float32), person_N


def ours(vectors_ND: np.ndarray) -> tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]:
    from mvray.metrics.clustering import Hdbscan
    from mvray.metrics.reduction import Umap

    return lambda v: Umap().reduced(v, 0), lambda p: Hdbscan().labels(p.astype(float), 0, None)


def plain(seed: int | None) -> tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]:
    import hdbscan
    import umap

    return (
        lambda v: umap.UMAP(n_components=32, min_dist=0.0, random_state=seed).fit_transform(v),
        lambda p: hdbscan.HDBSCAN(min_cluster_size=10, min_samples=1).fit_predict(p),
    )


def one(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: seconds of each part, the growth of memory in MB, and the labels."""
    warnings.simplefilter("ignore")
    vectors_ND, _ = faces(given.vectors, given.people)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    reduce, group = ours(vectors_ND) if name == "mvray" else plain(0 if "seed" in name else None)
    group(reduce(vectors_ND[:100]))
    started = time.perf_counter()
    points_Nd = reduce(vectors_ND)
    reduced = time.perf_counter()
    labels = group(points_Nd)
    ended = time.perf_counter()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = dict(zip(PARTS, (started - begun, reduced - started, ended - reduced), strict=True))
    return {**seconds, "MB": grown, "labels": labels.tolist()}


def works(given: argparse.Namespace) -> None:
    """Clusters over all works, against the same one after another."""
    import pyarrow as pa

    from mvray.metrics.clustering import Clusters, group_vectors

    made = [faces(given.faces, max(5, given.faces // 30), seed=work) for work in range(given.works)]
    vectors, label = (np.concatenate(parts) for parts in zip(*made, strict=True))
    table = pa.table(
        {
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
            "label": label,
            "group": [f"work {at // given.faces}" for at in range(len(label))],
            "key": [str(at) for at in range(len(label))],
        }
    )
    group_vectors(vectors[:100])
    begun = time.perf_counter()
    Clusters("vector", "hdbscan")(table, ())
    together = time.perf_counter() - begun
    begun = time.perf_counter()
    for each, _ in made:
        group_vectors(each)
    alone = time.perf_counter() - begun
    print(f"{given.works} works of {given.faces}: {together:.1f} s with Clusters, {alone:.1f} s one after another")


def show(found: dict[str, list[dict[str, Any]]], given: argparse.Namespace) -> None:
    from mvray.metrics.clustering import agreement

    _, person_N = faces(given.vectors, given.people)
    print(
        f"{'':12}"
        + "".join(f"{part:>9}" for part in PARTS)
        + "   total       MB    AMI  AMI with ours  ours is faster by"
    )
    own = [sum(run[part] for part in PARTS) for run in found["mvray"]]
    for name, runs in found.items():
        totals = [sum(run[part] for part in PARTS) for run in runs]
        ratios = [total / mine for total, mine in zip(totals, own, strict=True)]
        labels, mine = np.array(runs[0]["labels"]), np.array(found["mvray"][0]["labels"])
        scores = agreement(person_N, labels)["ami"], agreement(mine + 1, labels)["ami"]
        needed = f"needed {NEEDED}" if "seed" in name else ""
        print(
            f"{name:12}"
            + "".join(f"{statistics.median(run[part] for run in runs):9.1f}" for part in PARTS)
            + f"{statistics.median(totals):8.1f} {statistics.median(run['MB'] for run in runs):8.0f} {scores[0]:6.3f}"
            + f" {scores[1]:14.3f} {statistics.median(ratios):10.2f} ({min(ratios):.2f} to {max(ratios):.2f}) {needed}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--people", type=int, help="default: one for every 40 vectors")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--works", type=int, default=11)
    parser.add_argument("--faces", type=int, default=700, help="of each work")
    parser.add_argument("--run", choices=RUNS, help="this one alone, as JSON")
    given = parser.parse_args()
    given.people = given.people or max(5, given.vectors // 40)
    if given.run:
        print(json.dumps(one(given.run, given)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    for _ in range(given.rounds):
        for name in RUNS:
            command = [sys.executable, __file__, "--run", name, "--vectors", str(given.vectors)]
            done = subprocess.run([*command, "--people", str(given.people)], stdout=subprocess.PIPE, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{given.vectors} vectors of 512 dimensions, {given.people} people, median of {given.rounds} rounds, seconds")
    show(found, given)
    if given.works:
        works(given)


if __name__ == "__main__":
    main()
