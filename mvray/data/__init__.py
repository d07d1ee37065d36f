"""Readers of the public dataset layouts, and the way from their files to batches."""
