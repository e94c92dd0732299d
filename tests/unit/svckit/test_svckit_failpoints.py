"""Points at which tests kill processes: armed by a file, once, and nothing without the variable."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from svckit import failpoints

PROGRAM = """
import svckit.failpoints as f
for n in range(5):
    print(n, flush=True)
    f.failpoint("here.and.now")
"""


PLACES = """
import asyncio, contextvars
import svckit.failpoints as f
from svckit.grpc.deadline import spawn

async def main():
    for place in ("one", "two"):
        with f.at(f.place_of("agent:main:web:" + place, 1)):
            f.failpoint("here.and.now")
            await spawn(later(place), name="later")
    f.failpoint("here.and.now")

async def later(place):
    f.failpoint("and.then")
    print(place, flush=True)

asyncio.run(main())
"""


def run(directory: Path | None, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    environ = {"CONVEYOR_FAILPOINTS": str(directory)} if directory else {}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environ | {"PYTHONPATH": str(Path(failpoints.__file__).parents[1])},
    )


def test_a_process_dies_at_the_passage_that_is_named_and_the_next_one_lives(tmp_path: Path) -> None:
    (tmp_path / "here.and.now").write_text("kill 3")
    died = run(tmp_path)
    assert died.returncode == -9
    assert died.stdout.split() == ["0", "1", "2"]
    assert run(tmp_path).stdout.split() == ["0", "1", "2", "3", "4"]


def test_a_point_can_be_slow(tmp_path: Path) -> None:
    (tmp_path / "here.and.now").write_text("delay 0.1")
    began = time.monotonic()
    assert run(tmp_path).returncode == 0
    assert time.monotonic() - began >= 0.5


def test_a_point_can_be_armed_for_one_place(tmp_path: Path) -> None:
    (tmp_path / "and.then@two.1").write_text("kill 1")
    died = run(tmp_path, PLACES)
    assert died.returncode == -9
    assert died.stdout.split() == ["one"]


def test_what_was_passed_at_a_place_is_noted_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "passed").touch()
    (tmp_path / "here.and.now@two.1").write_text("kill 1")
    assert run(tmp_path, PLACES).returncode == -9
    passed = [line.split()[1] for line in (tmp_path / "passed").read_text().splitlines()]
    assert passed == ["here.and.now@one.1", "and.then@one.1", "here.and.now@two.1"]


def test_without_the_variable_a_point_is_nothing() -> None:
    assert not failpoints.ARMED
    assert failpoints.failpoint is failpoints._nothing
    assert run(None).returncode == 0
