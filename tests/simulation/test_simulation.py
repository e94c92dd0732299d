"""Schedules by the thousand of a scheduler, its workers and callers, with crashes, on virtual time.

SIM_SEED=17 pytest tests/simulation          runs one schedule again
SIM_SCHEDULES=20000 pytest tests/simulation  runs more of them; CI runs 2,000
SIM_FIRST=1000000 …                          begins with another seed
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.schedule import Verdict, run_schedule

SCHEDULES = int(os.environ.get("SIM_SCHEDULES", "100"))
FIRST = int(os.environ.get("SIM_FIRST", "0"))
SEED = os.environ.get("SIM_SEED")
STORE = os.environ.get("SIM_STORE", "memory")
# A search takes what it takes; the bound only ends one that hangs.
BOUND = 60 + SCHEDULES


def schedule(seed: int) -> Verdict:
    """Every twentieth on SQLite."""
    try:
        return run_schedule(seed, "sqlite" if seed % 20 == 19 else "memory")
    finally:
        gc.collect()


def prepare() -> None:
    """What was imported is no garbage, what a schedule leaves is collected after it, and tests
    that run beside it go first."""
    os.nice(10)
    gc.collect()
    gc.freeze()
    gc.disable()


def search(seeds: range) -> list[Verdict]:
    """Runs them on all cores; the verdicts that name a problem."""
    with multiprocessing.get_context("spawn").Pool(initializer=prepare) as pool:
        verdicts = pool.imap_unordered(schedule, seeds, chunksize=10)
        found = [verdict for verdict in verdicts if verdict.problem]
        pool.close()
        pool.join()
    return sorted(found, key=lambda verdict: verdict.seed)


@pytest.mark.skipif(SEED is None, reason="SIM_SEED names no schedule")
@pytest.mark.timeout(BOUND)
def test_one_schedule() -> None:
    assert SEED is not None
    verdict = run_schedule(int(SEED), STORE)
    assert not verdict.problem, verdict.problem


@pytest.mark.skipif(SEED is not None, reason="SIM_SEED names one schedule")
@pytest.mark.timeout(BOUND)
def test_every_schedule_keeps_the_promises() -> None:
    found = search(range(FIRST, FIRST + SCHEDULES))
    seeds = ", ".join(str(verdict.seed) for verdict in found)
    assert not found, f"{len(found)} of {SCHEDULES} schedules failed: {seeds}\n{found[0].problem}"


def test_a_seed_gives_the_same_schedule_in_every_process() -> None:
    """Also with other hashes of strings, in the order of which sets come."""
    here = run_schedule(4)
    code = "from tests.simulation.schedule import run_schedule; print(run_schedule(4).digest)"
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        assert there.stdout.strip() == here.digest
    assert here.steps > 50
