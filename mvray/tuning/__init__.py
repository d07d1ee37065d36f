"""Searches: studies, suggestions, and Ray Tune."""

from mvray.tuning import study, tune
from mvray.tuning.study import Study
from mvray.tuning.suggest import Known, as_optuna

__all__ = ["Known", "Study", "as_optuna", "study", "tune"]
