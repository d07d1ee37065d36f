"""Seconds from a command to the first training step: `mvray run` on a fresh Ray against torchrun.

Both run the same Train step of the same job through the same loop with 2 workers; "first step" is
when the loop first says how far it is (progress.json). Rounds alternate, and the median counts.
Beside the seconds stand the CPU seconds of the whole process tree until then, which other work on
the machine disturbs less.

The job is a chain of three Train steps, so that the same run also shows what each further step costs
on the live cluster, from the end of one to the first training step of the next. Then `mvray run` once
more, with everything finished.

Run: python tests/benchmarks/bench_startup.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from mvray import Job
from mvray.data.readers.manga109 import Manga109
from mvray.experiment.inputs import Pictures
from mvray.experiment.steps import Data, Optim, Scale, Train
from mvray.methods import classifier

STEPS = ("first", "second", "third")
BIN = Path(sys.executable).parent


def job(tiny: bool = False) -> Job:
    """Three Train steps in a row, a second or two each."""
    pages = Data(Manga109(), Pictures(height=146, width=104, channels=1))
    steps: list[Train] = []
    for name in STEPS:
        start = steps[-1] if steps else None
        config = classifier.Config(network="alexnet-small")
        optim, scale = Optim(batch_size=4, epochs=2), Scale(workers=2, loader_workers=1)
        steps.append(Train(name, config, pages, optim, start_from=start, scale=scale))
    return Job("startup", tuple(steps))


def rank(job_file: Path, data: str, storage: str, settings: list[str]) -> None:
    """One rank under torchrun: plan the job as `mvray run` does and train its first step."""
    import torch

    from mvray.api import load_job
    from mvray.pipeline.plan import make
    from mvray.pipeline.run import _write_inputs
    from mvray.pipeline.train import task_of
    from mvray.storage.storage import Storage
    from mvray.training.environment import Torchrun
    from mvray.training.loop import train

    planned = make(load_job(job_file, False, data, settings), Storage(storage)).steps[0]
    here = Torchrun()
    task = task_of(planned, 0)
    if here.rank == 0:
        _write_inputs(planned)
        planned.folder.write("attempt", task.attempt.encode())
    torch.distributed.barrier()
    train(task, here)


def started(command: list[str | Path], storage: Path, log: Path) -> tuple[subprocess.Popen[bytes], float, float]:
    """Start ``command``; its process, and seconds and CPU seconds until its first training step."""
    begun = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=storage.parent)
    while not list(storage.glob("first-*/progress.json")):
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended with {process.returncode}: {log.read_text()[-3000:]}")
        time.sleep(0.02)
    seconds = time.perf_counter() - begun
    return process, seconds, cpu_seconds(psutil.Process(process.pid))


def cpu_seconds(root: psutil.Process) -> float:
    """Of a process, its descendants, and those of them that have ended."""
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def gaps(storage: Path, process: subprocess.Popen[bytes]) -> list[float]:
    """Seconds from the end of each step (its step.json) to the first training step of the next."""
    found, ended = [], 0.0
    for name in STEPS:
        for file in ("progress.json", "step.json"):
            while not list(storage.glob(f"{name}-*/{file}")):
                if process.poll() not in (None, 0):
                    raise RuntimeError(f"mvray run ended with {process.returncode}")
                time.sleep(0.02)
            if file == "progress.json":
                found.append(time.perf_counter() - ended)
            else:
                ended = time.perf_counter()
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", nargs=2, metavar=("DATA", "STORAGE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        rank(Path(__file__), *given.rank, [])
        return
    from mvray.data.synthetic.comics import compose

    measured: dict[str, list[tuple[float, float]]] = {"mvray run": [], "torchrun": []}
    further: list[float] = []
    again: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "comics"
        compose(data, titles=3, pages=12, seed=0)
        for number in range(given.rounds):
            storage = Path(folder) / f"torchrun-{number}"
            command = [BIN / "torchrun", "--nproc_per_node", "2", __file__, "--rank", data, storage]
            process, *figures = started(command, storage, Path(folder) / "torchrun.log")
            process.wait()
            measured["torchrun"].append((figures[0], figures[1]))

            storage = Path(folder) / f"mvray-{number}"
            command = [BIN / "mvray", "run", __file__, "--data", data, "--storage", storage]
            process, *figures = started(command, storage, Path(folder) / "mvray.log")
            measured["mvray run"].append((figures[0], figures[1]))
            further += gaps(storage, process)
            process.wait()
            begun = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            again.append(time.perf_counter() - begun)
    medians = {who: [statistics.median(column) for column in zip(*all_, strict=True)] for who, all_ in measured.items()}
    print(f"{'command to first training step':34} {'s':>6} {'CPU s':>6}")
    for who, (seconds, cpu) in medians.items():
        print(f"{who:34} {seconds:6.1f} {cpu:6.1f}")
    ratios = [ours / theirs for ours, theirs in zip(*medians.values(), strict=True)]
    print(f"{'ratio':34} {ratios[0]:6.2f} {ratios[1]:6.2f}")
    print(f"{'each further step, live cluster':34} {statistics.median(further):6.1f}   (most: {max(further):.1f})")
    print(f"{'mvray run, everything finished':34} {statistics.median(again):6.1f}")


if __name__ == "__main__":
    main()
