"""The span of a turn: from its lease until the scheduler has heard how it ended.

Its parent is what created the run, never what is at work around the worker, and its id is that of
the lease. A turn whose lease was lost makes no span: the scheduler, which knows for how long it was
held, makes one in its place (`run.lost`), also for a worker that is gone and cannot.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace

from conveyor.scheduler.v1 import announcement_pb2
from svckit import conventions as c
from svckit import pseudonyms, spanids, tracecontext
from svckit.finished import Finisher
from svckit.turn import LeasedTurn

_RESUMED = {
    number: name.removeprefix("RESUME_REASON_").lower()
    for name, number in announcement_pb2.ResumeReason.items()
}


class TurnSpan:
    """The span of one turn. It is over once `end` or `drop` was called; more calls do nothing."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._open = span.is_recording()

    @contextmanager
    def current(self) -> Iterator[None]:
        """What is made inside is below it, also when it is over by then."""
        with trace.use_span(self._span, record_exception=False, set_status_on_exception=False):
            yield

    @property
    def below(self) -> trace.Span:
        """What to put spans below."""
        return self._span

    def ended_with(self, outcome: str, error: str = "") -> None:
        """Note how the turn ended; `error` is the stable reason of a failure."""
        if self._open:
            self._span.set_attribute(c.OUTCOME, outcome)
            if error:
                self._span.set_attribute(c.ERROR_TYPE, error)
                self._span.set_status(trace.StatusCode.ERROR, error)

    def end(self) -> None:
        """The turn is over."""
        if self._open:
            self._open = False
            self._span.end()

    def drop(self) -> None:
        """The lease is lost: others tell of the turn."""
        self._open = False


NO_SPAN = TurnSpan(trace.INVALID_SPAN)


class TurnSpans:
    """Begins the spans of a worker's turns."""

    def __init__(self, tracer: trace.Tracer, queue: str, worker: str) -> None:
        self._tracer = tracer
        self._finisher = Finisher(tracer)
        self._name = c.run_span(queue)
        self._same: c.Attributes = {c.QUEUE: queue, c.WORKER: worker}

    def begin(self, public: LeasedTurn) -> TurnSpan:
        """Begin the span of a turn that was leased now, and tell at once that it has begun."""
        leased, run = public.leased, public.run
        span = spanids.start_span(
            self._tracer,
            tracecontext.turn_span_id(run.run_id, leased.lease.fencing_token),
            self._name,
            context=tracecontext.parent_of(run.trace),
            kind=trace.SpanKind.CONSUMER,
        )
        if span.is_recording():
            self._describe(span, public)
            self._tell(span, public)
        return TurnSpan(span)

    def _describe(self, span: trace.Span, public: LeasedTurn) -> None:
        leased, run = public.leased, public.run
        attributes: c.Attributes = {
            **self._same,
            c.RUN_ID: run.run_id,
            c.FLOW_ID: run.spawn.flow_id,
            c.DEPTH: run.spawn.depth,
            c.TURN: public.turn,
            c.ATTEMPT: public.attempt,
            c.LANE: run.spec.global_lane,
            c.CUSTOMER: pseudonyms.of(run.spec.customer_key),
            **c.conversation(run.spec.session_key),
        }
        if leased.HasField("resumption"):
            attributes[c.RESUME_REASON] = _RESUMED[leased.resumption.reason]
        found = [tracecontext.parse(link.traceparent) for link in leased.links]
        links = [link for link in found if link is not None]
        for link in links[: tracecontext.MOST_LINKS]:
            span.add_link(link)
        if len(links) > tracecontext.MOST_LINKS:
            attributes[c.LINKS_LEFT_OUT] = len(links) - tracecontext.MOST_LINKS
        span.set_attributes(attributes)

    def _tell(self, span: trace.Span, public: LeasedTurn) -> None:
        """Spans are sent when they end: a short one says that a turn is at work."""
        parent = span.get_span_context()
        now = time.time_ns() // 1000
        self._finisher.make(
            c.RUN_STARTED,
            self._finisher.context(parent),
            parent,
            now,
            now,
            attributes={
                c.RUN_ID: public.run.run_id,
                c.TURN: public.turn,
                c.ATTEMPT: public.attempt,
            },
        )
