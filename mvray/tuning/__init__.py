"""Searches: studies, suggestions, and Ray Tune."""

from mvray.tuning import study
from mvray.tuning.study import Study
from mvray.tuning.suggest import Known, as_optuna
from mvray.tuning.tune import tune_study

__all__ = ["Known", "Study", "as_optuna", "study", "tune_study"]
