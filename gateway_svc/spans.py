"""Spans of the gateway: a message that is taken in, a command, a call from outside, a delivery."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from opentelemetry import trace

from conveyor.common.v1 import trace_pb2
from conveyor.scheduler.v1 import lane_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.delivery.channel import Delivery, DeliveryFailed, Undeliverable
from gateway_svc.domain.routing import Routed
from svckit import captured, pseudonyms, tracecontext
from svckit import conventions as c
from svckit.errors import ServiceError
from svckit.spanning import step

MOST_ATTEMPTS_SHOWN = 5
"""Attempts of a delivery that have a span: a channel that is away for a day is tried every minute.
The last one, whatever came of it, always has one."""


@contextmanager
def accepting(
    tracer: trace.Tracer, routed: Routed, *, capture: bool = False
) -> Iterator[trace.Span]:
    """A message is handed to the scheduler, linked to the message of its session before it.

    The request that brought it tells of the conversation too, and with `capture` of what was said:
    it is what UIs list.
    """
    conversation = c.conversation(routed.key.text)
    request = trace.get_current_span()
    request.set_attributes(conversation)
    if capture and request.is_recording():
        said = captured.dump([captured.spoken("user", routed.message)])
        request.set_attributes(c.asked(said, captured.words(routed.message)))
    before = tracecontext.link_to(trace_pb2.TraceContext(traceparent=routed.previous_trace))
    attributes: c.Attributes = {
        **conversation,
        c.CUSTOMER: pseudonyms.of(routed.customer_key),
        c.CHANNEL: routed.key.channel,
        c.GEN_AI_AGENT_NAME: routed.agent_id,
        c.QUEUE: routed.spec.queue,
    }
    links = [before] if before is not None else []
    with step(tracer, c.accept_span(), attributes, links=links, answers=ServiceError) as span:
        yield span


def accepted(span: trace.Span, run: ss.AcceptedRun, *, new: bool) -> None:
    """Note what came of a message: a run of its own, or one that it joined."""
    outcome = lane_pb2.EnqueueOutcome.Name(run.outcome).removeprefix("ENQUEUE_OUTCOME_").lower()
    span.set_attributes(
        {
            c.RUN_ID: run.run.run_id,
            c.ACCEPT_OUTCOME: outcome,
            c.DEDUPLICATED: run.deduplicated,
        }
    )
    joined = tracecontext.link_to(run.run.trace) if not new else None
    if joined is not None:
        span.add_link(joined.context)


def command(
    tracer: trace.Tracer, name: str, session_key: str
) -> AbstractContextManager[trace.Span]:
    """A command is done."""
    conversation = c.conversation(session_key)
    trace.get_current_span().set_attributes(conversation)
    attributes: c.Attributes = {c.COMMAND: name, **conversation}
    return step(tracer, c.command_span(name), attributes, answers=ServiceError)


def hook(tracer: trace.Tracer, name: str) -> AbstractContextManager[trace.Span]:
    """A hook of the configuration was called, by somebody who may."""
    return step(tracer, c.hook_span(name), {c.HOOK: name}, answers=ServiceError)


class Delivering:
    """One attempt of a delivery, for a `with` block, below what it tells of."""

    def __init__(
        self, tracer: trace.Tracer, kind: str, delivery: Delivery, traceparent: str, waited_us: int
    ) -> None:
        self._attempt = delivery.attempt
        self._end_ns = 0
        self.span = tracer.start_span(
            c.deliver_span(kind),
            context=tracecontext.parent_of(trace_pb2.TraceContext(traceparent=traceparent)),
            kind=trace.SpanKind.PRODUCER,
            attributes={
                c.CHANNEL_KIND: kind,
                c.CHANNEL: delivery.address.channel,
                c.RECIPIENT: pseudonyms.of(delivery.address.recipient),
                c.RUN_ID: delivery.run_id,
                c.DELIVERY_KIND: delivery.kind.value,
                c.DELIVERY_ATTEMPT: delivery.attempt,
                c.DELIVERY_WAITED: waited_us / 1e6,
            },
        )

    def current(self) -> AbstractContextManager[trace.Span]:
        """What the channel does belongs to it."""
        return trace.use_span(self.span, record_exception=False, set_status_on_exception=False)

    def sent(self) -> None:
        """The channel is done, with or without success."""
        self._end_ns = time.time_ns()

    def over(self, outcome: str, failure: DeliveryFailed | None) -> None:
        """Note what came of it: delivered, postponed or given up."""
        self.span.set_attribute(c.DELIVERY_OUTCOME, outcome)
        if failure is not None:
            final = isinstance(failure, Undeliverable)
            self.span.set_attribute(c.ERROR_TYPE, "undeliverable" if final else "delivery_failed")
            # A constant text without the peer, as the contract of channels has it.
            self.span.set_status(trace.StatusCode.ERROR, failure.problem)
        if outcome != c.POSTPONED or self._attempt <= MOST_ATTEMPTS_SHOWN:
            self.span.end(self._end_ns or None)
