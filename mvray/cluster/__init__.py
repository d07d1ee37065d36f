"""cluster: docstring to be written."""
