"""Measurements through real processes. `make bench` runs the first script."""
