"""Names of the textbook questions, apart from the rest: the command line needs them early."""

from __future__ import annotations

from enum import StrEnum


class Preset(StrEnum):
    """A textbook question; options that are given change it."""

    SEVEN = "seven"
    BLAST = "blast"
    BLAST_BACKGROUND = "blast-background"
    PEAK = "peak"
    PROVIDER = "provider"
