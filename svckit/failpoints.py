"""Named points at which a process can be told to die or to dawdle: for tests of crashes.

`CONVEYOR_FAILPOINTS` names a directory. A file in it with the name of a point arms that point, also
while the process runs: `kill 3` ends the process, without a last word, when it passes the point for
the third time since; `delay 0.5` holds it up for half a second at every passage. The file of a kill
is gone with it, so that the next process lives. Without the variable a point does nothing.

`<point>@<place>` arms a point for one place only, which for what a worker does is its turn
(`place_of`). With a file `passed` in the directory every passage at a place adds a line to it, so
that a test can find out which points there are, and what a process had done when it died.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from pathlib import Path

VARIABLE = "CONVEYOR_FAILPOINTS"
PASSED = "passed"

_directory = os.environ.get(VARIABLE, "")
_passed: Counter[str] = Counter()
_place: ContextVar[str] = ContextVar("place", default="")


def _nothing(name: str, place: str | None = None) -> None:
    """What a point costs as a rule."""


def _look(name: str, place: str | None = None) -> None:
    place = _place.get() if place is None else place
    if place:
        _note(f"{name}@{place}")
        _act(f"{name}@{place}")
    _act(name)


def _note(passage: str) -> None:
    try:
        # One write to the end of a file survives the process and is not torn by others.
        file = os.open(Path(_directory, PASSED), os.O_WRONLY | os.O_APPEND)
    except OSError:
        return
    os.write(file, f"{os.getpid()} {passage}\n".encode())
    os.close(file)


def _act(name: str) -> None:
    armed = Path(_directory, name)
    try:
        verb, _, figure = armed.read_text().partition(" ")
    except OSError:
        return
    if verb == "delay":
        time.sleep(float(figure))
    elif verb == "kill":
        _passed[name] += 1
        if _passed[name] >= int(figure):
            armed.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


failpoint = _look if _directory else _nothing
"""Pass a point, in the present place unless told another.

Points are named `<service>.<what>.<moment>`."""

ARMED = bool(_directory)
"""Whether points may do something: for what only a test has to find out."""


@contextmanager
def at(place: str) -> Iterator[None]:
    """Everything inside happens at `place`, tasks that are created there included."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def present() -> str:
    """The place where this happens, empty when there is none."""
    return _place.get()


def place_of(name: str, turn: int) -> str:
    """The place that a turn of a run is: the run is named by its label, else by its session."""
    return f"{name.rpartition(':')[2].replace('/', '-')}.{turn}"


def take_along(context: Context) -> None:
    """Let a task with a context of its own be where its maker is."""
    if ARMED:
        context.run(_place.set, _place.get())
