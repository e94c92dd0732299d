"""What is shown while it is true, and never stored: messages being written, and places in line.

Each message is kept whole until it is complete, for watchers that join late. Pieces of messages
need no queue: a watcher remembers how much of a message it has sent, so a slow one gets larger
pieces. In the same way it remembers which place of a run it has sent, and gets only the newest.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable

from scheduler_svc.domain.estimates import Estimate
from scheduler_svc.store.base import EventQuery

# Code points of one message that are shown while it is written; the contract allows 1 MiB.
MESSAGE_LIMIT = 1024 * 1024

_generations = itertools.count(1)


class LiveMessage:
    """A message that is being written."""

    __slots__ = ("flow_id", "generation", "message_id", "run_id", "session_key", "start", "text")

    def __init__(self, message_id: str, run_id: str, session_key: str, flow_id: str) -> None:
        self.message_id = message_id
        self.run_id = run_id
        self.session_key = session_key
        self.flow_id = flow_id
        # Place of `text` in the message: above 0 when the scheduler started while it was written.
        self.start = 0
        self.text = ""
        # Another one, never seen before, each time that text is taken back.
        self.generation = next(_generations)

    @property
    def end(self) -> int:
        """Place behind the text."""
        return self.start + len(self.text)

    def write(self, text: str, offset: int) -> None:
        """Puts `text` at `offset` (code points); what stood behind it is dropped."""
        if not self.start <= offset <= self.end:
            self.start, self.text, self.generation = offset, "", next(_generations)
        at = offset - self.start
        if self.text[at : at + len(text)] == text:
            return  # a repeated piece
        if offset < self.end:
            self.text, self.generation = self.text[:at], next(_generations)
        if offset + len(text) <= MESSAGE_LIMIT:
            self.text += text


class LiveMessages:
    """All messages being written: those of the runs that execute now."""

    def __init__(self) -> None:
        self._by_session: dict[str, dict[str, LiveMessage]] = {}
        self._by_flow: dict[str, dict[tuple[str, str], LiveMessage]] = {}

    def write(
        self,
        run_id: str,
        session_key: str,
        flow_id: str,
        pieces: Iterable[tuple[str, str, int]],
    ) -> None:
        """Adds pieces (message id, text, offset) of messages that a run writes."""
        for message_id, text, offset in pieces:
            message = self._by_session.get(session_key, {}).get(message_id)
            if message is None or message.run_id != run_id:
                message = LiveMessage(message_id, run_id, session_key, flow_id)
                self._by_session.setdefault(session_key, {})[message_id] = message
                self._by_flow.setdefault(flow_id, {})[session_key, message_id] = message
            message.write(text, offset)

    def drop(self, session_key: str, run_id: str) -> None:
        """Forgets what a run was writing: it is complete, or its turn is over."""
        messages = self._by_session.get(session_key, {})
        for message in [m for m in messages.values() if m.run_id == run_id]:
            in_flow = self._by_flow[message.flow_id]
            del messages[message.message_id], in_flow[session_key, message.message_id]
            if not in_flow:
                del self._by_flow[message.flow_id]
            if not messages:
                del self._by_session[session_key]

    def seen_by(self, query: EventQuery) -> Collection[LiveMessage]:
        """The messages that a watcher may see."""
        if query.session_key:
            return self._by_session.get(query.session_key, {}).values()
        if query.flow_id:
            return self._by_flow.get(query.flow_id, {}).values()
        return [m for messages in self._by_session.values() for m in messages.values()]


class LivePlace:
    """Where a waiting run stands, as it was last told."""

    __slots__ = ("estimate", "flow_id", "generation", "run_id", "session_key", "time")

    def __init__(
        self, run_id: str, session_key: str, flow_id: str, estimate: Estimate, time: int
    ) -> None:
        self.run_id = run_id
        self.session_key = session_key
        self.flow_id = flow_id
        self.estimate = estimate
        # When the estimate was made.
        self.time = time
        self.generation = next(_generations)


class LivePlaces:
    """The places of waiting runs that somebody watches."""

    def __init__(self) -> None:
        self._by_run: dict[str, LivePlace] = {}
        self._by_session: dict[str, dict[str, LivePlace]] = {}

    def get(self, run_id: str) -> LivePlace | None:
        """What was told last of a run."""
        return self._by_run.get(run_id)

    def put(self, place: LivePlace) -> None:
        """Replaces what was told of a run."""
        self._by_run[place.run_id] = place
        self._by_session.setdefault(place.session_key, {})[place.run_id] = place

    def drop(self, run_id: str) -> None:
        """The run does not wait any more."""
        place = self._by_run.pop(run_id, None)
        if place is not None:
            of_session = self._by_session[place.session_key]
            del of_session[run_id]
            if not of_session:
                del self._by_session[place.session_key]

    def clear(self) -> None:
        """Forgets everything."""
        self._by_run.clear()
        self._by_session.clear()

    def seen_by(self, query: EventQuery) -> Collection[LivePlace]:
        """The places that a watcher may see. Only roots have any, so a flow has at most one."""
        if query.session_key:
            return self._by_session.get(query.session_key, {}).values()
        if query.flow_id:
            place = self._by_run.get(query.flow_id)
            return [place] if place is not None else []
        return self._by_run.values()


class Sent:
    """How much of each message one watcher has sent, and which places of runs."""

    def __init__(self) -> None:
        self._sent: dict[tuple[str, str], tuple[int, int]] = {}
        self._places: dict[str, int] = {}

    def places(self, places: Iterable[LivePlace]) -> list[LivePlace]:
        """The places that were not sent yet. They count as sent from now on."""
        before, self._places = self._places, {}
        for place in places:
            self._places[place.run_id] = place.generation
        return [p for p in places if before.get(p.run_id) != p.generation]

    def pieces(self, messages: Iterable[LiveMessage]) -> list[tuple[LiveMessage, str, int]]:
        """What was not sent yet: (message, text, offset). It counts as sent from now on."""
        before, self._sent, found = self._sent, {}, []
        for message in messages:
            key = (message.session_key, message.message_id)
            done, generation = before.get(key, (message.start, message.generation))
            if generation != message.generation:
                done = message.start
            if done < message.end:
                found.append((message, message.text[done - message.start :], done))
            self._sent[key] = (message.end, message.generation)
        return found
