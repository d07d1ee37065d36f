"""Characters that no network here has seen: are our vectors better than raw pixels and ImageNet's features?

Given are folders, each a book: pictures with a folder per identity. For each way to make vectors

    AMI, ARI    of the groups that `mvray group` makes with the identities, over --seeds seeds
                of UMAP: mean, and 95 % interval of the mean (Student's t)
    F1          of pairs within a threshold that is the best for one half of the identities, measured on the
                other half, both ways, over --seeds random halves
    recall@1, mAP@R    each picture among all others; no threshold

The vectors are scaled to length 1 everywhere, as `group` and `find` do. The yardsticks:

    pixels             32 x 32 grey values
    pixels, centred    less their mean over the book: the white that all pictures share says nothing
    ImageNet           what the last layer of torchvision's --network with the weights --weights gets, at 224 x 224

A step is its output folder, with ":LAYER" for another layer than `mvray group` would take. A table per book, then
the mean over books, each book counting once.

Run: python tests/benchmarks/bench_unseen.py BOOK [BOOK ...] --steps STEP [STEP:LAYER ...]
     [--network mobilenet_v2 --weights FILE] [--seeds 5]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mvray.data.decoding import open_upright
from mvray.experiment.contracts import Facts
from mvray.experiment.inputs import Pictures
from mvray.generators import features
from mvray.inference.group import NEIGHBOURS, least_size, list_pictures
from mvray.inference.model import Model, network_input
from mvray.metrics.classification import mean_interval
from mvray.metrics.clustering import Hdbscan, agreement, group_vectors
from mvray.metrics.reduction import Umap
from mvray.metrics.retrieval import scores, search, unit_length
from mvray.nn import layers

BATCH, IMAGENET_SIDE = 32, 224
SCORES = ("AMI", "ARI", "F1", "recall@1", "mAP@R")
Vectors = Callable[[Sequence[Path]], np.ndarray]
Row = dict[str, list[float]]


def read(config: features.Config, layer: str, channels: int, side: int) -> Vectors:
    """Vectors of a generator that needs no trained step."""
    generator = config.build(None, lambda path: Path(path).read_bytes())
    assert isinstance(generator, features.Features)
    facts, pictures = Facts((), side, side, channels, 0), Pictures(side, side, channels)

    def vectors(files: Sequence[Path]) -> np.ndarray:
        made = []
        for at in range(0, len(files), BATCH):
            images = [open_upright(path.read_bytes(), side, side, grey=False) for path in files[at : at + BATCH]]
            images_BCHW = torch.from_numpy(np.stack([network_input(image, pictures, facts) for image in images]))
            made.append(generator.read({"image": images_BCHW})[layer].flatten(1).numpy())
        return np.concatenate(made)

    return vectors


def trained(given: str) -> Vectors:
    path, _, layer = given.partition(":")
    model = Model(path, layer)

    def vectors(files: Sequence[Path]) -> np.ndarray:
        looked = model.look(files)
        if looked.left_out:
            raise SystemExit(f"{looked.left_out[0][0]}: {looked.left_out[0][1]}; expected pictures that can be read.")
        return looked.vectors

    return vectors


def ways(given: argparse.Namespace) -> dict[str, Vectors]:
    pixels = read(features.Config(layers=(features.PIXELS,)), features.PIXELS, 1, features.PIXELS_SIDE)

    def centred(files: Sequence[Path]) -> np.ndarray:
        values_ND = pixels(files)
        values_ND -= values_ND.mean(0)
        return values_ND

    found: dict[str, Vectors] = {"pixels": pixels, "pixels, centred": centred}
    if given.weights:
        config = features.Config(layers=(layers.PENULTIMATE,), pool=1, network=given.network, weights=given.weights)
        found[f"ImageNet {given.network}"] = read(config, layers.PENULTIMATE, 3, IMAGENET_SIDE)
    for step in given.steps:
        path, _, layer = step.partition(":")
        name, _, number = Path(path).name.rpartition("-")
        found[f"{name}-{number[:4]} {layer}".strip()] = trained(step)
    return found


def scored(vectors_ND: np.ndarray, label_N: np.ndarray, seeds: int) -> Row:
    vectors_ND = unit_length(vectors_ND)
    reduce, way = Umap(dimensions=32, neighbours=NEIGHBOURS), Hdbscan(least_size(len(vectors_ND)), 1)
    groups = [agreement(label_N, group_vectors(vectors_ND, reduce, way, seed)) for seed in range(seeds)]
    whole = scores(search(vectors_ND, label_N))
    return {
        "AMI": [each["ami"] for each in groups],
        "ARI": [each["ari"] for each in groups],
        "F1": [f1 for seed in range(seeds) for f1 in honest_f1(vectors_ND, label_N, seed)],
        "recall@1": [whole["recall_at_1"]],
        "mAP@R": [whole["map_at_r"]],
        "groups": [each["groups"] for each in groups],
        "alone": [each["noise"] for each in groups],
    }


def honest_f1(vectors_ND: np.ndarray, label_N: np.ndarray, seed: int) -> list[float]:
    """Each half of the identities at the threshold that is the best for the other half."""
    identities = np.random.default_rng(seed).permutation(label_N.max() + 1)
    half_N = np.isin(label_N, identities[: len(identities) // 2])
    found = [search(vectors_ND[rows], label_N[rows]).pairs for rows in (half_N, ~half_N)]
    return [one.at(other.best_threshold())["f1"] for one, other in zip(found, reversed(found), strict=True)]


def book(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Its pictures, and the number of the folder of each."""
    files = list_pictures(folder, None)
    names = [path.relative_to(folder).parts[0] for path in files]
    identities, label_N, counts = np.unique(names, return_inverse=True, return_counts=True)
    if len(identities) < 4 or counts.min() < 2:
        raise SystemExit(f"{folder}: expected 4 or more folders with 2 or more pictures each.")
    print(f"\n{folder.name}: {len(files):,} pictures of {len(identities)} identities")
    return files, label_N


def cell(values: Sequence[float]) -> str:
    mean, _, high = mean_interval(values)
    return f"{mean:.3f}" + (f" ±{high - mean:.3f}" if high is not None else "")


def show(rows: dict[str, Row]) -> None:
    print(f"{'':30}" + "".join(f"{name:>16}" for name in SCORES) + f"{'groups':>9}{'alone':>8}")
    for name, row in rows.items():
        print(f"{name:30}" + "".join(f"{cell(row[score]):>16}" for score in SCORES), end="")
        print(f"{np.mean(row['groups']):9.1f}{np.mean(row['alone']):8.1%}")


def over(books: Sequence[dict[str, Row]]) -> dict[str, Row]:
    """The mean over books, of each seed."""
    return {
        name: {score: np.mean([rows[name][score] for rows in books], axis=0).tolist() for score in books[0][name]}
        for name in books[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("books", nargs="+", type=Path, metavar="BOOK")
    parser.add_argument("--steps", nargs="+", default=[], metavar="STEP[:LAYER]")
    parser.add_argument("--network", default="mobilenet_v2")
    parser.add_argument("--weights", default="", help="ImageNet's, a file")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    found = ways(given)
    done: list[dict[str, Row]] = []
    for folder in given.books:
        files, label_N = book(folder)
        with torch.inference_mode():
            done.append({name: scored(vectors(files), label_N, given.seeds) for name, vectors in found.items()})
        show(done[-1])
    if len(done) > 1:
        print(f"\nmean over {len(done)} books")
        show(over(done))


if __name__ == "__main__":
    main()
