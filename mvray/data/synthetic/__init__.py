"""Small data sets, composed out of real drawings in the public layouts that mvray/data reads."""
