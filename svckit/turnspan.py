"""The span of a turn: from its lease until the scheduler has heard how it ended.

Its parent is what created the run, never what is at work around the worker, and its id is that of
the lease. A turn whose lease was lost makes no span: the scheduler, which knows for how long it was
held, makes one in its place (`run.lost`), also for a worker that is gone and cannot.

A turn ends once and nobody else writes on its span, so it is put together when it ends: every turn
has one, and started spans cost many times as much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context

from conveyor.scheduler.v1 import announcement_pb2
from svckit import conventions as c
from svckit import pseudonyms, tracecontext
from svckit.finished import Finisher
from svckit.logging import get_logger
from svckit.turn import LeasedTurn

_log = get_logger("svckit.worker")

_RESUMED = {
    number: name.removeprefix("RESUME_REASON_").lower()
    for name, number in announcement_pb2.ResumeReason.items()
}


End = Callable[[c.Attributes, str | None], None]
"""Makes the span of a turn that is over now: more attributes, and why its status is an error."""


class TurnSpan:
    """The span of one turn. It is over once `end` or `drop` was called; more calls do nothing."""

    def __init__(self, context: trace.SpanContext, end: End | None = None) -> None:
        self.below = trace.NonRecordingSpan(context)
        """What to put spans below."""
        self._end = end
        self._attributes: c.Attributes = {}
        self._error: str | None = None

    @contextmanager
    def current(self) -> Iterator[None]:
        """What is made inside is below it, also when it is over by then."""
        with trace.use_span(self.below, record_exception=False, set_status_on_exception=False):
            yield

    def ended_with(self, outcome: str, error: str = "") -> None:
        """Note how the turn ended; `error` is the stable reason of a failure."""
        self._attributes[c.OUTCOME] = outcome
        if error:
            self._attributes[c.ERROR_TYPE] = self._error = error

    def end(self) -> None:
        """The turn is over. Raises nothing: its worker has more to clear away."""
        end, self._end = self._end, None
        try:
            if end is not None:
                end(self._attributes, self._error)
        except Exception as err:
            _log.error("the span of a turn was not made", exc_info=err)

    def drop(self) -> None:
        """The lease is lost: others tell of the turn."""
        self._end = None


NO_SPAN = TurnSpan(trace.INVALID_SPAN_CONTEXT)


class TurnSpans:
    """Begins the spans of a worker's turns."""

    def __init__(self, tracer: trace.Tracer, queue: str, worker: str) -> None:
        self._tracer = tracer
        self._finisher = Finisher(tracer)
        self._name = c.run_span(queue)
        self._same: c.Attributes = {c.QUEUE: queue, c.WORKER: worker}

    def begin(self, public: LeasedTurn) -> TurnSpan:
        """Begin the span of a turn that was leased now, and tell at once that it has begun.

        Raises nothing: a turn that fails here would keep its lease, with nobody at work.
        """
        try:
            return self._begin(public)
        except Exception as err:
            _log.error("a turn has no span", exc_info=err)
            return TurnSpan(trace.INVALID_SPAN_CONTEXT)

    def _begin(self, public: LeasedTurn) -> TurnSpan:
        leased, run = public.leased, public.run
        creator = tracecontext.span_of(run.trace)
        if creator is None:  # nobody who created it was traced: it begins a trace
            begun = self._tracer.start_span(self._name, context=Context()).get_span_context()
        else:
            own = tracecontext.turn_span_id(run.run_id, leased.lease.fencing_token)
            begun = self._finisher.context(creator, own)
        if not self._finisher.records or not begun.trace_flags.sampled:
            return TurnSpan(begun)
        since = time.time_ns() // 1000
        described, links = self._describe(public)

        def end(more: c.Attributes, error: str | None) -> None:
            self._finisher.make(
                self._name,
                begun,
                creator,
                since,
                time.time_ns() // 1000,
                kind=trace.SpanKind.CONSUMER,
                attributes=described | more,
                links=links,
                error=error,
            )

        self._tell(begun, public, since)
        return TurnSpan(begun, end)

    def _describe(self, public: LeasedTurn) -> tuple[c.Attributes, Sequence[trace.Link]]:
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
            # A scheduler that is newer than this worker may know other reasons.
            attributes[c.RESUME_REASON] = _RESUMED.get(leased.resumption.reason, c.OTHER)
        found = [tracecontext.link_to(link) for link in leased.links]
        links = [link for link in found if link is not None]
        if len(links) > tracecontext.MOST_LINKS:
            attributes[c.LINKS_LEFT_OUT] = len(links) - tracecontext.MOST_LINKS
        return attributes, links[: tracecontext.MOST_LINKS]

    def _tell(self, parent: trace.SpanContext, public: LeasedTurn, now: int) -> None:
        """Spans are sent when they end: a short one says that a turn is at work."""
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
