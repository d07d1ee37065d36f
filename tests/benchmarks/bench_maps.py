"""Grad-CAM of picture files, end to end: files in, stored maps out, against the usual per-image script.

Ours is what an actor of a Generate step does (mvray.pipeline.shards.ShardMaker): decode ahead in threads, whole
batches, one Parquet file per shard; Ray's own start is in bench_startup.py. The script is what grad-cam's
README shows: for each file open, resize, normalise, GradCAM, save the map. Same AlexNet and ResNet50 weights,
same files, same threads; rounds alternate and the median ratio counts. Wanted: 3.

Run: python tests/benchmarks/bench_maps.py [--files 96] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from torchvision import transforms

from mvray.data.readers.folder import Folder
from mvray.data.tables import write_table
from mvray.experiment.contracts import Facts
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Data, Generate, Scale, Train
from mvray.generators import gradcam
from mvray.methods import classifier
from mvray.nn.networks import last_convolution
from mvray.pipeline.shards import SHARD_ROWS, GenerateWork, ShardMaker
from mvray.storage.storage import Storage
from mvray.training.checkpoint import weights_to_bytes

SIDE_PX, CLASSES = 224, 10


def make_files(root: Path, count: int) -> None:
    """JPEG files of 500 x 375 with something in them."""
    draw = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(draw.integers(0, 256, (12, 16, 3), np.uint8))
        folder = root / f"class{i % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)


def ours(name: str, root: Path, out: Path) -> tuple[ShardMaker, torch.nn.Module]:
    """A ShardMaker over all files, and the network that it looks through."""
    data = Data(Folder(root=str(root), train=1.0, validation=0.0, test=0.0), Pictures(SIDE_PX, SIDE_PX, 3))
    train = Train("net", classifier.Config(network=name), data)
    step = Generate("cams", gradcam.Config(of=train, batch_size=32), data, Scale(loader_workers=2))
    index = data.source.index()
    facts = Facts(index.classes, SIDE_PX, SIDE_PX, 3, len(index.rows))
    torch.manual_seed(0)
    method = train.method.build(facts)
    Storage(str(out / "net")).write("weights.safetensors", weights_to_bytes(method.state_dict()))
    write_table(Storage(str(out / "cams")), "index.parquet", index.rows)
    work = GenerateWork(step, 0, str(out / "cams"), str(out / "net"), facts)
    return ShardMaker(work, []), method.network.eval()


def script(network: torch.nn.Module, root: Path, out: Path) -> None:
    """The usual script, one picture at a time."""
    prepare = transforms.Compose(
        [
            transforms.Resize((SIDE_PX, SIDE_PX)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    cam = GradCAM(network, [network.get_submodule(last_convolution(network))])
    out.mkdir(exist_ok=True)
    for path in sorted(root.rglob("*.jpg")):
        map_HW = cam(prepare(Image.open(path).convert("RGB"))[None], None)[0]
        np.save(out / f"{path.stem}.npy", map_HW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"{given.files} files, {torch.get_num_threads()} threads, median of {given.rounds} rounds")
    print(f"{'network':10}{'mvray maps/s':>14}{'script maps/s':>15}{'ratio':>8}  wanted 3")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "files"
        make_files(root, given.files)
        for name in ("alexnet", "resnet50"):
            maker, network = ours(name, root, Path(place) / name)
            rounds = []
            for _ in range(given.rounds + 1):
                begun = time.perf_counter()
                for shard in range(-(-given.files // SHARD_ROWS)):
                    maker.make(shard)
                middle = time.perf_counter()
                script(network, root, Path(place) / "maps")
                rounds.append((middle - begun, time.perf_counter() - middle))
            mine, peer = (statistics.median(each[i] for each in rounds[1:]) for i in (0, 1))
            ratio = statistics.median(b / a for a, b in rounds[1:])
            print(f"{name:10}{given.files / mine:14.1f}{given.files / peer:15.1f}{ratio:8.2f}", flush=True)


if __name__ == "__main__":
    main()
