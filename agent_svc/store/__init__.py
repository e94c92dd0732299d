"""Transcripts: sessions, finished exchanges, and the steps of runs."""
