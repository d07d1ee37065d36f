"""DCSM, pictures per second: ours against the order of the authors' code (mat_dcsm), on the same VGG16 and pictures.

Theirs takes one picture after another: for each scale a forward pass, then for each class a whole pass backward,
through all layers to the picture, with the weights' gradients, as MatConvNet's simplenn has it; the maps are enlarged
to the canvas and subtracted in pairs. "inputs only" is the same order without what DCSM does not need: gradients of the
nine layers' inputs alone. Ours takes all pictures through at once, back once for each candidate. Rounds alternate, each
ratio is taken within a round, the median counts. Maps are compared first.

Run: python tests/benchmarks/bench_saliency.py [--pictures 4] [--side 224] [--threads 1] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from mvray.experiment import Facts
from mvray.methods import tagger
from mvray.nn import Saliency, class_saliency

CLASSES = 21
FORM = Saliency(least_probability=0.0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WANTED = 4.0 if DEVICE == "cuda" else 2.0


def network(side: int) -> tagger.Tagger:
    torch.manual_seed(0)
    facts = Facts(tuple(f"class{i}" for i in range(CLASSES)), side, side, 3, 1)
    method = tagger.Config(network="vgg16", decoder="fcn32", loss="max").build(facts).to(DEVICE).eval()
    assert isinstance(method, tagger.Tagger)
    torch.nn.init.normal_(method.decoder.scores[0].weight, std=0.01)  # type: ignore[union-attr,index]
    return method


def ours(method: tagger.Tagger, images_B3HW: torch.Tensor, cells: int) -> torch.Tensor:
    size = images_B3HW.shape[2] // cells, images_B3HW.shape[3] // cells
    return class_saliency(method.score_maps, method, method.saliency_layers, images_B3HW, size, FORM).maps


def theirs(method: tagger.Tagger, images_B3HW: torch.Tensor, cells: int, weights: bool) -> torch.Tensor:
    """The same maps in the authors' order; ``weights``: with the gradients of weights and of the picture."""
    canvas = images_B3HW.shape[2] // cells, images_B3HW.shape[3] // cells
    layers = [method.get_submodule(name) for name in method.saliency_layers]
    found = []
    inputs: list[torch.Tensor] = []

    def enter(_layer: torch.nn.Module, values: tuple[torch.Tensor, ...]) -> None:
        inputs.append(values[0])

    def clamp(_layer: torch.nn.Module, _values: object, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: gradient.clamp_min(0))  # type: ignore[no-untyped-call]

    relus = [layer for layer in method.modules() if isinstance(layer, torch.nn.ReLU)]
    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(clamp) for layer in relus]
    for image_3HW in images_B3HW:
        passes = []
        for scale in FORM.scales:
            size = [round(side * scale) for side in image_3HW.shape[1:]]
            picture = (
                image_3HW[None].float()
                if scale == 1
                else functional.interpolate(image_3HW[None].float(), size, mode="bilinear")
            )
            inputs.clear()
            passes.append((picture.requires_grad_(), method.score_maps(picture), list(inputs)))
        tags = torch.stack([tags for _, (_, tags), _ in passes]).amax((0, 1))
        chosen = (tags[1:].topk(FORM.candidates).indices + 1).tolist()
        total = torch.zeros(len(chosen), *canvas, device=DEVICE)
        for picture, (scores, _), of_layers in passes:
            wanted = [*of_layers, *((picture, *method.parameters()) if weights else ())]
            gradients = [
                torch.autograd.grad(scores[0, class_].sum(), wanted, retain_graph=True, allow_unused=True)
                for class_ in chosen
            ]
            for layer in range(len(of_layers)):
                maps = [
                    functional.interpolate(of[layer].abs().amax(1, keepdim=True), canvas, mode="bilinear")[0, 0]
                    for of in gradients
                ]
                for first in range(len(chosen)):
                    for second in range(len(chosen)):
                        difference = maps[first] - maps[second]
                        if difference.max() > 0:
                            total[first] += torch.tanh(3 * difference / difference.max()).clamp_min(0)
        found.append(torch.tanh(3 * total / total.amax((1, 2), keepdim=True)))
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, number in (("pictures", 4), ("side", 224), ("threads", 1), ("rounds", 3), ("cell", 4)):
        parser.add_argument(f"--{name}", type=int, default=number)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    method = network(args.side)
    shape = (args.pictures, 3, args.side, args.side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "mvray": lambda: ours(method, images, args.cell),
        "authors' order": lambda: theirs(method, images, args.cell, True),
        "inputs only": lambda: theirs(method, images, args.cell, False),
    }
    maps = {name: run() for name, run in runs.items()}
    for name in runs:
        # A difference of next to nothing is scaled to 1, rounding errors too: single cells may differ.
        assert float((maps[name] - maps["mvray"]).abs().mean()) < 2e-3, name
    rounds = [{name: seconds(run) for name, run in runs.items()} for _ in range(args.rounds)]
    print(f"DCSM on {DEVICE}, {args.threads} threads, {args.pictures} pictures of {args.side} px, {args.rounds} rounds")
    for name in runs:
        rate = args.pictures / statistics.median(of[name] for of in rounds)
        ratio = statistics.median(of[name] / of["mvray"] for of in rounds)
        wanted = f"   wanted {WANTED}" if name == "authors' order" else ""
        print(f"{name:16}{rate:8.2f} pictures/s   mvray is {ratio:.2f} times as fast{wanted}")


if __name__ == "__main__":
    main()
