"""One GPU: training steps of our loop against plain loops, Grad-CAM, features, k-means, files.

    train    samples/s of the loop's own epoch and of a loop as one writes it, on the same method and optimiser and
             the same uint8 batches in page-locked memory: bf16, forward, losses, backward, a step
    files    the same for ResNet50 from JPEG files: our threads, and torchvision's ImageFolder and transforms in a
             DataLoader of as many processes
    maps     Grad-CAM/s of our generator (Arrow columns out), of nn/cam.py, of hooks and a whole backward pass, of a
             bare forward pass; float32 as generators use it, batches on the GPU
    features features/s of our generator and of torchvision's extractor, seven layers
    kmeans   ours against Lloyd's iteration in plain torch, from the same start
    save     how long a checkpoint holds up training

Rounds alternate between all that is compared, each ratio is taken within a round, the median counts. Memory is the
most that torch allocated beyond what there was before, in the steps that warm up. On a CPU everything
runs in a tiny form, to be tried out.

Run: python tests/benchmarks/bench_gpu.py [--parts train maps] [--compile] [--rounds 5]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bench_kmeans
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from mvray import Job
from mvray.data.readers.folder import Folder
from mvray.data.tables import write_table
from mvray.experiment.contracts import Batch, Facts, MethodConfig
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import LAST, Data, Optim, Scale, Train
from mvray.generators import features, gradcam
from mvray.methods import classifier, deepcluster, object_abn
from mvray.nn import cam, kmeans, layers
from mvray.pipeline import plan
from mvray.pipeline.train import task_of
from mvray.storage.storage import Storage
from mvray.training import loop, state
from mvray.training import samples as samples_module
from mvray.training.environment import Local, placed
from mvray.training.optim import optimiser

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
Run = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A method, how it is optimised, and one batch's shape; ``tiny`` is for a CPU."""

    config: MethodConfig
    optim: Optim
    facts: Facts

    def tiny(self) -> Case:
        small = {"height": 64, "width": 64, "frames": min(self.facts.frames, 2), "samples": 8}
        return Case(self.config, replace(self.optim, batch_size=2), replace(self.facts, **small))


def facts(classes: int, side: int, channels: int, frames: int = 1) -> Facts:
    return Facts(tuple(map(str, range(classes))), side, side, channels, 10_000, frames)


SGD, ADAM = Optim(momentum=0.9, weight_decay=1e-4, batch_size=256), Optim(name="adam", lr=1e-4, batch_size=256)
CASES = {
    "ResNet50, 256 x 224 x 224": Case(classifier.Config(network="resnet50"), SGD, facts(1000, 224, 3)),
    "AlexNet hiding by noise, 256 x 224 x 224": Case(
        classifier.Config(network="alexnet", hide="random", fill="noise"), SGD, facts(1000, 224, 3)
    ),
    "Object-ABN X3D-M, 16 x 16 x 224 x 224": Case(
        object_abn.Config(lambda_mask=10.0), replace(SGD, batch_size=16), facts(101, 224, 3, 16)
    ),
    "DeepCluster VGG16, Adam, 256 x 224 x 224": Case(
        deepcluster.Config(network="vgg16", labels="given"), ADAM, facts(3000, 224, 1)
    ),
}


def batches_of(case: Case, count: int) -> list[dict[str, torch.Tensor]]:
    """Random batches as the loader gives them, in page-locked memory."""
    size, given = case.optim.batch_size, case.facts
    made = []
    for seed in range(count):
        rand = torch.Generator().manual_seed(seed)
        batch = {name: torch.randint(1 << 30, (size,), generator=rand) for name in ("draw", "index", "label")}
        batch["label"] %= len(given.classes)
        batch["index"] %= given.samples
        batch["bad"] = torch.full((size,), -1)
        frames = (given.frames,) if given.frames > 1 else ()
        shape = (size, given.channels, *frames, given.height, given.width)
        batch["clip" if frames else "image"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rand)
        if "masks" in case.config.needs:
            batch["masks"] = torch.randint(0, 2, (size, *shape[2:]), dtype=torch.uint8, generator=rand)
        made.append({name: values.pin_memory() if GPU else values for name, values in batch.items()})
    return made


class InMemory(samples_module.Samples):
    """The loop's samples without a disk: the same batches over and over."""

    def __init__(
        self, case: Case, batches: list[dict[str, torch.Tensor]], steps: int, given: samples_module.Task
    ) -> None:
        self._task, self._here, self._given = given, Local(), batches
        self._sets: dict[str, Any] = {"train": None}
        self.batches, self.batch_size = steps, case.optim.batch_size
        self.samples = self.total = steps * self.batch_size
        self.labels = torch.zeros(self.samples, dtype=torch.int64)

    def _loaded(self, samples: object, order: object, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        for at in range(self.batches):
            yield self._given[at % len(self._given)]


def ours(
    case: Case, batches: list[dict[str, torch.Tensor]], steps: int, folder: str, channels_last: bool, compiled: bool
) -> Run:
    """An epoch of our loop."""
    scale = Scale(channels_last=channels_last, compile=compiled)
    step = Train("bench", case.config, Data(Folder(root=folder)), case.optim, scale=scale, select=LAST)
    given = samples_module.Task(step, 0, folder, case.facts, 1)
    made = functools.partial(InMemory, case, batches, steps)
    before, loop.Samples = loop.Samples, lambda each, here: made(each)  # type: ignore[assignment, misc]
    parts = loop._parts(given, Local(), Storage(folder))
    loop.Samples = before  # type: ignore[misc]

    def run() -> None:
        loop._epoch(given, parts, state.State(), Local())

    return run


def plain(
    case: Case, batches: list[dict[str, torch.Tensor]], steps: int, layout: torch.memory_format, compiled: bool
) -> Run:
    """The loop that one writes."""
    torch.manual_seed(0)
    method = case.config.build(case.facts).to(DEVICE, memory_format=layout).train()
    call = torch.compile(method) if compiled else method
    updates = optimiser(case.optim, method, "train")

    def run() -> None:
        total = torch.zeros((), device=DEVICE)
        for at in range(steps):
            batch = {name: v.to(DEVICE, non_blocking=True) for name, v in batches[at % len(batches)].items()}
            updates.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
                loss = sum(call(batch, "train").values())
            loss.backward()
            updates.step()
            total += loss.detach()
        float(total)

    return run


def searching(run: Run) -> Run:
    """The same where cuDNN tries its algorithms."""

    def searched() -> None:
        torch.backends.cudnn.benchmark = True
        run()
        torch.backends.cudnn.benchmark = False

    return searched


def seconds(run: Run) -> float:
    begun = time.perf_counter()
    run()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def warmed(run: Run, times: int = 1) -> float:
    """MB that it takes beyond what was there before it was built and run."""
    for _ in range(times):
        seconds(run)
    return torch.cuda.max_memory_allocated() / 2**20 if GPU else 0.0


def compared(makers: dict[str, Callable[[], Run]], count: int, rounds: int, unit: str, title: str) -> None:
    """Print how many of ``count`` things a second each of them does."""
    runs: dict[str, Run] = {}
    memory: dict[str, float] = {}
    for name, make in makers.items():
        before = torch.cuda.memory_allocated() / 2**20 if GPU else 0.0
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        try:
            runs[name] = make()
            memory[name] = warmed(runs[name], 2) - before
        except torch.cuda.OutOfMemoryError as error:
            print(f"{title}: {name}: {str(error).partition('.')[0]}", flush=True)
            runs.pop(name, None)
            continue
        print(f"  ({name}: warm after {time.perf_counter() - begun:.1f} s)", flush=True)
    found = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds)]
    print(f"{title:42}{unit:>11}  mvray is faster by    peak MB", flush=True)
    for name in runs:
        rate = count / statistics.median(each[name] for each in found)
        ratios = [each[name] / each["mvray"] for each in found]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  {name:40}{rate:11.1f}  {spread:20}{memory[name]:9.0f}", flush=True)


# -- parts -----------------------------------------------------------------------------------


def train(given: argparse.Namespace) -> None:
    for title, case in CASES.items():
        if given.only in title:
            _train(title, case if GPU else case.tiny(), given)
            if GPU:
                torch.cuda.empty_cache()


def _train(title: str, case: Case, given: argparse.Namespace) -> None:
    steps, clips = given.steps if GPU else 2, case.facts.frames > 1
    batches = batches_of(case, 3)
    last, usual = torch.channels_last_3d if clips else torch.channels_last, torch.contiguous_format
    with tempfile.TemporaryDirectory() as folder:

        def mine(channels_last: bool = True, compiled: bool = False) -> Run:
            return ours(case, batches, steps, folder, channels_last, compiled)

        def theirs(layout: torch.memory_format, compiled: bool = False) -> Run:
            return plain(case, batches, steps, layout, compiled)

        makers: dict[str, Callable[[], Run]] = {
            "mvray": mine,
            "plain": lambda: theirs(usual),
            "plain, cudnn.benchmark": lambda: searching(theirs(usual)),
            "mvray, channels_last=False": lambda: mine(False),
        }
        if not clips:
            makers["plain, channels last"] = lambda: theirs(last)
            makers["plain, channels last, cudnn.benchmark"] = lambda: searching(theirs(last))
        if given.compile:
            makers["mvray, compile"] = lambda: mine(compiled=True)
            makers["plain, channels last, compiled"] = lambda: theirs(last, True)
        compared(makers, steps * case.optim.batch_size, given.rounds, "samples/s", title)


def files(given: argparse.Namespace) -> None:
    """ResNet50 from JPEG files of 256 x 256."""
    pictures, size, workers = (6144, 256, given.workers) if GPU else (64, 8, 2)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "pictures")
        _draw(root, pictures)
        source = Folder(root=str(root), train=0.95, validation=0.05, test=0.0)
        data = Data(source, Pictures(224, 224, flip=True, crop_scale=(0.3, 1.0)))
        config, optim = classifier.Config(network="resnet50" if GPU else "alexnet-small"), replace(SGD, batch_size=size)
        step = Train("bench", config, data, optim, scale=Scale(loader_workers=workers))
        planned = plan.make(Job("bench", (step,)), Storage(place)).of(step, 0)
        write_table(planned.folder, "index.parquet", planned.rows())
        made = task_of(planned, 0)
        parts = loop._parts(made, Local(), planned.folder)

        def loaded() -> None:
            for _ in parts.samples.train_batches(1, 0, {}):
                pass

        makers = {
            "mvray": lambda: lambda: loop._epoch(made, parts, state.State(), Local()),
            "DataLoader, plain": lambda: _from_folder(root, config, optim, workers, parts.samples.batches, True),
            "mvray, loading alone": lambda: loaded,
            "DataLoader alone": lambda: _from_folder(root, config, optim, workers, parts.samples.batches, False),
        }
        title = f"files, ResNet50, {workers} loaders"
        compared(makers, parts.samples.batches * size, min(given.rounds, 3), "samples/s", title)


def _draw(root: Path, pictures: int) -> None:
    """JPEG files of noise and blocks, in a folder per class."""
    draw = np.random.default_rng(0)
    for number in range(pictures):
        folder = root / f"class{number % 8}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.NEAREST).save(folder / f"{number:05d}.jpg", quality=90)


def _from_folder(root: Path, config: classifier.Config, optim: Optim, workers: int, steps: int, trains: bool) -> Run:
    from torchvision import datasets, transforms

    prepare = [transforms.RandomResizedCrop(224, scale=(0.3, 1.0)), transforms.RandomHorizontalFlip()]
    pictures = datasets.ImageFolder(str(root), transforms.Compose([*prepare, transforms.PILToTensor()]))
    loader = torch.utils.data.DataLoader(
        pictures, optim.batch_size, shuffle=True, num_workers=workers, pin_memory=GPU, drop_last=True,
        persistent_workers=True, prefetch_factor=4,
    )  # fmt: skip
    method = config.build(facts(8, 224, 3)).to(DEVICE, memory_format=torch.channels_last).train()
    updates = optimiser(optim, method, "train")

    def run() -> None:
        for images, labels in itertools.islice(loader, steps):
            if not trains:
                continue
            batch = {"image": images.to(DEVICE, non_blocking=True), "label": labels.to(DEVICE, non_blocking=True)}
            batch["draw"] = batch["label"]
            updates.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
                loss = method(batch, "train")["cross_entropy"]
            loss.backward()
            updates.step()

    return run


def _looked_at(network: str, size: int) -> tuple[Any, Train, Batch]:
    """A method in eval mode on the device, its step, and a batch."""
    config = classifier.Config(network=network)
    step = Train("bench", config, Data(Folder()))
    torch.manual_seed(0)
    method = placed(config.build(facts(1000, 224, 3)), DEVICE, channels_last=True).eval()
    batch = batches_of(Case(config, replace(SGD, batch_size=size), facts(1000, 224, 3)), 1)[0]
    return method, step, {name: values.to(DEVICE) for name, values in batch.items()}


def maps(given: argparse.Namespace) -> None:
    times, size = (10, 64) if GPU else (1, 2)
    for network in ("alexnet", "resnet50"):
        method, step, batch = _looked_at(network, size)
        images_BCHW = batch["image"]
        generator = gradcam.Config(of=step).build(method, None)
        layer = method.get_submodule(method.attention_layer)

        def fast(method: Any = method, images_BCHW: torch.Tensor = images_BCHW) -> None:
            cam.grad_cam(method.class_scores, method, method.attention_layer, images_BCHW)

        def plainly(method: Any = method, images_BCHW: torch.Tensor = images_BCHW, layer: Any = layer) -> None:
            kept: list[torch.Tensor] = []
            with layer.register_forward_hook(lambda _layer, _given, made: kept.append(made.clone()) or kept[0]):
                scores_BK = method.class_scores(images_BCHW)
            kept[0].retain_grad()
            method.zero_grad()
            scores_BK.gather(1, scores_BK.argmax(1, keepdim=True)).sum().backward()
            alpha_BC11 = kept[0].grad.mean((2, 3), keepdim=True)
            (alpha_BC11 * kept[0]).sum(1).relu().detach().cpu()

        def forward(method: Any = method, images_BCHW: torch.Tensor = images_BCHW) -> None:
            with torch.no_grad():
                method.class_scores(images_BCHW)

        makers = {
            "mvray": lambda fast=fast: _often(fast, times),
            "mvray, generator": lambda g=generator, b=batch: _often(lambda: g(b), times),
            "hooks and backward": lambda plainly=plainly: _often(plainly, times),
            "bare forward": lambda forward=forward: _often(forward, times),
        }
        compared(makers, times * size, given.rounds, "maps/s", f"Grad-CAM, {network}, batches of {size}")


def _often(run: Callable[[], object], times: int) -> Run:
    def runs() -> None:
        for _ in range(times):
            run()

    return runs


def features_(given: argparse.Namespace) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    times, size = (10, 64) if GPU else (1, 2)
    wanted = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc1", "fc2")
    method, step, batch = _looked_at("vgg16", size)
    generator = features.Config(of=step, layers=wanted).build(method, None)
    named = layers.named_layers(method.network)
    extractor = create_feature_extractor(method.network, {named[name]: name for name in wanted}).eval()

    def theirs() -> None:
        with torch.inference_mode():
            three_BCHW = batch["image"].to(torch.float32, memory_format=torch.channels_last)
            for values in extractor((three_BCHW - method.mean) / method.std).values():
                small = adaptive_avg_pool2d(values, 2) if values.ndim == 4 else values
                small.flatten(1).half().cpu().numpy()

    makers = {"mvray": lambda: _often(lambda: generator(batch), times), "extractor": lambda: _often(theirs, times)}
    compared(makers, times * size, given.rounds, "samples/s", f"features, vgg16, 7 layers, batches of {size}")


def kmeans_(given: argparse.Namespace) -> None:
    points, dims, clusters, iterations = (77_000, 256, 3000, 20) if GPU else (500, 8, 10, 20)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "kmeans")
        bench_kmeans.make(file, points, dims, clusters)
        points_ND = torch.from_numpy(np.load(file.with_suffix(".points.npy"))).to(DEVICE)
    index_N = torch.arange(points, device=DEVICE)
    start_KD = kmeans._start(points_ND, index_N, points, clusters, 0, lambda tensor: tensor)
    said: dict[str, str] = {}

    def mine() -> None:
        found = kmeans.kmeans(
            points_ND, index_N, points, clusters, seed=0, sum_over_ranks=lambda tensor: tensor, iterations=iterations
        )
        said["mvray"] = f"inertia {found.inertia:.1f}, {found.iterations} iterations"

    def lloyd() -> None:
        centroids_KD = start_KD
        for _ in range(iterations):
            label_N = (points_ND @ centroids_KD.T - centroids_KD.square().sum(1) / 2).argmax(1)
            sums = torch.zeros_like(centroids_KD).index_add_(0, label_N, points_ND)
            counts = torch.bincount(label_N, minlength=clusters)[:, None]
            centroids_KD = torch.where(counts > 0, sums / counts.clamp(min=1), centroids_KD)
        label_N = (points_ND @ centroids_KD.T - centroids_KD.square().sum(1) / 2).argmax(1)
        said["plain"] = f"inertia {float((points_ND - centroids_KD[label_N]).square().sum(dtype=torch.float64)):.1f}"

    title = f"k-means, {points} x {dims}, k = {clusters}"
    compared({"mvray": lambda: mine, "Lloyd, plain torch": lambda: lloyd}, 1, given.rounds, "runs/s", title)
    print(f"  {said}")


def save(given: argparse.Namespace) -> None:
    case = CASES["DeepCluster VGG16, Adam, 256 x 224 x 224"]
    case = case if GPU else replace(case.tiny(), config=replace(case.config, network="vgg-small"))
    with tempfile.TemporaryDirectory() as folder:
        step = Train("bench", case.config, Data(Folder(root=folder)), case.optim, select=LAST)
        made = samples_module.Task(step, 0, folder, case.facts, 1)
        before, loop.Samples = loop.Samples, lambda each, here: InMemory(case, batches, 1, each)
        batches = batches_of(replace(case, optim=replace(case.optim, batch_size=8)), 1)
        parts = loop._parts(made, Local(), Storage(folder))
        loop.Samples = before  # type: ignore[misc]
        here, at = Local(), state.State()
        loop._epoch(made, parts, at, here)
        for round_ in range(3):
            at.steps = round_
            held = seconds(lambda: state.save(parts, at, here))
            written = seconds(parts.checkpoints.wait)
            print(
                f"checkpoint of VGG16 with Adam: held up {held:.2f} s, written after {held + written:.2f} s", flush=True
            )


PARTS = {"train": train, "files": files, "maps": maps, "features": features_, "kmeans": kmeans_, "save": save}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--only", default="", help="part of the title of a training case")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: a minute before the first step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="training steps of a round")
    parser.add_argument("--workers", type=int, default=16, help="what decodes files: threads or processes")
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if GPU else "cpu"
    print(f"{name}, torch {torch.__version__}, median of {given.rounds} rounds", flush=True)
    for part in given.parts:
        PARTS[part](given)


if __name__ == "__main__":
    main()
