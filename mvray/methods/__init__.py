"""methods: docstring to be written."""
