"""How a search's trials are kept when others work on the same search, or the storage is away: without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvray.api import load_job
from mvray.errors import StorageFailed, TakenOver
from mvray.pipeline import plan
from mvray.storage.storage import Storage
from mvray.tuning import study
from mvray.tuning.study import Study


def study_of(drawings: Path, place: Path) -> Study:
    job = load_job(Path(__file__).parents[1] / "searched.py", False, str(drawings))
    return Study(job, plan.make(job, Storage(str(place))).of(job.steps[0], 0), save_every_s=0.0)


def test_who_claims_a_search_last_goes_on_with_it(drawings: Path, tmp_path: Path) -> None:
    older, newer = study_of(drawings, tmp_path), study_of(drawings, tmp_path)
    older.claim()
    trial = older.next(6)
    assert trial is not None
    older.note(trial, 1, 0.5)
    newer.claim()
    assert newer.trials == [trial]  # begun after `newer` was made
    newer.end(newer.trials[0], study.FINISHED)
    for act in (lambda: older.note(trial, 2, 0.4), lambda: older.end(trial, study.FAILED), lambda: older.next(6)):
        with pytest.raises(TakenOver, match=r"Another mvray tune has taken over .*study-second-.*; this one ends"):
            act()
    (kept,) = study_of(drawings, tmp_path).trials
    assert (kept.state, kept.values) == (study.FINISHED, [0.5])


def test_an_epoch_is_noted_while_the_storage_is_away(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = study_of(drawings, tmp_path)
    made.claim()
    trial = made.next(6)
    assert trial is not None

    def away(*_: object) -> bytes:
        raise StorageFailed("away")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "read", away)
        made.note(trial, 1, 0.5)
        patched.setattr(Storage, "insist", away)
        with pytest.raises(StorageFailed):
            made.end(trial, study.FINISHED)
    assert study_of(drawings, tmp_path).trials[0].values == []
    made.note(trial, 2, 0.4)
    assert study_of(drawings, tmp_path).trials[0].values == [0.5, 0.4]
