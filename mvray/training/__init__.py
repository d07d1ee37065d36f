"""THE loop of one rank, and its parts: state, samples, checkpoints, coordination, environment."""

from mvray.training import pictures
from mvray.training.environment import Local, use_given_threads
from mvray.training.live_progress import gpu_use, gpu_words, where
from mvray.training.loop import train
from mvray.training.progress import StepProgress
from mvray.training.task import SearchTrial, Task
from mvray.training.trained import load_method

__all__ = [
    "Local",
    "SearchTrial",
    "StepProgress",
    "Task",
    "gpu_use",
    "gpu_words",
    "load_method",
    "pictures",
    "train",
    "use_given_threads",
    "where",
]
