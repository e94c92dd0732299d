"""`conveyor up` with real processes: starts, restarts, refusals, and never a process left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conveyor_client.supervision.addresses import free_addresses
from conveyor_client.supervision.rules import Limits
from conveyor_client.supervision.suite import Suite, SuiteFailed, running_suite
from svckit.testing import eventually

from . import fakes


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def starts(directory: Path, name: str) -> int:
    file = directory / f"{name}.started"
    return len(file.read_text().splitlines()) if file.exists() else 0


class Told:
    """What the suite said and relayed."""

    def __init__(self) -> None:
        self.news: list[str] = []
        self.output: list[str] = []

    def say(self, text: str) -> None:
        self.news.append(text)

    def relay(self, name: str, line: str) -> None:
        self.output.append(f"{name}: {line}")


@contextlib.asynccontextmanager
async def suite(
    directory: Path, *names: str, limits: Limits | None = None
) -> AsyncIterator[tuple[Suite, Told]]:
    told = Told()
    addresses = free_addresses(len(names))
    services = [
        fakes.fake(directory, name, address, stops_last=name == "base")
        for name, address in zip(names, addresses, strict=True)
    ]
    async with running_suite(services, say=told.say, relay=told.relay, limits=limits) as running:
        yield running, told


async def test_all_start_at_once_and_stop_together_in_order(tmp_path: Path) -> None:
    async with suite(tmp_path, "base", "a", "b") as (running, told):
        await running.until_ready()
        pids = running.pids
        assert set(pids) == {"base", "a", "b"}
        await eventually(lambda: len(told.output) == 3)
    assert not any(alive(pid) for pid in pids.values())
    assert told.news == []
    assert sorted(told.output) == [f"{n}: hello from {n}" for n in ("a", "b", "base")]
    began = [float((tmp_path / f"{n}.started").read_text()) for n in ("base", "a", "b")]
    assert max(began) - min(began) < 2.0
    ended = {n: float((tmp_path / f"{n}.stopped").read_text()) for n in ("base", "a", "b")}
    # The others still need it while they hand back their work.
    assert ended["base"] > max(ended["a"], ended["b"])


async def test_a_service_that_dies_is_started_again_and_that_is_said(tmp_path: Path) -> None:
    async with suite(tmp_path, "base", "a") as (running, told):
        await running.until_ready()
        before = running.pids
        os.kill(before["a"], signal.SIGKILL)
        await eventually(lambda: any("is back" in line for line in told.news), timeout=20)
        after = running.pids
        assert after["base"] == before["base"]
        assert after["a"] != before["a"]
    assert re.fullmatch(r"a killed by signal 9; starting it again in 0\.\d s", told.news[0])
    assert re.fullmatch(rf"a is back after \d+\.\d s \(process {after['a']}\)", told.news[1])
    assert not any(alive(pid) for pid in (*before.values(), *after.values()))


async def test_a_service_that_refuses_ends_the_suite_with_its_reason(tmp_path: Path) -> None:
    fakes.set_mode(tmp_path, "a", "refuses")
    pids: dict[str, int] = {}
    with pytest.raises(SuiteFailed) as caught:  # noqa: PT012
        async with suite(tmp_path, "base", "a") as (running, _):
            await eventually(lambda: pids.update(running.pids) or len(pids) == 2)
            await running.until_ready()
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        "a cannot start: the database is corrupt; restore it from a backup"
    )
    assert not any(alive(pid) for pid in pids.values())
    assert starts(tmp_path, "a") == 1


async def test_a_service_that_crashes_at_the_start_is_given_up(tmp_path: Path) -> None:
    fakes.set_mode(tmp_path, "a", "crashes")
    with pytest.raises(SuiteFailed, match="exit code 7, 2 failed starts in a row") as caught:
        async with suite(tmp_path, "a", limits=Limits(first_starts=2)) as (running, _):
            await running.until_ready()
    assert caught.value.exit_code == 1
    assert starts(tmp_path, "a") == 2


async def test_a_restart_that_is_refused_is_tried_again(tmp_path: Path) -> None:
    async with suite(tmp_path, "a", limits=Limits(later_starts=3)) as (running, told):
        await running.until_ready()
        fakes.set_mode(tmp_path, "a", "refuses")
        os.kill(running.pids["a"], signal.SIGKILL)
        with pytest.raises(SuiteFailed, match="3 failed starts in a row") as caught:
            await running.until_failed()
        assert caught.value.exit_code == 2
    assert starts(tmp_path, "a") == 4
    assert "a: a: the database is corrupt; restore it from a backup" in told.output


async def test_a_service_that_is_never_healthy_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor_client.supervision.suite.START_BOUND", 1.0)
    fakes.set_mode(tmp_path, "a", "mute")
    with pytest.raises(SuiteFailed, match="killed by signal 9"):
        async with suite(tmp_path, "a", limits=Limits(first_starts=1)) as (running, told):
            await running.until_ready()
    assert told.news == ["a is not healthy after 1 s"]


async def test_a_stubborn_service_is_killed_after_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor_client.supervision.suite.DRAIN_BOUND", 0.5)
    fakes.set_mode(tmp_path, "a", "stubborn")
    async with suite(tmp_path, "base", "a") as (running, told):
        await running.until_ready()
        pids = running.pids
    assert told.news == ["a did not stop in time and was killed"]
    assert not any(alive(pid) for pid in pids.values())


async def test_a_second_wish_to_stop_hurries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor_client.supervision.suite.DRAIN_BOUND", 60)
    fakes.set_mode(tmp_path, "a", "stubborn")
    async with suite(tmp_path, "a") as (running, told):
        await running.until_ready()
        asyncio.get_running_loop().call_later(0.2, running.hurry)
        began = time.monotonic()
    assert time.monotonic() - began < 20
    assert told.news == ["a did not stop in time and was killed"]


async def test_stopping_while_they_still_start_leaves_nothing(tmp_path: Path) -> None:
    pids: dict[str, int] = {}
    async with suite(tmp_path, "base", "a") as (running, _):
        await eventually(lambda: pids.update(running.pids) or len(pids) == 2)
    assert not any(alive(pid) for pid in pids.values())


async def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = Told()
        service = fakes.fake(tmp_path, "a", address)
        with pytest.raises(SuiteFailed, match=f"a cannot listen on {address}") as caught:
            async with running_suite([service], say=told.say, relay=told.relay):
                pass
    assert caught.value.exit_code == 2
    assert starts(tmp_path, "a") == 0


async def test_a_stranger_that_answers_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two suites that start at the same moment both find the ports free."""
    monkeypatch.setattr("conveyor_client.supervision.suite.check_addresses_free", lambda _: None)
    (address,) = free_addresses(1)
    told = Told()
    service = fakes.fake(tmp_path, "a", address)
    async with running_suite([service], say=told.say, relay=told.relay) as first:
        await first.until_ready()
        with pytest.raises(SuiteFailed, match=f"a cannot start: cannot listen on {address}"):
            async with running_suite([service], say=told.say, relay=told.relay) as second:
                await second.until_ready()
    assert told.news == []


# The command as a process: signals, and what is left when it is killed itself


class Up:
    """`conveyor up` with two fake services, as a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until_ready(self) -> None:
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            self.lines.append(line.rstrip())
            if line.startswith("ready in"):
                return
        raise AssertionError(f"ended before it was ready: {self.lines}")

    def children(self) -> list[int]:
        found: list[int] = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            # A thread may end between the look at the directory and the look at its file.
            with contextlib.suppress(FileNotFoundError):
                found += [int(pid) for pid in (task / "children").read_text().split()]
        return found


@contextlib.asynccontextmanager
async def up(directory: Path) -> AsyncIterator[Up]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.service.client.fakes",
        "up",
        str(directory),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    try:
        yield Up(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_stops_all(tmp_path: Path, number: signal.Signals) -> None:
    async with up(tmp_path) as command:
        await command.until_ready()
        children = command.children()
        assert len(children) == 2
        command.process.send_signal(number)
        out, err = await asyncio.wait_for(command.process.communicate(), 30)
        assert command.process.returncode == 0
        assert out.decode().split() == ["stopping", "stopped"]
        assert b"Traceback" not in err
        assert not any(alive(pid) for pid in children)
        assert re.fullmatch(r"ready in \d+\.\d s; Ctrl-C stops all", command.lines[-1])


async def test_nothing_is_left_when_the_command_itself_is_killed(tmp_path: Path) -> None:
    async with up(tmp_path) as command:
        await command.until_ready()
        children = command.children()
        command.process.kill()
        await eventually(lambda: not any(alive(pid) for pid in children))


async def test_nothing_is_left_when_it_is_killed_while_they_start(tmp_path: Path) -> None:
    async with up(tmp_path) as command:
        children = await eventually(lambda: (c := command.children()) and len(c) == 2 and c)
        assert isinstance(children, list)
        command.process.kill()
        await eventually(lambda: not any(alive(pid) for pid in children))


async def test_what_cannot_start_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    fakes.set_mode(tmp_path, "worker", "refuses")
    async with up(tmp_path) as command:
        _, err = await asyncio.wait_for(command.process.communicate(), 30)
        assert command.process.returncode == 2
        assert err.decode().splitlines()[-1] == (
            "error: worker cannot start: the database is corrupt; restore it from a backup"
        )
        assert b"Traceback" not in err
