"""How far a step is: the one record that its workers write (progress.json) and the driver reads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from mvray.storage import Storage

PROGRESS = "progress.json"


@dataclass(frozen=True)
class StepProgress:
    """``text`` is for people. ``workers`` are at work, None where as many as the step asks for; ``cpus`` and ``gpus``
    are held, None where they follow from the workers. ``history`` has the metrics of each epoch so far; ``trouble``
    says what is wrong with checkpoints, "" where nothing is.
    """

    text: str
    workers: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    history: tuple[dict[str, float], ...] = ()
    trouble: str = ""

    def write(self, folder: Storage) -> bool:
        """Put it into the step's folder; returns whether that went well: it is tried once."""
        return folder.try_write(PROGRESS, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, folder: Storage) -> StepProgress:
        """The last one. Raises FileNotFoundError before the first, OSError and DataError where it cannot be read."""
        written = folder.read_json(PROGRESS, dict)
        try:
            return cls(**{**written, "history": tuple(written["history"])})
        except (KeyError, TypeError) as error:
            raise folder.damaged(PROGRESS, str(error)) from error

    @staticmethod
    def clear(folder: Storage) -> None:
        """Remove what the last workers wrote."""
        folder.delete(PROGRESS)
