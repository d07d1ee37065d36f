"""inference: docstring to be written."""
