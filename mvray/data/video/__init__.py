"""data/video: docstring to be written."""
