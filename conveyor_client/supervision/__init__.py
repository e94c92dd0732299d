"""Runs the services of the suite as child processes: starts, watches, restarts and stops them."""
