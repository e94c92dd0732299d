"""The store in dictionaries: for tests. Everything is copied on the way in and out, as on disk."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from scheduler_svc.domain.kernel import KnownRequest
from scheduler_svc.domain.questions import Question
from scheduler_svc.domain.records import TERMINAL, PreviousRun, Run, SteerOffer
from scheduler_svc.domain.recovery import Snapshot
from scheduler_svc.store.base import (
    Batch,
    EventQuery,
    EventRow,
    FlowFigures,
    Known,
    QuestionQuery,
    RunQuery,
    StoredQuestion,
    StoredRun,
)


def _copy(run: Run) -> Run:
    return msgspec.json.decode(msgspec.json.encode(run), type=Run)


def _copy_question(question: Question) -> Question:
    return msgspec.json.decode(msgspec.json.encode(question), type=Question)


class MemoryStore:
    """A `LaneStore` that lives as long as the object, and survives `close` and `acquire`."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._payloads: dict[str, bytes] = {}
        self._results: dict[str, bytes] = {}
        self._events: list[EventRow] = []
        self._sessions: dict[str, tuple[int, list[PreviousRun]]] = {}
        self._requests: dict[str, tuple[KnownRequest, int]] = {}
        self._limits: dict[str, int] = {}
        self._steers: dict[tuple[str, str], SteerOffer] = {}
        self._facts: dict[tuple[str, str], bytes] = {}
        # In the order in which they were asked.
        self._questions: dict[str, StoredQuestion] = {}
        self._compacted: dict[str, int] = {}
        self._token = 0
        self._position = 0

    async def acquire(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def load(self) -> Snapshot:
        """See `LaneStore`."""
        runs = sorted((_copy(r) for r in self._runs.values() if not r.terminal), key=_order)
        keys = {run.session_key for run in runs}
        return Snapshot(
            runs=runs,
            sessions={k: (h, list(p)) for k, (h, p) in self._sessions.items() if k in keys},
            limits=dict(self._limits),
            steers=dict(self._steers),
            facts=dict(self._facts),
            questions=[
                _copy_question(q.question) for q in self._questions.values() if q.question.open
            ],
            last_order=max((run.order for run in self._runs.values()), default=0),
            last_token=self._token,
            last_position=self._position,
        )

    async def commit(self, batch: Batch) -> None:
        """See `LaneStore`."""
        for run in batch.runs:
            self._runs[run.run_id] = _copy(run)
        self._payloads.update(batch.payloads)
        self._results.update(batch.results)
        self._events.extend(batch.events)
        for key, head, previous in batch.sessions:
            self._sessions[key] = (head, list(previous))
        for request_id, known in batch.requests.items():
            self._requests[request_id] = (known, batch.time)
        for lane, limit in batch.limits.items():
            if limit is None:
                self._limits.pop(lane, None)
            else:
                self._limits[lane] = limit
        for key_pair, offer in batch.steers.items():
            if offer is None:
                self._steers.pop(key_pair, None)
            else:
                self._steers[key_pair] = offer
        for key_pair, fact in batch.facts.items():
            if fact is None:
                self._facts.pop(key_pair, None)
            else:
                self._facts[key_pair] = fact
        for question in batch.questions:
            asked = self._questions.get(question.question_id)
            data = asked.data if asked else batch.question_data[question.question_id]
            self._questions[question.question_id] = StoredQuestion(_copy_question(question), data)
        self._token = max(self._token, batch.token)
        if batch.events:
            self._position = batch.events[-1].position

    async def lookup(
        self,
        requests: Sequence[str],
        runs: Sequence[str],
        sessions: Sequence[str],
        event_ids: Sequence[tuple[str, str]],
        questions: Sequence[str] = (),
    ) -> Known:
        """See `LaneStore`."""
        wanted = set(event_ids)
        return Known(
            requests={r: self._requests[r][0] for r in requests if r in self._requests},
            runs={r: _copy(self._runs[r]) for r in runs if r in self._runs},
            sessions={
                key: (self._sessions[key][0], list(self._sessions[key][1]))
                for key in sessions
                if key in self._sessions
            },
            event_ids={
                (e.session_key, e.event_id): e.sequence
                for e in (self._events if wanted else ())
                if e.event_id is not None and (e.session_key, e.event_id) in wanted
            },
            questions={
                q: _copy_question(self._questions[q].question)
                for q in questions
                if q in self._questions
            },
        )

    async def get_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        """See `LaneStore`."""
        return {
            r: StoredRun(_copy(self._runs[r]), self._payloads[r], self._results.get(r))
            for r in run_ids
            if r in self._runs
        }

    async def list_runs(
        self, query: RunQuery, *, before: int, after: int, limit: int
    ) -> list[StoredRun]:
        """See `LaneStore`."""
        runs = [run for run in self._runs.values() if _matches(run, query)]
        if before < 0:
            runs = sorted((r for r in runs if r.order > after), key=_order)
        else:
            runs = [r for r in runs if not before or r.order < before]
            runs.sort(key=_order, reverse=True)
        return [StoredRun(_copy(r), self._payloads[r.run_id]) for r in runs[:limit]]

    async def flow_figures(self, flow_ids: Sequence[str]) -> dict[str, FlowFigures]:
        """See `LaneStore`."""
        figures = {}
        for flow_id in flow_ids:
            runs = [run for run in self._runs.values() if run.flow_id == flow_id]
            states = {s: sum(r.state is s for r in runs) for s in {r.state for r in runs}}
            figures[flow_id] = FlowFigures(states, max((r.depth for r in runs), default=0))
        return figures

    async def events(self, query: EventQuery, limit: int) -> list[EventRow]:
        """See `LaneStore`."""
        found = (
            e
            for e in self._events
            if e.position > query.after_position
            and (not query.session_key or e.session_key == query.session_key)
            and (not query.flow_id or e.flow_id == query.flow_id)
            and (not query.run_id or e.run_id == query.run_id)
            and (not query.kinds or e.kind in query.kinds)
            and e.sequence > (query.after_sequence if query.session_key else 0)
        )
        return [event for event, _ in zip(found, range(limit), strict=False)]

    async def list_questions(
        self, query: QuestionQuery, *, before: int, limit: int
    ) -> list[StoredQuestion]:
        """See `LaneStore`."""
        found = (
            StoredQuestion(_copy_question(stored.question), stored.data)
            for stored in reversed(self._questions.values())
            if (not before or stored.question.order < before) and _chosen(stored.question, query)
        )
        return [stored for stored, _ in zip(found, range(limit), strict=False)]

    async def session_head(self, session_key: str) -> int | None:
        """See `LaneStore`."""
        found = self._sessions.get(session_key)
        return found[0] if found else None

    async def prune(self, *, requests_before: int, ended_before: int) -> int:
        """See `LaneStore`."""
        old = [r for r, (_, time) in self._requests.items() if time < requests_before]
        for request_id in old:
            del self._requests[request_id]
        closed_before = [
            q.question.question_id
            for q in self._questions.values()
            if not q.question.open and q.question.close_time < requests_before
        ]
        for question_id in closed_before:
            del self._questions[question_id]
        live_flows = {
            r.flow_id
            for r in self._runs.values()
            if r.state not in TERMINAL or r.end_time >= ended_before
        }
        gone = [r.run_id for r in self._runs.values() if r.flow_id not in live_flows]
        for run_id in gone:
            del self._runs[run_id]
            self._payloads.pop(run_id, None)
            self._results.pop(run_id, None)
        kept: list[EventRow] = []
        closed: set[str] = set()  # sessions whose prefix has ended
        for event in self._events:
            if event.session_key not in closed and event.run_id not in self._runs:
                self._compacted[event.session_key] = event.sequence
                self._compacted[""] = event.position
            else:
                closed.add(event.session_key)
                kept.append(event)
        removed = len(self._events) - len(kept)
        self._events = kept
        return len(old) + len(closed_before) + len(gone) + removed

    async def oldest(self, session_key: str) -> int:
        """See `LaneStore`."""
        return self._compacted.get(session_key, 0) + 1


def _order(run: Run) -> int:
    return run.order


def _chosen(question: Question, query: QuestionQuery) -> bool:
    return (
        (not query.states or question.state in query.states)
        and (not query.question_id or question.question_id == query.question_id)
        and (not query.run_id or question.run_id == query.run_id)
        and (not query.session_key or question.session_key == query.session_key)
        and (not query.root_session_key or question.root_session_key == query.root_session_key)
        and (not query.customer_key or question.customer_key == query.customer_key)
    )


def _matches(run: Run, query: RunQuery) -> bool:
    return (
        (not query.session_key or run.session_key == query.session_key)
        and (not query.flow_id or run.flow_id == query.flow_id)
        and (not query.customer_key or run.customer_key == query.customer_key)
        and (not query.lane or run.lane == query.lane)
        and (not query.states or run.state in query.states)
        and all(run.labels.get(key) == value for key, value in query.labels.items())
        and (not query.roots or not run.parent_id)
        and (not query.with_children or run.descendants > 0)
        and run.create_time >= query.since
    )
