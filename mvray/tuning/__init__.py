"""tuning: docstring to be written."""
