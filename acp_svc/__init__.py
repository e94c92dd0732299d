"""The harness service: finds, examines and (in a later release) drives external coding agents."""
