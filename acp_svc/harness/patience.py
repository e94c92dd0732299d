"""How long to wait for a prompt: in all, and without a word. Waiting for people does not count."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Patience:
    """The clocks of one prompt. Seconds."""

    def __init__(self, turn: float, quiet: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._turn, self._quiet = turn, quiet
        self._end = self._loop.time() + turn
        self._heard = self._loop.time()
        self._asking = 0
        self._asked_since = 0.0
        self._going = asyncio.Event()
        self._going.set()

    def heard(self) -> None:
        """Note that the harness said something."""
        self._heard = self._loop.time()

    @contextmanager
    def people(self) -> Iterator[None]:
        """Stop the clocks while somebody is asked. Several may be asked at once."""
        if not self._asking:
            self._asked_since = self._loop.time()
            self._going.clear()
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            if not self._asking:
                self._end += self._loop.time() - self._asked_since
                self.heard()
                self._going.set()

    async def over(self) -> str:
        """Wait until there is none left; returns why, for people."""
        while True:
            await self._going.wait()
            now = self._loop.time()
            turn, quiet = self._end - now, self._heard + self._quiet - now
            if turn <= 0:
                return f"it worked longer than {self._turn:g} s"
            if quiet <= 0:
                return f"it said nothing for {self._quiet:g} s"
            # Whatever is said or asked meanwhile only makes it later.
            await asyncio.sleep(min(turn, quiet))
