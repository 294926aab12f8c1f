"""Predictions, metrics and evaluation suites."""
