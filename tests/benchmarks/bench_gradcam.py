"""Grad-CAM maps per second: ours against grad-cam 1.5.7 and against a bare forward pass.

The same network with random weights, the same batch (B x 3 x 224 x 224 float32, contiguous), layer,
classes, device and threads, in one run. Rounds alternate between the three and each ratio is taken
within a round, so what else the machine does falls on all of them; the median round counts.

Ours turns the batch into channels-last memory on CPUs, which AlexNet and ResNet50 run faster in;
"peer, channels last" is grad-cam with the batch and the network given to it in that form.

Run: python tests/benchmarks/bench_gradcam.py [--batch 32] [--rounds 7] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from mvray.nn.cam import grad_cam
from mvray.nn.networks import last_convolution, network

CLASSES = 1000
WANTED = {"alexnet": 2.3, "resnet50": 3.2}
"""Ours over grad-cam; over a bare forward pass, 0.8 is wanted of both."""
FORWARD_WANTED = 0.8
Run = Callable[[], object]


def runs(name: str, batch: int, device: str) -> dict[str, Run]:
    """What is compared: each call makes the maps of the batch (or, bare, its scores)."""
    torch.manual_seed(0)
    net = network(name, CLASSES).to(device).eval()
    layer = last_convolution(net)
    images_BCHW = torch.randn(batch, 3, 224, 224, device=device)
    classes_B = torch.arange(batch, device=device) % CLASSES
    targets = [ClassifierOutputTarget(int(each)) for each in classes_B]
    last = {"memory_format": torch.channels_last}
    images_last_BCHW, net_last = images_BCHW.to(**last), copy.deepcopy(net).to(**last)
    peer, peer_last = (GradCAM(each, [each.get_submodule(layer)]) for each in (copy.deepcopy(net), net_last))

    def forward() -> object:
        with torch.no_grad():
            return net(images_BCHW)

    return {
        "mvray": lambda: grad_cam(net, net, layer, images_BCHW, classes_B),
        "bare forward": forward,
        "grad-cam": lambda: peer(images_BCHW, targets),
        "peer, channels last": lambda: peer_last(images_last_BCHW, targets),
    }


def seconds(run: Run, device: str) -> float:
    begun = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def measured(compared: Mapping[str, Run], rounds: int, device: str) -> list[dict[str, float]]:
    """Seconds of each, round by round, after one round to warm up."""
    return [{name: seconds(run, device) for name, run in compared.items()} for _ in range(rounds + 1)][1:]


def show(name: str, batch: int, found: list[dict[str, float]]) -> None:
    wanted = {"bare forward": f"wanted {FORWARD_WANTED}", "grad-cam": f"wanted {WANTED[name]}"}
    for other in found[0]:
        median_s = statistics.median(each[other] for each in found)
        ratios = [each[other] / each["mvray"] for each in found]
        ratio = f"{statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:10}{other:22}{batch / median_s:8.1f}  {ratio:24}{wanted.get(other, '')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{given.device}, {given.threads} threads, batches of {given.batch}, median of {given.rounds} rounds")
    print(f"{'network':10}{'':22}{'maps/s':>8}  mvray is faster by")
    for name in WANTED:
        show(name, given.batch, measured(runs(name, given.batch, given.device), given.rounds, given.device))


if __name__ == "__main__":
    main()
