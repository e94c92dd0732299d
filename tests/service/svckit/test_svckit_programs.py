"""Programs that a service starts: contained, and gone with all that they started."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from svckit import programs
from svckit.families import FamilyRecord
from svckit.programs import Program, clear_up, environment
from svckit.testing import eventually

ENV = {"PATH": os.environ["PATH"]}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


async def test_a_program_sees_what_it_needs_and_what_it_is_given() -> None:
    ours = {"PATH": "/bin", "HOME": "/root", "OPENAI_API_KEY": "secret", "CONVEYOR_X": "1"}
    assert environment(ours, {"MODE": "read"}) == {
        "PATH": "/bin",
        "HOME": "/root",
        "MODE": "read",
    }


async def test_what_it_says_is_read_and_what_it_complains_of_is_kept_short_and_blotted() -> None:
    script = (
        "echo one; for i in $(seq 50); "
        "do printf '\\033[31mno\\033[0m %s hunter2\\n' $i >&2; done; cat; exit 3"
    )
    program = await Program.start(shell(script), ENV, owner="o", secrets=["hunter2"])
    try:
        assert await program.read() == b"one\n"
        await program.write(b"two\n")
        assert await program.read() == b"two\n"
        assert not program.quiet.is_set()
        await eventually(lambda: program.last_words[-1:] == ["no 50 ***"])
        assert len(program.last_words) == programs.RING_LINES
    finally:
        await program.stop()
    assert program.exit_code == 3
    assert await program.read() == b""
    assert program.quiet.is_set()


async def test_a_line_without_an_end_is_the_end() -> None:
    limit = programs.LINE_BYTES
    program = await Program.start(shell(f"head -c {3 * limit} /dev/zero"), ENV, owner="o")
    try:
        assert await program.read() == b""
        assert program.quiet.is_set()
    finally:
        await program.stop()


async def test_nothing_is_left_of_a_program_that_resists(tmp_path: Path) -> None:
    # It ignores what can be ignored; one child stays in its group, one leaves it and is orphaned.
    script = (
        "trap '' TERM; sleep 600 & echo $!; setsid sh -c 'sleep 600 & echo $!' & wait $!;"
        "while true; do sleep 600; done"
    )
    program = await Program.start(shell(script), ENV, owner="o")
    pids = [program.pid, int(await program.read()), int(await program.read())]
    assert all(alive(pid) for pid in pids)
    await program.stop()
    await eventually(lambda: not any(alive(pid) for pid in pids))


async def test_what_an_earlier_life_left_is_ended_and_nothing_else() -> None:
    async def start(mark: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec("sleep", "600", env={programs.MARK: mark})

    left = await start("me:earlier:1")
    others = await start("somebody:earlier:1")
    mine = await Program.start(["sleep", "600"], {}, owner="me")
    try:
        assert await clear_up("me") == 1
        assert await left.wait() == -9
        assert alive(others.pid)
        assert alive(mine.pid)
    finally:
        others.kill()
        await others.wait()
        await mine.stop()


async def test_a_long_line_is_read_where_long_lines_are_allowed() -> None:
    script = "head -c 300000 /dev/zero; echo; echo end"
    program = await Program.start(shell(script), ENV, owner="o", line_bytes=400_000)
    try:
        assert len(await program.read()) == 300_001
        assert await program.read() == b"end\n"
    finally:
        await program.stop()


async def test_its_exit_is_told_although_another_holds_its_output_open() -> None:
    program = await Program.start(shell("sleep 600 & exit 4"), ENV, owner="o")
    try:
        await asyncio.wait_for(program.exited.wait(), 30)
        await eventually(lambda: program.exit_code == 4)
        assert not program.quiet.is_set()
    finally:
        await program.stop()


STRAYS = """
import subprocess, sys
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
hidden = dict(env={}, start_new_session=True, stdout=subprocess.DEVNULL)
if len(sys.argv) == 1:
    print(subprocess.Popen(sleep, **hidden).pid, flush=True)
    subprocess.Popen([sys.executable, __file__, "go"]).wait()
    print("gone", flush=True)
else:
    print(subprocess.Popen(sleep, **hidden).pid, flush=True)
sys.stdin.readline()
"""


async def test_one_that_left_the_group_and_hid_its_mark_is_found_by_who_started_it(
    tmp_path: Path,
) -> None:
    # The first still has its parent when the program is stopped; the second has lost it by then,
    # and is known because somebody looked before.
    script = tmp_path / "strays.py"
    script.write_text(STRAYS)
    program = await Program.start([sys.executable, str(script)], ENV, owner="o")
    try:
        pids = [int(await program.read()), int(await program.read())]
        await programs.look_around()
        await program.write(b"\n")
        assert await program.read() == b"gone\n"
        assert all(alive(pid) for pid in pids)
    finally:
        await program.stop()
    await eventually(lambda: not any(alive(pid) for pid in pids))


async def test_one_that_hid_its_mark_is_found_by_a_later_life_of_a_service_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    script = tmp_path / "strays.py"
    script.write_text(STRAYS)
    program = await Program.start([sys.executable, str(script)], ENV, owner="me")
    try:
        pids = [int(await program.read()), int(await program.read())]
        record = FamilyRecord("me")
        await programs.look_around(record)
        kept = FamilyRecord("me").read()
        assert set(pids) <= set(kept)
        # A number that was given to somebody else since is left alone.
        record.write({**{pid: started for pid, started in kept.items() if pid in pids}, 1: 7})
        assert await clear_up("nobody", FamilyRecord("me")) == 2
        await eventually(lambda: not any(alive(pid) for pid in pids))
        # What anybody may write is not believed.
        (tmp_path / f"conveyor-{os.getuid()}").chmod(0o777)
        assert FamilyRecord("me").read() == {}
    finally:
        await program.stop()
