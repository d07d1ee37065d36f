"""tracking: docstring to be written."""
