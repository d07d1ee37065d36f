"""reports: docstring to be written."""
