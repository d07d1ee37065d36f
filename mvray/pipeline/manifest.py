"""step.json: what a finished step says of itself. It is written last; without it a step does not count."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mvray.experiment import encoded, flat, git_commit, job_file, versions
from mvray.tracking import now, plain_addresses, redacted_all

if TYPE_CHECKING:
    from mvray.pipeline.cost import Cost
    from mvray.pipeline.plan import Planned


def manifest_of(planned: Planned, seconds: float, run: str | None, cost: Cost) -> dict[str, Any]:
    """What step.json says: settings, inputs, data, versions, time; ``cost`` counts earlier attempts too."""
    rows = planned.rows()
    return {
        "name": planned.name,
        "kind": planned.step.kind,
        "id": planned.id,
        "seed": planned.seed,
        "settings": redacted_all(flat(planned.step)),
        # Names of classes must stay, whatever secret variables say. No address in it is used again.
        "step": redacted_all(encoded(planned.step), plain_addresses),
        "code": job_file.about(planned.step),
        "inputs": {name: other.id for name, other in planned.inputs.items()},
        "data": {
            "fingerprint": planned.fingerprint,
            "samples": {item["values"]: item["counts"] for item in rows["split"].value_counts().to_pylist()},
            "classes": list(planned.index.classes),
            "unseen": list(planned.index.unseen),
            "bad": len(planned.index.bad),
        },
        "seconds": round(seconds, 3),
        "spent": {name: round(value, 6) for name, value in asdict(cost).items()},
        "finished_at": now(),
        "tracking": run,
        "versions": versions(),
        "git_commit": git_commit(),
    }
