"""One prompt at work: its updates, its permission questions, its clocks and its end."""

from __future__ import annotations

import asyncio
import contextvars

from acp_svc.harness.patience import Patience
from acp_svc.harness.types import Deadlines, Listener, PermissionRequest, Update


class Prompt:
    """A `Work` of a peer. Made where the prompt is sent, for it keeps that context."""

    def __init__(self, listener: Listener, deadlines: Deadlines) -> None:
        self.deadlines = deadlines
        self.patience = Patience(deadlines.turn, deadlines.quiet)
        self.begun = False
        self.cancelled = False
        """True once it is to end. What it asks for then is answered with `cancelled`."""
        self.deaf = False
        """True when it was cancelled and did not end."""
        self.over = asyncio.Event()
        """Set when the harness answered, or never will."""
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails with what the listener fails with."""
        self._listener = listener
        self._context = contextvars.copy_context()
        self._asked: set[asyncio.Task[str | None]] = set()

    def begin(self) -> None:
        """Start the clocks: it is its turn."""
        self.begun = True
        self.patience = Patience(self.deadlines.turn, self.deadlines.quiet)

    def updated(self, update: Update) -> None:
        """Hand on an update."""
        if self.over.is_set() or self.broken.done():
            return
        self.patience.heard()
        try:
            self._context.run(self._listener.updated, update)
        except Exception as error:
            self._break(error)

    async def decide(self, request: PermissionRequest) -> str | None:
        """Have the listener decide. The clocks stand still meanwhile."""
        if self.cancelled or self.over.is_set() or self.broken.done():
            return None
        task = asyncio.get_running_loop().create_task(
            self._listener.permission(request), context=self._context
        )
        self._asked.add(task)
        try:
            with self.patience.people():
                chosen = await task
        except asyncio.CancelledError:
            task.cancel()
            if not (self.cancelled or self.over.is_set()):
                raise
            return None
        except Exception as error:
            self._break(error)
            return None
        finally:
            self._asked.discard(task)
        if chosen not in {option.option_id for option in request.options}:
            return None
        return chosen

    def end(self) -> None:
        """Hand on nothing more."""
        self.over.set()
        self.drop_questions()

    def drop_questions(self) -> None:
        """Answer its open questions with `cancelled`."""
        for task in list(self._asked):
            task.cancel()

    def _break(self, error: Exception) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)
