"""metrics: docstring to be written."""
