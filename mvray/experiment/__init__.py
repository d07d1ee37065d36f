"""experiment: docstring to be written."""
