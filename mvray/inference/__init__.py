"""A trained step on anyone's pictures: look, group, find, apply."""

from mvray.inference.apply import apply
from mvray.inference.find import find
from mvray.inference.group import group
from mvray.inference.look import look
from mvray.inference.model import load_step
from mvray.inference.results import Result, SearchResult, StepResult

__all__ = ["Result", "SearchResult", "StepResult", "apply", "find", "group", "load_step", "look"]
