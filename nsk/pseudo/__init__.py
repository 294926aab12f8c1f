"""Pseudo-labels: calibration, selection policies and the engines that process many files."""
