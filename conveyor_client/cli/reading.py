"""What is typed, or piped in, line by line."""

from __future__ import annotations

import asyncio
import sys
import threading


def read_lines() -> asyncio.Queue[str | None]:
    """Return a queue of lines of standard input, None at its end.

    Read by a daemon thread: it works for terminals, pipes and files alike, leaves the terminal in
    its own mode, and does not hold up the exit.
    """
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            for line in sys.stdin:
                loop.call_soon_threadsafe(lines.put_nowait, line)
            loop.call_soon_threadsafe(lines.put_nowait, None)
        except (RuntimeError, ValueError):
            pass  # the loop was closed, or standard input was: nobody waits for lines

    threading.Thread(target=read, name="standard input", daemon=True).start()
    return lines
