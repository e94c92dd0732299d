"""The span of an agent or a harness at work on a turn: what it is asked, what happens, how it ends.

Whatever is done meanwhile is below it. A run whose lease is kept during a wait has one span per
turn: `next_turn` ends the one before, so that what follows belongs to the turn at work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from opentelemetry import context as otel_context
from opentelemetry import trace

from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import run_pb2
from svckit import captured, tracecontext
from svckit import conventions as c
from svckit.errors import LeaseLost, ServiceError
from svckit.grpc.status import from_proto
from svckit.turn import Complete, Fail, LeasedTurn, Outcome, Suspend

_ROLES = {content_pb2.ROLE_AGENT: "assistant", content_pb2.ROLE_SYSTEM: "system"}


class AtWork:
    """Somebody at work on a turn, for a `with` block inside the turn's own span.

    `attributes` are those of every span; contents are noted only with `capture`.
    """

    def __init__(
        self,
        tracer: trace.Tracer,
        turn: LeasedTurn,
        name: str,
        attributes: c.Attributes,
        *,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        capture: bool = False,
    ) -> None:
        self.tracer = tracer
        self.turn = turn
        self.capture = capture
        self.span: trace.Span = trace.INVALID_SPAN
        self._name = name
        self._attributes = attributes
        self._kind = kind
        self._ended = False
        self._over = False

    def __enter__(self) -> Self:
        self._begin(otel_context.get_current())
        return self

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        __: TracebackType | None,
    ) -> None:
        if error is not None and not self._ended:
            self._broke_off(error)
        otel_context.detach(self._token)
        self._close()

    @property
    def within(self) -> otel_context.Context:
        """The context for what is begun elsewhere and belongs below."""
        return trace.set_span_in_context(self.span)

    def next_turn(self, span: trace.Span) -> None:
        """The wait of a kept lease is over: go on below `span`, that of the turn at work now.

        To be called in the task that entered the block.
        """
        before = self.span.get_span_context()
        otel_context.detach(self._token)
        self._close()
        links = [trace.Link(before)] if before.is_valid else []
        self._begin(trace.set_span_in_context(span), links)

    def waits(self, waits_for: str) -> None:
        """The turn ends with a wait, and the block goes on after it.

        The span ends now: a process that ends during the wait must not take it along. What begins
        during the wait is still below it.
        """
        self.note({c.OUTCOME: "suspend", c.WAITS_FOR: waits_for})
        self._close()

    def asked(self, inputs: Iterable[run_pb2.RunInput]) -> None:
        """Note what is to be answered."""
        if self._writes:
            said = [item.message for item in inputs if item.HasField("message")]
            messages = [captured.spoken(_ROLES.get(one.role, "user"), one) for one in said]
            self.span.set_attributes(c.asked(captured.dump(messages), captured.words(*said)))

    def steered(self, inputs: Sequence[run_pb2.RunInput]) -> None:
        """Note that the turn took what was said to it meanwhile, and who sent it."""
        if not inputs:
            return
        senders = [link for item in inputs if (link := tracecontext.link_to(item.trace))]
        for link in senders:
            self.span.add_link(link.context)
        self.event(
            c.EVENT_STEERED,
            {
                c.STEERED_INPUTS: len(inputs),
                c.STEERED_FROM: [trace.format_trace_id(link.context.trace_id) for link in senders],
            },
        )

    def event(self, name: str, attributes: c.Attributes | None = None) -> None:
        """Note something that happened."""
        if not self._over:
            self.span.add_event(name, attributes)

    def note(self, attributes: c.Attributes) -> None:
        """Note facts."""
        if not self._over:
            self.span.set_attributes(attributes)

    def ended(self, outcome: Outcome) -> None:
        """Note how the turn ends. What comes after it in the block changes nothing of that."""
        self._ended = True
        self.note({c.OUTCOME: type(outcome).__name__.lower()})
        if isinstance(outcome, Suspend):
            request = outcome.request
            self.note({c.WAITS_FOR: request.condition.WhichOneof("condition") or ""})
            if request.condition.HasField("children"):
                count = len(request.condition.children.run_ids)
                yielded = not request.hold_session_lane
                self.note({c.WAIT_CHILDREN_COUNT: count, c.YIELDED: yielded})
            self._said(request.interim_reply)
        elif isinstance(outcome, Complete) and outcome.result is not None:
            self._said(outcome.result.reply)
        elif isinstance(outcome, Fail):
            error = outcome.error
            known = error if isinstance(error, ServiceError) else from_proto(error)
            self._failed(known.reason)

    def _begin(self, within: otel_context.Context, links: Sequence[trace.Link] = ()) -> None:
        turn = self.turn
        run = turn.run
        self._over = False
        self.span = self.tracer.start_span(
            self._name,
            context=within,
            kind=self._kind,
            links=links,
            attributes={
                **self._attributes,
                c.RUN_ID: run.run_id,
                c.FLOW_ID: run.spawn.flow_id,
                c.DEPTH: run.spawn.depth,
                c.TURN: turn.turn,
                c.ATTEMPT: turn.attempt,
            },
        )
        # Not `use_span`: it writes the texts of exceptions into the span.
        self._token = otel_context.attach(trace.set_span_in_context(self.span, within))

    def _close(self) -> None:
        if not self._over:
            self._over = True
            self.span.end()

    def _broke_off(self, error: BaseException) -> None:
        turn = self.turn
        if turn.cancelled.is_set():
            self.note({c.OUTCOME: "cancelled"})
        elif turn.lost.is_set() or isinstance(error, LeaseLost):
            self.note({c.OUTCOME: "lost"})
        elif isinstance(error, asyncio.CancelledError):
            self.note({c.OUTCOME: "release"})
        else:
            self.note({c.OUTCOME: "fail"})
            self._failed(error.reason if isinstance(error, ServiceError) else c.UNEXPECTED)

    def _failed(self, reason: str) -> None:
        self.note({c.ERROR_TYPE: reason})
        if not self._over and not self.turn.cancelled.is_set():
            self.span.set_status(trace.StatusCode.ERROR, reason)

    def _said(self, reply: content_pb2.Message) -> None:
        if self._writes and reply.parts:
            answer = captured.spoken("assistant", reply, finish_reason="stop")
            told = c.answered(captured.dump([answer]), captured.words(reply))
            self.span.set_attributes(told)

    @property
    def _writes(self) -> bool:
        return self.capture and not self._over and self.span.is_recording()
