"""When a service that ended is started again, after how long, and when that is given up.

Pure: the caller tells what happened and when, the rules answer what to do.

The rules, in words:

* Exit code 2 means "cannot start as things are" (bad configuration, port in use, corrupt
  database). Before a service was ever healthy that ends the suite at once: trying again would
  only repeat the message.
* Any other end before it was ever healthy is tried again a few times, in case of a race with
  another process, and then ends the suite.
* A service that was healthy once is restarted whatever ended it, with growing pauses, and given up
  only after many starts in a row that never became healthy.
* After some time of health the pauses start small again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

CANNOT_START = 2
"""Exit code of a service that says clearly why it cannot start."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Figures of the rules. Times in seconds."""

    first_starts: int = 3
    """Failed starts in a row before the first health that end the suite."""
    later_starts: int = 10
    """Failed starts in a row after it was healthy once that end the suite."""
    stable_after: float = 10.0
    """Health of this length makes the next pause small again."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after `delay` seconds."""

    delay: float
    why: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop the whole suite with `exit_code`."""

    exit_code: int
    why: str


Verdict = Restart | GiveUp


@dataclass(slots=True)
class Life:
    """What happened to one service since the suite started."""

    new_backoff: Callable[[], Iterator[float]]
    """Gives pauses in seconds, each iterator from the smallest on. Must not end."""
    limits: Limits = field(default_factory=Limits)
    ever_ready: bool = False
    failed_starts: int = 0
    """Starts in a row that ended before health."""
    _ready_since: float | None = None
    _backoff: Iterator[float] | None = None

    def became_ready(self, now: float) -> None:
        """Note that the service answered healthy at `now`."""
        self.ever_ready = True
        self.failed_starts = 0
        self._ready_since = now

    def ended(self, code: int, now: float) -> Verdict:
        """Return what to do after the process ended with `code` (negative: a signal) at `now`."""
        why = describe_end(code)
        if self._ready_since is None:
            self.failed_starts += 1
            if not self.ever_ready and code == CANNOT_START:
                return GiveUp(CANNOT_START, why)
            most = self.limits.later_starts if self.ever_ready else self.limits.first_starts
            if self.failed_starts >= most:
                exit_code = CANNOT_START if code == CANNOT_START else 1
                return GiveUp(exit_code, f"{why}, {self.failed_starts} failed starts in a row")
        elif now - self._ready_since >= self.limits.stable_after:
            self._backoff = None
        self._ready_since = None
        if self._backoff is None:
            self._backoff = self.new_backoff()
        return Restart(next(self._backoff), why)


def describe_end(code: int) -> str:
    """Say in a few words how a process ended."""
    if code < 0:
        return f"killed by signal {-code}"
    if code == CANNOT_START:
        return "cannot start"
    return f"ended with exit code {code}"
