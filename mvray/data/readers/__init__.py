"""data/readers: docstring to be written."""
