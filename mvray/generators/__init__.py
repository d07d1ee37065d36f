"""generators: docstring to be written."""
