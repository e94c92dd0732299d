"""Harness processes and the protocol spoken with them. Knows no runs, events or databases."""
