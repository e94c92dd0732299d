"""Tells watchers what was committed, and when there is more of a message that is being written.

Each watcher has a bounded inbox. One that is too slow loses the inbox, not events: it reads them
again from the store.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set

from scheduler_svc.live import LiveMessages, LivePlace, LivePlaces, Sent
from scheduler_svc.store.base import EventQuery, EventRow

# 1000 events of typical size are a few hundred kilobytes; a watcher further behind reads the store.
INBOX_EVENTS = 1000


class Watcher:
    """One stream's view: which events it wants, what waits for it, what it has sent."""

    def __init__(self, query: EventQuery, *, pieces: bool, places: bool) -> None:
        self.query = query
        # It wants pieces of messages, and places of waiting runs, too.
        self.wants_pieces = pieces
        self.wants_places = places
        self.wake = asyncio.Event()
        self.inbox: deque[EventRow] = deque()
        # Events were left out of the inbox: they have to be read from the store.
        self.overflowed = False
        # Newest sequence that was offered, wanted or not. Of use when the scope is one session.
        self.sequence = 0
        self.sent = Sent()

    def offer(self, row: EventRow) -> None:
        """Puts a committed event into the inbox, if it is wanted."""
        self.sequence = row.sequence
        if self.query.kinds and row.kind not in self.query.kinds:
            return
        if len(self.inbox) >= INBOX_EVENTS:
            self.lose_inbox()
        elif not self.overflowed:
            self.inbox.append(row)
        self.wake.set()

    def lose_inbox(self) -> None:
        """Makes the watcher read from the store what it has not sent yet."""
        self.inbox.clear()
        self.overflowed = True
        self.wake.set()


class Hub:
    """All watchers."""

    def __init__(self) -> None:
        self.live = LiveMessages()
        self.places = LivePlaces()
        # Everything up to here was offered to the watchers.
        self.position = 0
        self._by_session: dict[str, set[Watcher]] = {}
        self._by_flow: dict[str, set[Watcher]] = {}
        self._all: set[Watcher] = set()

    def watch(self, query: EventQuery, *, pieces: bool = True, places: bool = True) -> Watcher:
        """A new watcher. It must be given back to `leave`."""
        watcher = Watcher(query, pieces=pieces, places=places)
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

    def _everybody(self) -> Iterator[Watcher]:
        for group in (*self._by_session.values(), *self._by_flow.values(), self._all):
            yield from group

    def standing(self) -> tuple[dict[tuple[str, ...], float], int, int]:
        """How many watchers there are, by what they follow; the most events that wait in an inbox;
        and how many have lost theirs and read the store."""
        counts: dict[tuple[str, ...], float] = {
            ("session",): sum(map(len, self._by_session.values())),
            ("flow",): sum(map(len, self._by_flow.values())),
            ("all",): len(self._all),
        }
        lag = max((len(watcher.inbox) for watcher in self._everybody()), default=0)
        return counts, lag, sum(watcher.overflowed for watcher in self._everybody())

    def publish(self, rows: Iterable[EventRow]) -> None:
        """Passes committed events on, in order."""
        for row in rows:
            # The turn is over, or its message is complete: the pieces are replaced.
            if row.kind in ("run_state_changed", "message_completed"):
                self.live.drop(row.session_key, row.run_id)
            if row.kind == "run_state_changed":
                self.places.drop(row.run_id)
            for watcher in self._watchers(row.session_key, row.flow_id):
                watcher.offer(row)
            self.position = row.position

    def start_over(self, position: int) -> None:
        """What was committed up to `position` may not have been published: all read it again."""
        self.position = position
        self.places.clear()
        for watcher in self._everybody():
            watcher.lose_inbox()

    def write(
        self,
        run_id: str,
        session_key: str,
        flow_id: str,
        pieces: Iterable[tuple[str, str, int]],
    ) -> None:
        """Shows pieces (message id, text, offset) of messages that a run writes."""
        self.live.write(run_id, session_key, flow_id, pieces)
        for watcher in self._watchers(session_key, flow_id):
            if watcher.wants_pieces:
                watcher.wake.set()

    def forget(self) -> None:
        """Forgets what is live: whoever writes messages shows them to another scheduler."""
        self.live = LiveMessages()
        self.places.clear()
        self.wake_all()

    def place_watchers(self) -> tuple[list[str], list[str], bool]:
        """Of which sessions, of which flows, and whether of all runs places are wanted."""

        def wanted(groups: Mapping[str, Set[Watcher]]) -> list[str]:
            return [key for key, group in groups.items() if any(w.wants_places for w in group)]

        everywhere = any(watcher.wants_places for watcher in self._all)
        return wanted(self._by_session), wanted(self._by_flow), everywhere

    def show_place(self, place: LivePlace) -> None:
        """Shows where a waiting run stands."""
        self.places.put(place)
        for watcher in self._watchers(place.session_key, place.flow_id):
            if watcher.wants_places:
                watcher.wake.set()

    def wake_all(self) -> None:
        """Wakes every watcher, for example to end its stream."""
        for watcher in self._everybody():
            watcher.wake.set()
