"""Sweeps: many runs in one workdir, a table of their results, and what they will cost."""
