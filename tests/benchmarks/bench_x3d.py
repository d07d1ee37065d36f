"""Training steps of X3D: ours against pytorchvideo 0.1.5's, and what layouts, bf16 and torch.compile bring.

The same weights, clips (B x 3 x 16 x S x S float32, contiguous), labels, device and threads, in one run: forward,
cross-entropy, backward, a step of SGD; no dropout. Rounds alternate between all that is compared and each
ratio is taken within a round, so what else the machine does falls on all of them; the median round counts.
Peak memory is measured in a process of its own per row: on CPUs what the steps add to the resident
memory that the process had before them, on GPUs what torch allocated.

Run: python tests/benchmarks/bench_x3d.py [--side 112 --batch 2] [--rounds 5] [--threads 2] [--compile]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mvray.nn.x3d import x3d

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it uses torch.jit.script
    from pytorchvideo.models.x3d import create_x3d

CLASSES = 101
WANTED = {"pytorchvideo": "wanted 1.0"}
Step = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One of the compared: whose network, and how it is executed."""

    ours: bool
    channels_last: bool = False
    bf16: bool = False
    compiled: bool = False


ROWS: Mapping[str, Row] = {
    "mvray": Row(ours=True),
    "pytorchvideo": Row(ours=False),
    "pytorchvideo, channels last": Row(ours=False, channels_last=True),
    "mvray, channels last": Row(ours=True, channels_last=True),
    "mvray, bf16": Row(ours=True, bf16=True),
    "mvray, bf16, channels last": Row(ours=True, channels_last=True, bf16=True),
    "pytorchvideo, bf16": Row(ours=False, bf16=True),
    "mvray, compiled": Row(ours=True, compiled=True),
}


def network(row: Row, name: str, side: int) -> torch.nn.Module:
    torch.manual_seed(0)
    if row.ours:
        return x3d(name, CLASSES, dropout=0.0)
    made: torch.nn.Module = create_x3d(
        input_clip_length=16, input_crop_size=side, model_num_class=CLASSES, dropout_rate=0.0, head_activation=None
    )
    return made


def step_of(row: Row, name: str, frames: int, side: int, batch: int, device: str) -> Step:
    """What is measured: a training step that returns its seconds."""
    layout = torch.channels_last_3d if row.channels_last else torch.contiguous_format
    net = network(row, name, side).to(device, memory_format=layout).train()
    call = torch.compile(net) if row.compiled else net
    optimiser = torch.optim.SGD(net.parameters(), 1e-3)
    clips = torch.randn(batch, 3, frames, side, side, device=device).contiguous(memory_format=layout)
    label_B = torch.arange(batch, device=device) % CLASSES

    def step() -> float:
        begun = time.perf_counter()
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=row.bf16):
            loss = torch.nn.functional.cross_entropy(call(clips), label_B)
        loss.backward()
        optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return step


def compared(given: argparse.Namespace) -> dict[str, Row]:
    """Layouts make no difference to ours on CPUs: it chooses its own."""
    left_out = {"mvray, channels last", "mvray, bf16, channels last"} if given.device == "cpu" else set()
    if not given.compile:
        left_out |= {"mvray, compiled"}
    return {title: row for title, row in ROWS.items() if title not in left_out}


def measured(rows: Mapping[str, Row], given: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds of each, round by round, after one round to warm up."""
    steps = {title: step_of(row, "x3d-m", 16, given.side, given.batch, given.device) for title, row in rows.items()}
    return [{title: step() for title, step in steps.items()} for _ in range(given.rounds + 1)][1:]


def peak_mb(title: str, given: argparse.Namespace) -> float:
    """Megabytes of two steps, in a process of their own."""
    options = [f"--{name}={getattr(given, name)}" for name in ("side", "batch", "device", "threads")]
    done = subprocess.run(
        [sys.executable, __file__, *options, f"--memory-of={title}"], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def own_peak_mb(given: argparse.Namespace) -> float:
    step = step_of(ROWS[given.memory_of], "x3d-m", 16, given.side, given.batch, given.device)
    before_mb = highest_resident_mb()
    step()
    step()
    if given.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return highest_resident_mb() - before_mb


def highest_resident_mb() -> float:
    """Of this process; resource.getrusage would give its parent's where that was higher."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def show(rows: Mapping[str, Row], given: argparse.Namespace) -> None:
    found = measured(rows, given)
    for title in rows:
        median_s = statistics.median(each[title] for each in found)
        ratios = [each[title] / each["mvray"] for each in found]
        ratio = f"{statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        clips_s = given.batch / median_s
        print(f"{title:30}{clips_s:8.2f}  {ratio:24}{peak_mb(title, given):8.0f}  {WANTED.get(title, '')}", flush=True)


def show_tiny(given: argparse.Namespace) -> None:
    for side in (64, 96):
        step = step_of(ROWS["mvray"], "x3d-tiny", 8, side, 8, given.device)
        median_s = statistics.median([step() for _ in range(given.rounds + 1)][1:])
        print(f"x3d-tiny, batches of 8 x 3 x 8 x {side} x {side}: {8 / median_s:.1f} clips/s, wanted 20", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=112, help="height and width of the clips; 224 is X3D-M's own")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile too: minutes before the first step")
    parser.add_argument("--memory-of", choices=tuple(ROWS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore", DeprecationWarning)  # pytorchvideo's swish reads saved_variables
    if given.memory_of:
        print(own_peak_mb(given))
        return
    shape = f"{given.batch} x 3 x 16 x {given.side} x {given.side}"
    print(f"{given.device}, {given.threads} threads, X3D-M, batches of {shape}, median of {given.rounds} rounds")
    print(f"{'':30}{'clips/s':>8}  {'mvray is faster by':24}{'peak MB':>8}")
    show(compared(given), given)
    show_tiny(given)


if __name__ == "__main__":
    main()
