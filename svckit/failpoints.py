"""Named points at which a process can be told to die or to dawdle: for tests of crashes.

`CONVEYOR_FAILPOINTS` names a directory. A file in it with the name of a point arms that point, also
while the process runs: `kill 3` ends the process, without a last word, when it passes the point for
the third time since; `delay 0.5` holds it up for half a second at every passage. The file of a kill
is gone with it, so that the next process lives. Without the variable a point does nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

VARIABLE = "CONVEYOR_FAILPOINTS"

_directory = os.environ.get(VARIABLE, "")
_passed: Counter[str] = Counter()


def _nothing(name: str) -> None:
    """What a point costs as a rule."""


def _look(name: str) -> None:
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
"""Pass a point. Points are named `<service>.<what>.<moment>`."""

ARMED = bool(_directory)
"""Whether points may do something: for what only a test has to find out."""
