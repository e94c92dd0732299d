"""What the scheduler contributes to traces: that a run was accepted, how it waited, what was lost,
and what was told.

All of these are made after the commit, from what was committed, with times of the scheduler's own
clock. So none tells of something that did not happen, none is open while a run waits, and a
scheduler that takes over makes none again. Nobody keeps anything for a trace that is not sampled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from opentelemetry import trace

from conveyor.common.v1 import trace_pb2
from scheduler_svc.domain.emits import ChildAnnounced, StateChanged
from scheduler_svc.domain.kernel import Changes, LostLease
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.records import TERMINAL, Answer, Run, RunState, WaitKind
from svckit import conventions as c
from svckit import pseudonyms, tracecontext
from svckit.errors import BY_REASON
from svckit.finished import Finisher

log = logging.getLogger(__name__)

_WAITING = frozenset({RunState.QUEUED, RunState.SUSPENDED})
_STOPPED = TERMINAL | {RunState.CANCELLING}
_WAITS = {
    WaitKind.CHILDREN: c.WAIT_CHILDREN,
    WaitKind.APPROVAL: c.WAIT_APPROVAL,
    WaitKind.LIMIT: c.WAIT_LIMIT,
}


class Accepting(NamedTuple):
    """A message on its way in. `stored` is the context that is stored with it."""

    stored: trace_pb2.TraceContext
    # The span to be made once it is accepted, what it is below, and what it is linked to.
    span: trace.SpanContext | None = None
    parent: trace.SpanContext | None = None
    links: tuple[trace.Link, ...] = ()
    since: int = 0


class Spans:
    """Makes the scheduler's spans. With `links` each run begins a trace, linked to its creator."""

    def __init__(self, tracer: trace.Tracer | None = None, *, links: bool = False) -> None:
        self._finisher = Finisher(tracer)
        self._links = links
        # Accepted in the group whose commit is under way.
        self._accepted: list[tuple[Accepting, Run, str]] = []

    # -- Accepted ---------------------------------------------------------------------------------

    def accepting(self, given: trace_pb2.TraceContext, now: int) -> Accepting:
        """What to store with a message that comes with a context, or in one."""
        found = given if given.traceparent else tracecontext.current()
        creator = tracecontext.parse(found.traceparent)
        if not self._finisher.records or creator is None or not creator.trace_flags.sampled:
            return Accepting(found)
        span = self._finisher.context(creator, new_trace=self._links)
        stored = trace_pb2.TraceContext(
            traceparent=tracecontext.traceparent_of(span),
            tracestate=found.tracestate,
            baggage=found.baggage,
        )
        if self._links:
            return Accepting(stored, span, None, (trace.Link(creator),), now)
        return Accepting(stored, span, creator, (), now)

    def accepted(self, message: Accepting, run: Run, outcome: str) -> None:
        """A command has accepted a message, for `run`. Told when its commit is done."""
        if message.span is not None:
            self._accepted.append((message, run, outcome))

    # -- Commits ----------------------------------------------------------------------------------

    def forget(self) -> None:
        """What was accepted since the last commit was not."""
        self._accepted.clear()

    def committed(self, changes: Changes, now: int, done: int) -> None:
        """Makes the spans of what was decided at `now`, and is stored since `done`. Raises nothing:
        the commit stands."""
        if not self._finisher.records:
            return
        try:
            for accepted in self._accepted:
                self._enqueued(*accepted, done)
            for lost in changes.lost:
                self._lost(lost, now)
            for emit in changes.emits:
                payload = emit.payload
                if isinstance(payload, StateChanged):
                    if payload.previous in _WAITING and payload.state in _STOPPED:
                        self._ended(changes.runs[emit.run_id], payload, now)
                elif isinstance(payload, ChildAnnounced):
                    child, parent = changes.runs[payload.child_id], changes.runs[emit.run_id]
                    self._announced(child, parent, payload.live_siblings, now)
        except Exception as err:
            log.error("spans of a commit were not made", exc_info=err)
        finally:
            self._accepted.clear()

    def _enqueued(self, message: Accepting, run: Run, outcome: str, done: int) -> None:
        assert message.span is not None
        attributes: c.Attributes = {
            **_of(run),
            c.QUEUE: run.queue,
            c.LANE: run.lane,
            c.DEPTH: run.depth,
            c.CUSTOMER: pseudonyms.of(run.customer_key),
            c.OUTCOME: outcome,
            **c.conversation(run.session_key),
        }
        if run.parent_id:
            attributes[c.PARENT_RUN_ID] = run.parent_id
        if run.told_position:
            attributes[c.WAIT_POSITION] = run.told_position
        if run.told_start:
            attributes[c.WAIT_ESTIMATE] = (run.told_start - run.create_time) / 1e6
        self._finisher.make(
            c.enqueue_span(run.queue),
            message.span,
            message.parent,
            message.since,
            done,
            kind=trace.SpanKind.PRODUCER,
            attributes=attributes,
            links=message.links,
        )

    def _lost(self, lost: LostLease, now: int) -> None:
        """In the place of the span that the worker would have made: what it made below is there."""
        run = lost.run
        creator = tracecontext.parse(run.trace)
        if creator is None:
            return
        self._finisher.make(
            c.RUN_LOST,
            self._finisher.context(
                creator, tracecontext.turn_span_id(run.run_id, lost.lease.token)
            ),
            creator,
            lost.lease.lease_time,
            now,
            kind=trace.SpanKind.CONSUMER,
            attributes={
                **_of(run),
                c.TURN: lost.turn,
                c.ATTEMPT: lost.attempt,
                c.WORKER: lost.lease.worker,
            },
            error="LEASE_LOST" if lost.counted else None,
        )

    def _ended(self, run: Run, change: StateChanged, now: int) -> None:
        """It was stopped while it waited: no turn tells of it."""
        creator = tracecontext.parse(run.trace)
        if creator is None:
            return
        reason = change.failure.reason if change.failure is not None else ""
        self._finisher.make(
            c.RUN_ENDED,
            self._finisher.context(creator),
            creator,
            now - change.lasted,
            now,
            attributes={
                **_of(run),
                c.TURN: run.turn,
                c.OUTCOME: change.state.name.lower(),
                c.ERROR_TYPE: reason if reason in BY_REASON else c.OTHER,
            },
            error=reason if change.state is RunState.EXPIRED else None,
        )

    def _announced(self, child: Run, parent: Run, live_siblings: int, now: int) -> None:
        creator = tracecontext.parse(child.trace)
        if creator is None:
            return
        below = tracecontext.parse(last_turn(child)) or creator
        self._finisher.make(
            c.announce_span(parent.lane),
            self._finisher.context(creator, tracecontext.announcement_span_id(child.run_id)),
            below,
            now,
            now,
            kind=trace.SpanKind.PRODUCER,
            attributes={
                **_of(child),
                c.PARENT_RUN_ID: parent.run_id,
                c.CHILD_STATE: child.state.name.lower(),
                c.LIVE_SIBLINGS: live_siblings,
            },
        )

    # -- Leased -----------------------------------------------------------------------------------

    def leased(self, item: Leased) -> None:
        """Makes the spans of how a run waited for the lease that it has got. Raises nothing: its
        worker waits for it."""
        if not self._finisher.records:
            return
        try:
            self._waited(item)
        except Exception as err:
            log.error("spans of a lease were not made", exc_info=err)

    def _waited(self, item: Leased) -> None:
        run = item.run
        creator = tracecontext.parse(run.trace)
        if creator is None or not creator.trace_flags.sampled:
            return
        for name, start, end, more in _waits(item):
            self._finisher.make(
                name,
                self._finisher.context(creator),
                creator,
                start,
                end,
                attributes={c.RUN_ID: run.run_id, c.TURN: run.turn, **more},
            )

    def links(
        self, item: Leased, told: Iterable[Run], inputs: Iterable[trace_pb2.TraceContext]
    ) -> list[trace_pb2.TraceContext]:
        """What a turn's span is linked to: the attempt before, the ends of the children that it is
        told (`told`), the answers, and the further messages that it answers (`inputs`)."""
        run, last = item.run, item.waited.last_token
        before = tracecontext.turn_span_id(run.run_id, last) if last else 0
        found = [tracecontext.with_span(run.trace, before)] if before else []
        found += [announcement(child) for child in told]
        answers: list[Answer] = item.resumption.answers if item.resumption is not None else []
        contexts = [trace_pb2.TraceContext(traceparent=name) for name in found if name]
        contexts += [
            trace_pb2.TraceContext.FromString(given.trace) for given in answers if given.trace
        ]
        return [*contexts, *(entry for entry in inputs if entry.traceparent)]


def last_turn(run: Run) -> str:
    """The `traceparent` of a run's newest turn; that of its creation when it had none."""
    if not run.last_token:
        return run.trace
    return tracecontext.with_span(run.trace, tracecontext.turn_span_id(run.run_id, run.last_token))


def announcement(child: Run) -> str:
    """The `traceparent` of the announcement of a child's end; empty when not traced."""
    return tracecontext.with_span(child.trace, tracecontext.announcement_span_id(child.run_id))


def _of(run: Run) -> c.Attributes:
    return {c.RUN_ID: run.run_id, c.FLOW_ID: run.flow_id}


def _waits(item: Leased) -> Iterator[tuple[str, int, int, c.Attributes]]:
    """Each wait since the run executed last: name, start, end, attributes."""
    run, waited, resumption = item.run, item.waited, item.resumption
    first = run.attempt == 1 and not waited.last_token
    if first and resumption is not None and resumption.since and resumption.wait is not None:
        wait = resumption.wait
        more: c.Attributes = {c.RESUME_REASON: resumption.reason.name.lower()}
        if wait.kind is WaitKind.CHILDREN:
            more[c.WAIT_CHILDREN_COUNT] = len(wait.run_ids)
        elif wait.kind is WaitKind.APPROVAL:
            more[c.WAIT_QUESTIONS_COUNT] = len(wait.question_ids)
        elif wait.name:
            more[c.WAIT_LIMIT_NAME] = wait.name
        yield _WAITS[wait.kind], resumption.since, waited.queued, more
    since = waited.queued
    if waited.last_token and waited.paused_until > since:
        end = min(waited.paused_until, item.lease.lease_time)
        yield c.WAIT_RETRY, since, end, {c.ATTEMPT: run.attempt}
        since = end
    told = _told(run, item.lease.lease_time) if first and run.turn == 1 else {}
    if waited.ready > since:
        yield c.WAIT_SESSION_LANE, since, waited.ready, told
    since = max(since, waited.ready)
    yield (
        c.wait_global_lane_span(run.lane),
        since,
        item.lease.lease_time,
        {c.LANE: run.lane, **told},
    )


def _told(run: Run, started: int) -> c.Attributes:
    """What was told when the run was accepted, and how wrong it was."""
    told: c.Attributes = {}
    if run.told_position:
        told[c.WAIT_POSITION] = run.told_position
    if run.told_start:
        told[c.WAIT_ESTIMATE] = (run.told_start - run.create_time) / 1e6
        told[c.WAIT_ESTIMATE_ERROR] = (started - run.told_start) / 1e6
    return told
