"""What Ray Tune costs per trial: a search of K trials, one at a time, against the same steps run one after the other.

    python tests/benchmarks/bench_tune.py [--trials 8]

Both use one Ray and one worker group that stays, and train every trial to its end, in folders of their own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_tune import JOB, Lines, job_of, searched

from mvray.api import load_job
from mvray.cluster.session import Cluster
from mvray.experiment.overrides import replaced
from mvray.pipeline import plan
from mvray.pipeline.run import execute, selected_steps
from mvray.reports.mlflow_runs import RunLog
from mvray.storage.storage import Storage
from mvray.tracking.tracker import Tracker


def pictures(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for shade, name in enumerate(("ada", "ben", "cleo")):
        (root / name).mkdir(parents=True)
        for number in range(20):
            pixels = draw.integers(0, 100, (12, 8)) + 60 * shade
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:02d}.png")
    return root


def one_after_the_other(data: Path, place: Path, cluster: Cluster, trials: list[dict[str, object]]) -> float:
    """Seconds for the steps with these settings, as `mvray run --set` does them."""
    tracker = Tracker(f"sqlite:///{place}/mlflow.db", "bench", place / ".spool")
    begun = 0.0
    for settings in [{}, *trials]:  # the first is the step's own, and makes what it reads
        job = replaced(job_of(data), {f"second.{name}": value for name, value in settings.items()})
        made = plan.make(job, Storage(str(place)))
        execute(made, cluster, RunLog(tracker, made, {}), Lines())
        begun = begun or time.monotonic()
    seconds = time.monotonic() - begun
    tracker.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=8)
    count = parser.parse_args().trials
    place = Path(tempfile.mkdtemp(prefix="bench-tune-"))
    data = pictures(place / "data")
    cluster = Cluster(Storage(str(place / "runs")))
    cluster.start(load_job(JOB, False, None))
    cluster.ready()
    job = job_of(data, scheduler="none", sampler="random")
    made = plan.make(replace(job, steps=(job.steps[0].start_from,)), Storage(str(place / "tuned")))  # type: ignore[attr-defined]
    log = RunLog(Tracker(f"sqlite:///{place}/x.db", "warm", place / ".spool"), made, {})
    execute(made, cluster, log, Lines())  # phase 1, and a worker group
    log.close("FINISHED")
    assert len(selected_steps(made, None)) == 1
    begun = time.monotonic()
    study, _ = searched(job, place / "tuned", cluster, 1, 1)
    first = time.monotonic() - begun
    begun = time.monotonic()
    study, _ = searched(job, place / "tuned", cluster, count, 1)
    tuned = time.monotonic() - begun
    alone = one_after_the_other(data, place / "run", cluster, [trial.settings for trial in study.trials[1:]])
    rest = count - 1
    print(f"search of the first trial, Tune's own start included   {first:6.1f} s")
    print(f"search of {rest} more trials                             {tuned:6.1f} s   {tuned / rest:5.2f} s per trial")
    print(f"the same {rest} steps by mvray run's executor             {alone:6.1f} s   {alone / rest:5.2f} s per step")
    print(f"Tune's cost per trial                                             {(tuned - alone) / rest:5.2f} s")
    cluster.stop()


if __name__ == "__main__":
    main()
