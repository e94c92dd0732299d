"""What is left of a harness: a look at the table of processes from outside the product.

A process belongs to a harness when its environment holds the harness's own home directory, when it
is in a process group or session of one that does, or when one that does started it, directly or
not. What was once found is remembered, for a process may shed all of these.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from svckit.testing import eventually


@dataclass(frozen=True)
class Process:
    """A process that has not ended."""

    pid: int
    parent: int
    group: int
    session: int
    started: int
    """When, in ticks since the machine started: tells a process from a later one of its number."""
    environ: bytes
    words: tuple[str, ...]

    @property
    def key(self) -> tuple[int, int]:
        """What no other process has."""
        return self.pid, self.started

    def __str__(self) -> str:
        return f"{self.pid} ({' '.join(self.words)[:120]})"


def table() -> dict[int, Process]:
    """Every process of the machine that has not ended, as far as it may be seen."""
    return {found.pid: found for found in _look()}


def _look() -> Iterator[Process]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, group, session, *rest = (
                (entry / "stat").read_text().rpartition(")")[2].split()
            )
            environ = (entry / "environ").read_bytes()
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (OSError, ValueError):
            continue  # it ended meanwhile, or is not ours to see
        if state not in "ZX":
            yield Process(
                int(entry.name),
                int(parent),
                int(group),
                int(session),
                int(rest[15]),
                environ,
                tuple(words[:-1]),
            )


class Tracker:
    """Follows everything that the harnesses with a home of their own start."""

    def __init__(self, home: Path) -> None:
        self._sign = os.fsencode(f"HOME={home}")
        self._known: dict[tuple[int, int], Process] = {}

    def remember(self, pid: int) -> None:
        """Follow this process too: a harness said that it started it."""
        found = table().get(pid)
        if found is not None:
            self._known[found.key] = found

    def alive(self) -> list[Process]:
        """What lives now, of what was ever found."""
        now = table()
        mine = {
            p.pid
            for p in now.values()
            if self._sign in p.environ.split(b"\0") or p.key in self._known
        }
        # The groups and sessions that the harness itself leads, not those of who started it.
        led = {pid for key, p in self._known.items() for pid in (key[0],) if p.group == pid} | {
            pid for pid in mine if now[pid].group == pid
        }
        while True:
            more = {
                p.pid
                for p in now.values()
                if p.pid not in mine and (p.parent in mine or p.group in led or p.session in led)
            }
            if not more:
                break
            mine |= more
        for pid in mine:
            self._known[now[pid].key] = now[pid]
        return sorted((now[pid] for pid in mine), key=lambda p: p.pid)

    async def until_alive(self, within: float = 30) -> list[Process]:
        """Wait until there is something."""
        return await eventually(self.alive, timeout=within)

    async def until_gone(self, within: float = 20) -> None:
        """Wait until nothing is left."""

        def nothing() -> bool:
            left = self.alive()
            assert not left, f"left: {', '.join(map(str, left))}"
            return True

        await eventually(nothing, timeout=within)
