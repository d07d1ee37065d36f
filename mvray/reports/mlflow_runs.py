"""A job's life as MLflow runs: one run for the execution, nested in it one for each step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from mvray.experiment import UNSEEN, flat, kind_of
from mvray.metrics import confusion
from mvray.pipeline import Plan, Planned, measure_table
from mvray.reports import epoch_sheet, figures
from mvray.tracking import REUSED, STEP_ID, Tracker


class RunLog:
    """Tells MLflow what happens to a plan's steps."""

    def __init__(
        self,
        tracker: Tracker,
        plan: Plan,
        about: Mapping[str, str],
        job_file: Path | None = None,
        search: Mapping[str, Any] | None = None,
    ) -> None:
        self._tracker = tracker
        self._pictured: set[tuple[str, int]] = set()
        """Runs and epochs whose pictures have been sent, where there are any."""
        job = plan.job
        params = {"seeds": job.seeds, "storage": plan.storage.uri, **{f"version.{k}": v for k, v in about.items()}}
        tags = {"mvray.job": job.name}
        if commit := about.get("git_commit"):
            tags["mlflow.source.git.commit"] = commit.rstrip("+")
        name = job.name
        if search is not None:
            name, params = f"{job.name}: search of {search['step']}", params | flat_search(search)
            tags |= {"mvray.kind": "Search", "mvray.study": search["id"]}
        self.job = tracker.start_run(name, tags=tags, params=params)
        tracker.watch_machine(self.job)
        if job_file is not None:
            tracker.artifact(self.job, job_file)

    def started(self, planned: Planned) -> str:
        """Open the step's run; returns its handle."""
        tags = {STEP_ID: planned.id, "mvray.kind": planned.step.kind.capitalize(), "mvray.path": planned.folder.uri}
        tags |= {f"mvray.input.{name}": other.id for name, other in planned.inputs.items()}
        params = {"seed": planned.seed, **flat(planned.step)}
        run = self._tracker.start_run(_title(planned), self.job, tags, params)
        self._data(run, planned)
        return run

    def trial(self, planned: Planned, number: int, reused: bool = False) -> str:
        """Open the run of a trial of a search; returns its handle."""
        tags = {
            STEP_ID: planned.id,
            "mvray.kind": "Trial",
            "mvray.path": planned.folder.uri,
            "mvray.trial": str(number),
        }
        tags |= {REUSED: "true"} if reused else {}
        params = {"seed": planned.seed, **flat(planned.step)}
        run = self._tracker.start_run(f"trial {number}", self.job, tags, params)
        if not reused:
            self._data(run, planned)
        return run

    def ended(self, run: str, reason: str, state: str, value: Mapping[str, float]) -> None:
        """Close a trial's run: what it came to, and why it did not go on where it did not."""
        self._tracker.metrics(run, value, 0)
        if reason:
            self._tracker.tags(run, {"mvray.stopped" if state != "FAILED" else "mvray.error": reason})
        self._tracker.end_run(run, state)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the job's run."""
        self._tracker.tags(self.job, tags)

    def log_totals(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers of the whole search after ``step`` trials."""
        self._tracker.metrics(self.job, metrics, step)

    def reused(self, planned: Planned) -> None:
        """A step that was finished before: a run that links to the one that made it."""
        manifest = planned.manifest()
        tags = {STEP_ID: planned.id, REUSED: "true", "mvray.kind": planned.step.kind.capitalize()}
        tags["mvray.path"] = planned.folder.uri
        tags |= {f"mvray.input.{name}": id_ for name, id_ in manifest["inputs"].items()}
        run = self._tracker.start_run(_title(planned), self.job, tags, {"seed": planned.seed})
        self._tracker.end_run(run)

    def epochs(self, run: str, planned: Planned, history: list[dict[str, float]]) -> None:
        """Log metrics and pictures of each epoch; epochs that were logged before are not sent again."""
        for row in history:
            epoch = int(row["epoch"])
            self._tracker.metrics(run, {k: v for k, v in row.items() if k != "epoch"}, epoch)
            if planned.step.curves and (run, epoch) not in self._pictured:
                if sheet := epoch_sheet.draw(planned, epoch):
                    self._tracker.image(run, sheet, "validation/samples", epoch)
                self._pictured.add((run, epoch))

    def finished(self, run: str, planned: Planned, metrics: Mapping[str, float], costs: Mapping[str, float]) -> None:
        """Close the step's run with its numbers, what it has cost, and its pictures."""
        if planned.step.curves:
            self.epochs(run, planned, planned.history())
        self._tracker.metrics(run, {**{f"result/{k}": v for k, v in metrics.items()}, **costs}, 0)
        if planned.folder.exists("quarantine.parquet"):
            self._tracker.figure(run, planned.folder.read("quarantine.parquet"), "quarantine.parquet")
        for name, picture in self._figures(planned).items():
            self._tracker.figure(run, picture, name)
        self._tracker.end_run(run)

    def failed(self, run: str, error: BaseException, interrupted: bool) -> None:
        self._tracker.tags(run, {"mvray.error": f"{type(error).__name__}: {error}"})
        self._tracker.end_run(run, "KILLED" if interrupted else "FAILED")

    def pictures(self, pictures: Mapping[str, bytes]) -> None:
        """Log pictures of the whole job, by artifact path."""
        for name, content in pictures.items():
            self._tracker.figure(self.job, content, name)

    def results(self, metrics: Mapping[str, float]) -> None:
        """Log numbers of the whole job on its run: the table's means, what it has cost."""
        self._tracker.metrics(self.job, metrics, 0)

    def close(self, status: str) -> str:
        """End the job's run; returns "" or a sentence on what could not be delivered."""
        self._tracker.end_run(self.job, status)
        return self._tracker.close()

    def _data(self, run: str, planned: Planned) -> None:
        rows = planned.rows()
        facts: dict[str, Any] = {"samples": len(rows), "classes": len(planned.index.names)}
        for split in pc.unique(rows["split"]).to_pylist():
            facts[split] = pc.sum(pc.equal(rows["split"], split)).as_py()
        source = planned.data.source
        name = f"{kind_of(type(source))}:{Path(source.root).name}"
        self._tracker.data(run, name, planned.fingerprint, source.root, planned.step.context, facts)

    def _figures(self, planned: Planned) -> dict[str, bytes]:
        curves = self._curves(planned) if planned.step.curves else {}
        return curves | (self._confusions(planned) if planned.step.confusion else {})

    def _curves(self, planned: Planned) -> dict[str, bytes]:
        history, drawn = planned.history(), {}
        for stem in sorted({key.rpartition("/")[2] for row in history for key in row if "/" in key}):
            lines = {
                key.partition("/")[0]: [(row["epoch"], row[key]) for row in history if key in row]
                for key in sorted({key for row in history for key in row if key.endswith(f"/{stem}")})
            }
            drawn[f"curves/{stem}.png"] = figures.curves(lines, f"{planned.name}, seed {planned.seed}", stem)
        return drawn

    def _confusions(self, planned: Planned) -> dict[str, bytes]:
        table = measure_table(planned)
        if "predicted" not in table.column_names:
            return {}
        classes = planned.index.classes
        drawn = {}
        for split in pc.unique(pc.filter(table["split"], pc.not_equal(table["split"], UNSEEN))).to_pylist():
            counts = confusion(table.filter(pc.equal(table["split"], split)), classes)
            title = f"{planned.name}, {split}, seed {planned.seed}"
            drawn[f"confusion/{split}.png"] = figures.confusion_matrix(counts, classes, title)
        return drawn


def flat_search(search: Mapping[str, Any]) -> dict[str, Any]:
    """A search's settings as MLflow shows them."""
    plain = {
        f"search.{name}": value for name, value in search.items() if name not in ("space", "trials", "best", "set")
    }
    return plain | {f"search.space.{name}": text for name, text in search["space"].items()}


def _title(planned: Planned) -> str:
    return f"{planned.name} seed {planned.seed}"
