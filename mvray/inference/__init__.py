"""A trained step on anyone's pictures: look, group, find."""

from mvray.inference.find import find
from mvray.inference.group import group
from mvray.inference.look import look

__all__ = ["find", "group", "look"]
