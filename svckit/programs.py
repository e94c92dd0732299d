"""Programs that a service starts and speaks to through pipes: contained, and gone without a trace.

A program runs in a process group of its own, sees only the environment it is given, and its errors
go to a small ring. Stopping it is a ladder: its input is closed, then the group is told to end,
then it is killed, with whatever of what it started left the group: that is known by a mark in its
environment, and by who started whom, as far as somebody looked in time (see `look_around`). By the
mark a service also finds what an earlier life of it, that was killed, left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Self

from svckit.families import FamilyRecord
from svckit.settings_model import StoreSettings

INHERITED = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
"""Variables that any program needs. Everything else is given by name, so that no secret leaks."""
LINE_BYTES = 8 * 1024 * 1024
"""Longest line that a program may write."""
RING_LINES = 20
RING_CHARS = 300
CLOSED_SECONDS = 1.0
TERMINATED_SECONDS = 1.0
KILLED_SECONDS = 2.0
DRAINED_SECONDS = 0.3
MARK = "STARTED_BY_CONVEYOR"
"""Holds the owner, the life of the owner's process, and one start."""
_LIFE = token_hex(8)
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LOOK_SECONDS = 0.01
_ROUNDS = 3
"""How often what it started is looked for at its end: what is killed may just have started more."""
_running: set[Program] = set()


def environment(ours: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """What a program sees: of `ours` what any program needs, and `extra`."""
    return {name: ours[name] for name in INHERITED if name in ours} | dict(extra)


def owner_name(store: StoreSettings, address: str, worker: str) -> str:
    """Name a worker as no other on the machine is named, the same after a restart."""
    if store.url.startswith("memory:"):
        return token_hex(8)  # nothing of it outlives the process
    place = str(store.directory.absolute()) if store.url.startswith("sqlite:") else store.url
    return hashlib.sha256(f"{place} {address} {worker}".encode()).hexdigest()[:16]


def _found_from_here(program: str) -> str:
    """Look for a program from where the service was started, wherever the program works."""
    return str(Path(program).absolute()) if "/" in program else program


class Program:
    """A running program. Make it with `start`, and always `stop` it."""

    def __init__(self, process: Process, mark: str, secrets: Iterable[str] = ()) -> None:
        self._process = process
        self._mark = mark
        self._secrets = [secret for secret in secrets if secret]
        self._ring: deque[str] = deque(maxlen=RING_LINES)
        self._draining = asyncio.create_task(self._drain(), name="stderr")
        self._writing = asyncio.Lock()
        self._family: dict[int, int] = {}
        self.quiet = asyncio.Event()
        """Set once nothing more can be read from it: it ended, closed its output, or went mad."""
        self.exited = asyncio.Event()
        """Set once the process ended. What it started may still hold its output open."""
        self._watching = asyncio.create_task(self._watch(), name="exit of a program")
        _running.add(self)

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        owner: str,
        secrets: Iterable[str] = (),
        directory: Path | None = None,
        line_bytes: int = LINE_BYTES,
    ) -> Self:
        """Start it for `owner`, a name without spaces that the service keeps over restarts.

        `directory` is where it starts, left out where the service did. `secrets` are blotted out of
        what it says. A line longer than `line_bytes` ends the reading. Raises `OSError`.
        """
        mark = f"{owner}:{_LIFE}:{token_hex(8)}"
        process = await asyncio.create_subprocess_exec(
            _found_from_here(command[0]),
            *command[1:],
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env={**env, MARK: mark},
            cwd=directory,
            start_new_session=True,
            limit=line_bytes,
        )
        return cls(process, mark, secrets)

    @property
    def pid(self) -> int:
        """Its process, and its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs. Negative for a signal."""
        return self._process.returncode

    @property
    def last_words(self) -> list[str]:
        """The last lines that it wrote to its error output, shortened. For logs only."""
        return list(self._ring)

    def blotted(self, text: str) -> str:
        """Return what it said, without its secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    async def write(self, line: bytes) -> None:
        """Write a line. Raises `OSError` when it does not read any more."""
        assert self._process.stdin is not None
        async with self._writing:
            try:
                self._process.stdin.write(line)
                await self._process.stdin.drain()
            except RuntimeError as err:
                # What uvloop says about a pipe that was closed.
                raise BrokenPipeError from err

    async def read(self) -> bytes:
        """Read the next line; empty at the end, and instead of one that is too long."""
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readline()
        except ValueError:
            line = b""
        if not line:
            self.quiet.set()
        return line

    async def ended(self, seconds: float, every: float = _LOOK_SECONDS) -> bool:
        """Wait at most this long for its end; tells whether it came."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        # Not `wait`: that waits for the pipes too, which what it started may hold open.
        while self._process.returncode is None:
            if loop.time() >= until:
                return False
            await asyncio.sleep(every)
        return True

    async def drained(self, seconds: float) -> None:
        """Wait at most this long until its last words are known; they end when it has ended."""
        await asyncio.wait({self._draining}, timeout=seconds)

    async def stop(self) -> None:
        """End it and everything it started. Returns within about four seconds, whatever it does."""
        assert self._process.stdin is not None
        # First of all: once it has ended, nothing tells any more whom it started.
        await self._look()
        self._process.stdin.close()
        await self._gone(CLOSED_SECONDS)
        self._signal(signal.SIGTERM)
        if not await self._gone(TERMINATED_SECONDS):
            self._signal(signal.SIGKILL)
        for _ in range(_ROUNDS):
            await self._look()
            killed = await asyncio.to_thread(_kill_marked, self._mark)
            if not killed + await asyncio.to_thread(_kill_known, self._family):
                break
        await self._gone(KILLED_SECONDS)
        _running.discard(self)
        # What it complained of last is still in the pipe.
        await self.drained(DRAINED_SECONDS)
        for task in (self._draining, self._watching):
            task.cancel()
        await asyncio.gather(self._draining, self._watching, return_exceptions=True)
        # Pipes that a stray still holds open would keep the transport, and its warning, alive.
        transport = getattr(self._process, "_transport", None)
        if transport is not None:
            with contextlib.suppress(PermissionError, ProcessLookupError):
                transport.close()

    async def _gone(self, seconds: float) -> bool:
        """Wait until no process of the group is left."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        if not await self.ended(seconds):
            return False
        while await self._group_lives():
            if loop.time() >= until:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    async def _group_lives(self) -> bool:
        if not self._signal(0):
            return False
        # Those that ended and that nobody waits for are still of the group, some for ever.
        processes = await asyncio.to_thread(_processes)
        return not processes or any(one.group == self.pid for one in processes.values())

    def _signal(self, number: int) -> bool:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    async def _watch(self) -> None:
        """Set `exited`, without looking all the time where the system can tell."""
        loop = asyncio.get_running_loop()
        try:
            handle = os.pidfd_open(self.pid)
        except AttributeError:
            await self.ended(float("inf"), every=20 * _LOOK_SECONDS)
        except OSError:
            pass  # It has ended already.
        else:
            told = asyncio.Event()
            loop.add_reader(handle, told.set)
            try:
                await told.wait()
            finally:
                loop.remove_reader(handle)
                os.close(handle)
        self.exited.set()

    async def _look(self) -> None:
        self._remember(await asyncio.to_thread(_processes))

    def _remember(self, processes: Mapping[int, _Process]) -> None:
        """Keep whom it started, and whom those started, wherever they belong to by now."""
        family = {
            pid: started
            for pid, started in self._family.items()
            if pid in processes and processes[pid].started == started
        }
        roots = set(family) | ({self.pid} if self._process.returncode is None else set())
        children: dict[int, list[int]] = {}
        for pid, process in processes.items():
            children.setdefault(process.parent, []).append(pid)
        while roots:
            found = {child for pid in roots for child in children.get(pid, ())} - family.keys()
            family |= {pid: processes[pid].started for pid in found}
            roots = found
        self._family = family

    async def _drain(self) -> None:
        """Read its errors for as long as it lives: a full pipe would stop it."""
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:
                continue  # a line without an end: what is too much of it was dropped
            if not line:
                return
            text = self.blotted(_COLOURS.sub("", line.decode(errors="replace")))
            text = "".join(c if c.isprintable() else " " for c in text).strip()
            if text:
                self._ring.append(text[:RING_CHARS])


async def look_around(record: FamilyRecord | None = None) -> None:
    """Find out whom all running programs have started by now, and keep it in `record`.

    A process that left the group, cleared its environment and lost its parent is known to `stop`
    only if this was called while the parent lived, and to `clear_up` in a later life only if it was
    kept. Takes some milliseconds, in a thread.
    """
    if not _running and record is None:
        return
    processes = await asyncio.to_thread(_processes)
    kept: dict[int, int] = {}
    for program in list(_running):
        program._remember(processes)
        kept |= program._family
    if record is not None:
        await asyncio.to_thread(record.write, kept)


async def clear_up(owner: str, record: FamilyRecord | None = None) -> int:
    """Kill what an earlier life of `owner` left behind; returns how many processes.

    With a `record`, before anything is kept there in this life.
    """
    killed = await asyncio.to_thread(_kill_marked, f"{owner}:", f"{owner}:{_LIFE}:")
    if record is not None:
        killed += await asyncio.to_thread(_kill_known, await asyncio.to_thread(record.read))
    return killed


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    group: int
    started: int
    """In ticks since the system started; with the pid it names a process for good."""


def _processes() -> dict[int, _Process]:
    """All processes that live, as the system shows them; none where it shows none."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything.
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] not in "ZX":
                found[int(entry.parent.name)] = _Process(
                    int(fields[1]), int(fields[2]), int(fields[19])
                )
    return found


def _kill_known(family: Mapping[int, int]) -> int:
    """Kill those of a family that live."""
    processes = _processes()
    killed = 0
    for pid, started in family.items():
        if pid in processes and processes[pid].started == started:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


def _kill_marked(mark: str, spared: str = "") -> int:
    """Kill every process whose mark begins so, where the system shows them."""
    killed = 0
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = entry.read_bytes().split(b"\0")
            own = [v for v in variables if v.startswith(f"{MARK}={mark}".encode())]
            if own and not (spared and own[0].startswith(f"{MARK}={spared}".encode())):
                os.kill(int(entry.parent.name), signal.SIGKILL)
                killed += 1
    return killed
