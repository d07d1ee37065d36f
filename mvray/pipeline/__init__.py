"""A job here and now: what it means (plan), and one driver per kind of step."""

from mvray.pipeline import cost, plan, train
from mvray.pipeline.outputs import columns_of, joined, samples_of
from mvray.pipeline.plan import MANIFEST, Plan, Planned, rows_of
from mvray.pipeline.run import chosen, do, execute
from mvray.pipeline.step_log import ProgressLines, SearchLog, StepLog

__all__ = [
    "MANIFEST",
    "Plan",
    "Planned",
    "ProgressLines",
    "SearchLog",
    "StepLog",
    "chosen",
    "columns_of",
    "cost",
    "do",
    "execute",
    "joined",
    "plan",
    "rows_of",
    "samples_of",
    "train",
]
