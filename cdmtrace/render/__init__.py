"""Data in, text out: pure functions that know nothing of the analysis."""
