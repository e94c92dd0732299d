"""Tells watchers what was committed, and what is only live: pieces of messages being written.

Each watcher has a bounded inbox. One that is too slow loses the inbox, not events: it reads them
again from the store. Pieces of messages need no queue at all: the hub keeps each message so far,
and a watcher remembers how much of it it has sent, so slow watchers get larger pieces.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator

from scheduler_svc.store.base import EventQuery, EventRow

# 1000 events of typical size are a few hundred kilobytes; a watcher further behind reads the store.
INBOX_EVENTS = 1000


class LiveMessage:
    """A message that is being written."""

    __slots__ = ("flow_id", "generation", "message_id", "run_id", "session_key", "text")

    def __init__(self, message_id: str, run_id: str, session_key: str, flow_id: str) -> None:
        self.message_id = message_id
        self.run_id = run_id
        self.session_key = session_key
        self.flow_id = flow_id
        self.text = ""
        # Grows when the text is taken back, for example by a new attempt.
        self.generation = 0

    def write(self, text: str, offset: int) -> None:
        """Puts `text` at `offset` (code points); what stood behind it is dropped."""
        if offset < len(self.text):
            if self.text[offset : offset + len(text)] == text:
                return  # a repeated piece
            self.text = self.text[:offset]
            self.generation += 1
        self.text += text


class Watcher:
    """One stream's view: which events it wants, what waits for it, what it has sent."""

    def __init__(self, query: EventQuery) -> None:
        self.query = query
        self.wake = asyncio.Event()
        self.inbox: deque[EventRow] = deque()
        self.overflowed = False
        self._sent: dict[str, tuple[int, int]] = {}

    def offer(self, row: EventRow) -> None:
        """Puts a committed event into the inbox, if it is wanted."""
        if self.query.kinds and row.kind not in self.query.kinds:
            return
        if self.query.run_id and row.run_id != self.query.run_id:
            return
        if len(self.inbox) >= INBOX_EVENTS:
            self.inbox.clear()
            self.overflowed = True
        elif not self.overflowed:
            self.inbox.append(row)
        self.wake.set()

    def pieces(self, messages: Iterable[LiveMessage]) -> Iterator[tuple[LiveMessage, str, int]]:
        """What was not sent yet of messages being written: (message, text, offset)."""
        sent: dict[str, tuple[int, int]] = {}
        for message in messages:
            done, generation = self._sent.get(message.message_id, (0, message.generation))
            if generation != message.generation:
                done = 0
            if done < len(message.text):
                yield message, message.text[done:], done
            sent[message.message_id] = (len(message.text), message.generation)
        self._sent = sent


class Hub:
    """All watchers and all messages being written."""

    def __init__(self) -> None:
        self._by_session: dict[str, set[Watcher]] = {}
        self._by_flow: dict[str, set[Watcher]] = {}
        self._all: set[Watcher] = set()
        self._messages: dict[str, LiveMessage] = {}
        self._of_run: dict[str, set[str]] = {}

    def watch(self, query: EventQuery) -> Watcher:
        """A new watcher. It must be given back to `leave`."""
        watcher = Watcher(query)
        self._group(query).add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Forgets a watcher."""
        query = watcher.query
        group = self._group(query)
        group.discard(watcher)
        if not group and query.session_key:
            del self._by_session[query.session_key]
        elif not group and query.flow_id:
            del self._by_flow[query.flow_id]

    def _group(self, query: EventQuery) -> set[Watcher]:
        if query.session_key:
            return self._by_session.setdefault(query.session_key, set())
        if query.flow_id:
            return self._by_flow.setdefault(query.flow_id, set())
        return self._all

    def _watchers(self, session_key: str, flow_id: str) -> Iterator[Watcher]:
        yield from self._by_session.get(session_key, ())
        yield from self._by_flow.get(flow_id, ())
        yield from self._all

    def publish(self, rows: Iterable[EventRow]) -> None:
        """Passes committed events on, in order."""
        for row in rows:
            # The turn is over, or its message is complete: the pieces are replaced.
            if row.kind in ("run_state_changed", "message_completed"):
                for message_id in self._of_run.pop(row.run_id, ()):
                    self._messages.pop(message_id, None)
            for watcher in self._watchers(row.session_key, row.flow_id):
                watcher.offer(row)

    def write(
        self,
        run_id: str,
        session_key: str,
        flow_id: str,
        pieces: Iterable[tuple[str, str, int]],
    ) -> None:
        """Adds pieces (message id, text, offset) of messages that a run writes."""
        for message_id, text, offset in pieces:
            message = self._messages.get(message_id)
            if message is None:
                message = LiveMessage(message_id, run_id, session_key, flow_id)
                self._messages[message_id] = message
                self._of_run.setdefault(run_id, set()).add(message_id)
            if message.run_id == run_id:
                message.write(text, offset)
        for watcher in self._watchers(session_key, flow_id):
            watcher.wake.set()

    def messages(self, query: EventQuery) -> list[LiveMessage]:
        """Messages being written that a watcher may see."""
        return [
            message
            for message in self._messages.values()
            if (not query.session_key or message.session_key == query.session_key)
            and (not query.flow_id or message.flow_id == query.flow_id)
        ]

    def wake_all(self) -> None:
        """Wakes every watcher, for example to end its stream."""
        for group in (*self._by_session.values(), *self._by_flow.values(), self._all):
            for watcher in group:
                watcher.wake.set()
