"""Training samples per second, files to updated weights: our loop against torchvision's reference for segmentation.

The same network, files, sizes, batch and optimiser, in one process each, threads equal, rounds alternating. The peer's
epoch is what references/segmentation/train.py does: a VOC data set of Pillow pictures, torchvision v2's RandomResize,
RandomHorizontalFlip, RandomCrop, PILToTensor, Normalize, a DataLoader with one worker, cross-entropy that ignores 255
with half of the auxiliary head's, SGD. FCN-8s is our network for both, as torchvision has none; DeepLab v3 is
torchvision's own for the peer. Ours is `mvray.run` with workers=0 and one decoding thread, its epochs as history.json
has them (validation apart). The first epoch of each is left out, the median counts.

Run: python tests/benchmarks/bench_segmentation.py [--rounds 3] [--side 128] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.models import segmentation
from torchvision.transforms import v2

import mvray
from mvray import Data, Job, Optim, Pictures, Scale, Train
from mvray.data.readers import VOC2012
from mvray.experiment import Facts
from mvray.methods import segmenter

CLASSES, PICTURES, BATCH, EPOCHS = 21, 48, 8, 3
WANTED = 1.0
OPTIM = Optim(lr=0.001, momentum=0.9, weight_decay=5e-4, batch_size=BATCH, epochs=EPOCHS)
METHODS = {
    "FCN-8s, VGG16": segmenter.Config(network="vgg16", decoder="fcn8", width=512),
    "DeepLab v3, ResNet-50": segmenter.Config(network="resnet50", stride=8, decoder="aspp", auxiliary=0.5),
}


def make(root: Path) -> None:
    """Pictures of 500 x 375 with class maps of blocks, in VOC 2012's layout."""
    draw = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(PICTURES + 8):
        classes = draw.integers(0, CLASSES, (6, 8), dtype=np.uint8)
        coarse = draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375)).save(root / f"JPEGImages/{number:03d}.jpg", quality=90)
        mask = Image.fromarray(classes).resize((500, 375), Image.Resampling.NEAREST)
        mask.putpalette(draw.integers(0, 256, 768).astype(np.uint8).tolist())
        mask.save(root / f"SegmentationClass/{number:03d}.png")
    for name, rows in (("train", range(PICTURES)), ("val", range(PICTURES, PICTURES + 8))):
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{row:03d}\n" for row in rows))


class Files(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """What torchvision.datasets.VOCSegmentation gives, through the reference script's presets."""

    def __init__(self, root: Path, side: int) -> None:
        self._root = root
        self._names = (root / "ImageSets/Segmentation/train.txt").read_text().split()
        self._transform = v2.Compose(
            [
                v2.RandomResize(side, side * 2),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomCrop(side, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
                v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        name = self._names[row]
        image = v2.functional.pil_to_tensor(Image.open(self._root / f"JPEGImages/{name}.jpg").convert("RGB"))
        mask = v2.functional.pil_to_tensor(Image.open(self._root / f"SegmentationClass/{name}.png"))
        image, mask = self._transform(tv_tensors.Image(image), tv_tensors.Mask(mask[0]))
        return image, mask


def peer_network(config: segmenter.Config, side: int) -> torch.nn.Module:
    torch.manual_seed(0)
    if config.network == "resnet50":
        return segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    method = config.build(Facts(tuple(map(str, range(CLASSES))), side, side, 3, PICTURES))
    assert isinstance(method, segmenter.Segmenter)

    class OnlyScores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = method.encoder, method.decoder

        def forward(self, images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
            scores = self.decoder(*self.encoder.with_indices(images_BCHW))
            return {"out": functional.interpolate(scores, images_BCHW.shape[2:], mode="bilinear")}

    return OnlyScores()


def peer(root: Path, config: segmenter.Config, side: int) -> Iterator[float]:
    """Samples per second of each epoch."""
    network = peer_network(config, side).train()
    optimiser = torch.optim.SGD(network.parameters(), OPTIM.lr, OPTIM.momentum, weight_decay=OPTIM.weight_decay)
    loader = DataLoader(Files(root, side), BATCH, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True)
    for _ in range(EPOCHS):
        began, samples = time.monotonic(), 0
        for images_BCHW, mask_BHW in loader:
            outputs = network(images_BCHW)
            losses = {
                name: functional.cross_entropy(scores, mask_BHW, ignore_index=255) for name, scores in outputs.items()
            }
            loss = losses["out"] + 0.5 * losses.get("aux", torch.zeros(()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            samples += len(images_BCHW)
        yield samples / (time.monotonic() - began)


def ours(root: Path, config: segmenter.Config, side: int) -> list[float]:
    pictures = Pictures(side, side, 3, flip=True, fit="pad", size_range=(side / 375, side * 2 / 375))
    data = Data(VOC2012(validation=0.1), pictures)
    step = Train("only", config, data, OPTIM, select="mean_iou", scale=Scale(loader_workers=1))
    with tempfile.TemporaryDirectory() as storage:
        mvray.run(Job("segmentation", (step,)), data=str(root), workers=0, storage=storage)
        file = next(Path(storage).glob("only-*/history.json"))
        return [row["samples_per_s"] for row in json.loads(file.read_text())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, number in (("rounds", 3), ("side", 128), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=number)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root)
        for title, config in METHODS.items():
            rates: dict[str, list[float]] = {"mvray": [], "torchvision": []}
            ratios = []
            for _ in range(args.rounds):
                own = statistics.median(ours(root, config, args.side)[1:])
                other = statistics.median(list(peer(root, config, args.side))[1:])
                rates["mvray"].append(own)
                rates["torchvision"].append(other)
                ratios.append(own / other)
            shown = ", ".join(f"{name} {statistics.median(values):.2f}" for name, values in rates.items())
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(
                f"{title:24}{args.side} px, batch {BATCH}: {shown} samples/s; mvray / torchvision "
                f"{statistics.median(ratios):.2f} ({spread}); wanted {WANTED}"
            )


if __name__ == "__main__":
    main()
