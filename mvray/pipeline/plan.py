"""What a job means here and now: its data indexed, its steps with ids, folders and states.

Planning reads the data's index and the storage; it starts nothing and changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mvray.data import check, fingerprint
from mvray.errors import DataError
from mvray.experiment import LABELS, Data, Facts, Index, Job, Source, Step, Train, identify, job_file
from mvray.storage import Storage

MANIFEST = "step.json"


@dataclass(frozen=True)
class Planned:
    """A step under one seed: its id, its folder, and what it reads."""

    step: Step
    seed: int
    id: str
    storage: Storage
    index: Index
    fingerprint: str
    inputs: Mapping[str, Planned] = field(default_factory=dict)
    job: str = ""
    """The job's name."""

    @property
    def label(self) -> str:
        """The step as Ray's dashboard shows it."""
        return f"{self.job}-{self.name}"

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def title(self) -> str:
        """The step under its seed, for people."""
        return f"{self.name} (seed {self.seed})"

    @property
    def path(self) -> str:
        """The folder's name below the storage."""
        return f"{self.step.name}-{self.id}"

    @cached_property
    def folder(self) -> Storage:
        return self.storage.child(self.path)

    @property
    def finished(self) -> bool:
        return self.folder.exists(MANIFEST)

    @property
    def state(self) -> str:
        if self.finished:
            return "finished"
        return "partial" if self.folder.list() else "missing"

    def changed(self, step: Train) -> Planned:
        """``step``, which reads the same, in this one's place."""
        id_ = identify(step, self.seed, self.fingerprint, lambda other: self.inputs[other.name].id)
        return replace(self, step=step, id=id_)

    def manifest(self) -> dict[str, Any]:
        return self.folder.read_json(MANIFEST, dict)

    def changed_code(self) -> list[str]:
        """The user's code files that have changed since this finished step was made."""
        return job_file.changes(self.manifest().get("code", []), self.step)

    def metrics(self) -> dict[str, float]:
        """The step's numbers; empty while it is not finished."""
        if not self.finished or not self.folder.exists("metrics.json"):
            return {}
        return self.folder.read_json("metrics.json", dict)

    def history(self) -> list[dict[str, float]]:
        """The metrics of a step with curves, one row per epoch."""
        return self.folder.read_json("history.json", list)

    @property
    def data(self) -> Data:
        return self.step.data

    @property
    def facts(self) -> Facts:
        """What the method of a Train step is built for."""
        return facts_of(self.data, self.index)

    def check(self) -> None:
        """Raises UserError where the step cannot be executed as it is asked for: before a run starts anything.

        Not in `make`: a report has no --workers, and what is finished may have been made by fewer than the job's.
        """
        self.step.check_here(self.facts)

    def rows(self) -> pa.Table:
        """The index rows that this step works on."""
        return rows_of(self.index, self.step.splits)


def rows_of(index: Index, splits: tuple[str, ...]) -> pa.Table:
    """Rows of these splits; all rows where none is named."""
    if not splits:
        return index.rows
    return index.rows.filter(pc.is_in(index.rows["split"], pa.array(splits)))


@dataclass(frozen=True)
class Plan:
    """Every step of a job under every seed that it depends on, inputs before what reads them."""

    job: Job
    storage: Storage
    steps: tuple[Planned, ...]

    def of(self, step: Step, seed: int) -> Planned:
        """The planned form of a step of the job; one that does not depend on the seed has one for all."""
        same_step = [planned for planned in self.steps if planned.name == step.name]
        return next((planned for planned in same_step if planned.seed == seed), same_step[0])

    def missing(self) -> list[Planned]:
        return [planned for planned in self.steps if not planned.finished]

    def indexes(self) -> Iterator[tuple[Data, Index]]:
        """Each data source of the job once."""
        yielded: set[int] = set()
        for planned in self.steps:
            if id(planned.index) not in yielded:
                yielded.add(id(planned.index))
                yield planned.data, planned.index


def make(job: Job, storage: Storage) -> Plan:
    """Index the job's data and work out ids. Raises DataError for bad data, before anything starts."""
    indexes: dict[Source, Index] = {}
    prints: dict[tuple[Source, tuple[str, ...]], str] = {}
    steps: dict[str, Planned] = {}
    for step in job.walk():
        data = step.data
        if data.source not in indexes:
            indexes[data.source] = data.source.index()
            check(indexes[data.source], data.max_bad_fraction)
        splits = step.splits
        if (data.source, splits) not in prints:
            prints[data.source, splits] = fingerprint(indexes[data.source], splits)
        _check_splits(step, rows_of(indexes[data.source], splits), data.source)
        _check_targets(step, rows_of(indexes[data.source], splits))
        step.check_data(facts_of(data, indexes[data.source]), rows_of(indexes[data.source], splits))
    beside = {step.name: _content(step) for step in job.walk()}
    for seed in job.seeds:
        by_name: dict[str, Planned] = {}
        for step in job.walk():
            data = step.data
            print_ = prints[data.source, step.splits] + beside[step.name]
            # A step that draws nothing and reads nothing that was drawn is the same under every seed (masks by given
            # weights, or from files): its seed is 0, so that it has one id and is made once.
            own = seed if step.draws or any(by_name[other.name].seed == seed for other in step.inputs) else 0
            id_ = identify(step, own, print_, lambda other, by_name=by_name: by_name[other.name].id)  # type: ignore[misc]
            inputs = {other.name: by_name[other.name] for other in step.inputs}
            planned = Planned(step, own, id_, storage, indexes[data.source], print_, inputs, job.name)
            by_name[step.name] = steps.setdefault(planned.path, planned)
    return Plan(job, storage, tuple(steps.values()))


def facts_of(data: Data, index: Index) -> Facts:
    """What a method that is trained on ``data`` is built for."""
    samples = pc.sum(pc.equal(index.rows["split"], "train")).as_py() or 0
    return Facts.of(index.classes, data.pictures, samples)


def _content(step: Step) -> str:
    """A hash of files beside the data that a step reads, "" for none. Raises DataError where one is missing."""
    hashed, root = hashlib.sha256(), step.data.source.root
    for name in step.files:
        try:
            hashed.update(Storage(root).read(name))
        except FileNotFoundError:
            raise DataError(
                f"Step {step.name!r} reads the file {name} below {root}, which is not there. Expected the masks of its "
                "samples; give the file's path below the data's root, or choose another segmenter: "
                f"--set {step.name}.generator.segmenter=mask_rcnn or detectron2."
            ) from None
    return hashed.hexdigest() if step.files else ""


def _check_targets(step: Step, rows: pa.Table) -> None:
    """Every sample needs each target that the step reads, and labels where it reads those of several."""
    if step.needs_labels and LABELS not in rows.column_names:
        raise DataError(
            f"{step.data.source.root}: {step.name!r} learns from pictures with several labels, and there are none; "
            "expected them in the data's annotations. Choose another source, or a method without."
        )
    for name in step.targets:
        missing = rows.filter(pc.equal(pc.struct_field(rows["targets"], [name, "location"]), ""))
        if len(missing):
            raise DataError(
                f"{step.data.source.root}: {len(missing)} of {len(rows)} samples of step {step.name!r} have no {name}, "
                f"first {missing['location'][0]}; expected one for each. Choose other splits, or a method without."
            )


def _check_splits(step: Step, rows: pa.Table, source: Source) -> None:
    """Every step needs samples, and some of each split that it must have."""
    if not len(rows):
        raise DataError(
            f"{source.root}: there are no samples for step {step.name!r}, which reads the splits "
            f"{', '.join(step.splits) or '(all)'}. Give more data, or larger shares with --set source.test."
        )
    for split in step.must_have:
        if not pc.sum(pc.equal(rows["split"], split)).as_py():
            raise DataError(
                f"{source.root}: there are no {split} samples for step {step.name!r} ({len(rows)} samples in all). "
                "Give more data, or larger shares with --set source.train / source.validation."
            )
