"""Features per second: our Generate step against a plain loop of torch's DataLoader and torchvision's extractor.

The same network with the same weights, the same JPEG faces (drawings of the art pack, 128 x 128, read at
--side), the same layers averaged over the same grid, the same number of torch's threads, in one run. Ours
decodes in --loaders threads, the loop in as many processes, which stay from round to round. Both end with
a file: shards of Parquet here, one .npz there. Rounds alternate, and each ratio is taken within a round; the
median round counts.

    all layers   every layer that the network has by name (nn/layers.py), in one pass
    one layer    the second convolutional one: ours ends the pass there, the loop's extractor drops what is not needed

With --ray the Generate step also runs as in a job, on Ray Data with one actor; its figure has the start of
Ray, of the actor and of the network in it.

Run: python tests/benchmarks/bench_features.py [--networks alexnet-small resnet18] [--pictures 1024] [--ray]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models.feature_extraction import create_feature_extractor

from mvray import Job
from mvray.cluster.session import Cluster
from mvray.data.readers.folder import Folder
from mvray.data.synthetic import drawings
from mvray.data.tables import read_table, write_table
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Data, Generate, Scale, Train
from mvray.generators import features
from mvray.methods import classifier
from mvray.nn import layers
from mvray.pipeline import generate, plan, shards
from mvray.pipeline.plan import Planned
from mvray.storage.storage import Storage
from mvray.training import load_method
from mvray.training.checkpoint import weights_to_bytes

WANTED = 1.0
GRID = 2
Run = Callable[[], object]


def draw(root: Path, pictures: int) -> None:
    """Drawings as JPEG files, in a folder per artist."""
    made = 0
    for artist in drawings.artists():
        for name in sorted(drawings.names(artist)):
            if made == pictures:
                return
            (root / artist).mkdir(parents=True, exist_ok=True)
            drawings.drawing(artist, name).image.convert("RGB").save(root / artist / f"{made:05d}.jpg", quality=90)
            made += 1


def step(root: Path, place: Path, network: str, wanted: tuple[str, ...], given: argparse.Namespace) -> Planned:
    """The Generate step, ready to run, of a network with the weights that its training would begin with."""
    data = Data(Folder(root=str(root), train=0.9, validation=0.1, test=0.0), Pictures(given.side, given.side))
    train = Train("first", classifier.Config(network=network), data)
    config = features.Config(of=train, layers=wanted, pool=GRID, batch_size=given.batch)
    looked = Generate("features", config, data, Scale(loader_workers=given.loaders))
    made = plan.make(Job("bench", (looked,)), Storage(str(place)))
    torch.manual_seed(0)
    of = made.of(train, 0)
    of.folder.write("weights.safetensors", weights_to_bytes(train.method.build(of.facts).state_dict()))
    planned = made.of(looked, 0)
    write_table(planned.folder, "index.parquet", planned.rows())
    return planned


def ours(planned: Planned) -> Run:
    work = shards.work_of(planned)
    missing = list(range(len(work.shards) - 1))
    maker = shards.ShardMaker(work, missing)

    def run() -> None:
        for shard in missing:
            planned.folder.delete(shards.shard_path(shard))
            maker.make(shard)

    return run


def loop(planned: Planned, wanted: tuple[str, ...], given: argparse.Namespace, out: Path) -> Run:
    """As one would write it."""
    of = planned.inputs["first"]
    method = load_method(of.step, of.facts, of.folder)
    named = layers.named_layers(method.network)
    extractor = create_feature_extractor(method.network, {named[name]: name for name in wanted}).eval()
    prepare = [transforms.Resize((given.side, given.side)), transforms.ToTensor()]
    normalise = transforms.Normalize(method.config.mean, method.config.std)
    pictures = ImageFolder(planned.data.source.root, transforms.Compose([*prepare, normalise]))
    loader = torch.utils.data.DataLoader(
        pictures, given.batch, num_workers=given.loaders, persistent_workers=given.loaders > 0
    )
    device = next(method.parameters()).device

    def run() -> None:
        found: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
        with torch.inference_mode():
            for images_BCHW, _ in loader:
                given_BCHW = images_BCHW.to(device, memory_format=torch.channels_last)
                for name, values in extractor(given_BCHW).items():
                    small = torch.nn.functional.adaptive_avg_pool2d(values, GRID) if values.ndim == 4 else values
                    found[name].append(small.flatten(1).half().cpu().numpy())
        np.savez(out, **{name: np.concatenate(parts) for name, parts in found.items()})

    return run


def agree(planned: Planned, wanted: tuple[str, ...], out: Path) -> None:
    """Both made the same features, but for how a picture is scaled."""
    table = read_table(planned.folder, shards.shard_path(0))
    theirs = np.load(out)
    for name in wanted:
        mine = np.array(table[name].to_pylist(), np.float64)
        other = theirs[name][: len(mine)].astype(np.float64)
        cosine = (mine * other).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(other, axis=1)
        assert cosine.min() > 0.98, f"{name}: {cosine.min()}"


def seconds(run: Run) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def show(network: str, wanted: tuple[str, ...], what: str, given: argparse.Namespace, root: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        planned, out = step(root, Path(place), network, wanted, given), Path(place, "loop.npz")
        compared = {"mvray": ours(planned), "loop": loop(planned, wanted, given, out)}
        found = [{name: seconds(run) for name, run in compared.items()} for _ in range(given.rounds + 1)][1:]
        agree(planned, wanted, out)
    mine, other = (given.pictures / statistics.median(each[name] for each in found) for name in compared)
    ratios = [each["loop"] / each["mvray"] for each in found]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"{network:15}{what:12}{mine:9.0f}{other:9.0f}  {ratio}  wanted {WANTED}")


def through_ray(network: str, wanted: tuple[str, ...], given: argparse.Namespace, root: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        planned = step(root, Path(place), network, wanted, given)
        cluster = Cluster(planned.storage, None, print)
        cluster.start(Job("bench", (planned.step,)))
        try:
            whole = seconds(lambda: generate.run(planned, cluster))
        finally:
            cluster.stop()
    print(f"{network:15}{'through Ray':12}{given.pictures / whole:9.0f}  {whole:.1f} s with every start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["alexnet-small", "resnet18"])
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loaders", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{given.pictures} pictures at {given.side}, {given.threads} threads, {given.loaders} loaders")
    print(f"{'network':15}{'':12}{'mvray/s':>9}{'loop/s':>9}  mvray is faster by")
    with tempfile.TemporaryDirectory() as root:
        draw(Path(root), given.pictures)
        for network in given.networks:
            with torch.device("meta"):
                named = layers.named_layers(classifier.networks.network(network, 2))
            every = tuple(name for name in named if name != layers.PENULTIMATE)
            show(network, every, "all layers", given, Path(root))
            show(network, ("conv2",), "one layer", given, Path(root))
            if given.ray:
                through_ray(network, every, given, Path(root))


if __name__ == "__main__":
    main()
