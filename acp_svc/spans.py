"""Spans of a turn of a harness. Titles, commands and texts are content: they stay out of traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context, trace

from acp_svc.domain.permissions import Decision
from acp_svc.domain.session import Session
from acp_svc.domain.toolcalls import ToolCall


@contextmanager
def opening(tracer: trace.Tracer, session: Session) -> Iterator[trace.Span]:
    """A session is made ready: short when it is open, else the start of a process."""
    with tracer.start_as_current_span(
        f"open {session.spec.harness_id}", record_exception=False, attributes=_of(session)
    ) as span:
        yield span


@contextmanager
def prompt(tracer: trace.Tracer, session: Session) -> Iterator[trace.Span]:
    """A harness works on a prompt."""
    with tracer.start_as_current_span(
        f"invoke_agent {session.spec.harness_id}",
        kind=trace.SpanKind.CLIENT,
        record_exception=False,
        attributes={
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": session.spec.harness_id,
            "gen_ai.conversation.id": session.spec.session_key,
            **_of(session),
        },
    ) as span:
        yield span


def permission(tracer: trace.Tracer, within: context.Context, call: ToolCall) -> trace.Span:
    """People are asked. End it with `decided`."""
    return tracer.start_span(
        "wait permission",
        context=within,
        attributes={"gen_ai.tool.call.id": call.call_id, "gen_ai.tool.name": call.shown_kind},
    )


def decided(span: trace.Span, decision: Decision) -> None:
    """Note what came of a permission. Who decided is nobody's business here."""
    span.set_attribute("conveyor.acp.permission.allowed", decision.allowed)
    span.set_attribute("conveyor.acp.permission.rule", decision.rule.value)
    span.end()


MOST_TOOL_SPANS = 200


class ToolSpans:
    """Spans of the first tool calls of a prompt, from when they are told until they are over."""

    def __init__(self, tracer: trace.Tracer, within: context.Context) -> None:
        self._tracer = tracer
        self._within = within
        self._open: dict[str, trace.Span] = {}
        self._over: set[str] = set()

    def saw(self, call: ToolCall) -> None:
        """Take in where a call is now."""
        if call.call_id in self._over:
            return
        span = self._open.get(call.call_id)
        if span is None:
            if len(self._open) + len(self._over) >= MOST_TOOL_SPANS:
                return
            span = self._open[call.call_id] = self._tracer.start_span(
                f"execute_tool {call.shown_kind}",
                context=self._within,
                attributes={
                    "gen_ai.operation.name": "execute_tool",
                    "gen_ai.tool.call.id": call.call_id,
                },
            )
        if call.over:
            # The kind is often told later than the start.
            span.update_name(f"execute_tool {call.shown_kind}")
            span.set_attribute("gen_ai.tool.name", call.shown_kind)
            if call.status == "failed":
                span.set_status(trace.StatusCode.ERROR, "failed")
            span.end()
            del self._open[call.call_id]
            self._over.add(call.call_id)

    def end(self) -> None:
        """End those that never were told as over."""
        for span in self._open.values():
            span.end()
        self._open.clear()


def _of(session: Session) -> dict[str, str]:
    return {
        "conveyor.acp.session.id": session.session_id,
        "conveyor.acp.harness": session.spec.harness_id,
        "conveyor.acp.permission_mode": session.spec.permission_mode.value,
    }
