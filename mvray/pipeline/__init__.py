"""A job here and now: what it means (plan), and one driver per kind of step."""

from mvray.pipeline import cost, plan, train
from mvray.pipeline.outputs import columns_of, measure_table, samples_of
from mvray.pipeline.plan import MANIFEST, Plan, Planned, rows_of
from mvray.pipeline.run import check_only, execute, run_step, selected_steps
from mvray.pipeline.step_log import ProgressLines, SearchLog, StepLog

__all__ = [
    "MANIFEST",
    "Plan",
    "Planned",
    "ProgressLines",
    "SearchLog",
    "StepLog",
    "check_only",
    "columns_of",
    "cost",
    "execute",
    "measure_table",
    "plan",
    "rows_of",
    "run_step",
    "samples_of",
    "selected_steps",
    "train",
]
