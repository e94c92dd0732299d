"""Spans of a turn, with the attribute names of the GenAI conventions in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace

from agent_svc.domain.steps import Guarded, ToolCall, Usage


@contextmanager
def chat(tracer: trace.Tracer, model: str, session_key: str) -> Iterator[trace.Span]:
    """One step's model call, its retries included."""
    with tracer.start_as_current_span(
        f"chat {model}",
        kind=trace.SpanKind.CLIENT,
        record_exception=False,
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            "gen_ai.conversation.id": session_key,
        },
    ) as span:
        yield span


def answered(span: trace.Span, model: str, usage: Usage) -> None:
    """Note who answered and what it used."""
    span.set_attribute("gen_ai.response.model", model)
    span.set_attribute("gen_ai.usage.input_tokens", usage.read)
    span.set_attribute("gen_ai.usage.output_tokens", usage.written)


@contextmanager
def tool(tracer: trace.Tracer, calls: tuple[ToolCall, ...]) -> Iterator[trace.Span]:
    """One tool at work; calls that start children go together."""
    with tracer.start_as_current_span(
        f"execute_tool {calls[0].name}",
        record_exception=False,
        attributes={
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": calls[0].name,
            "gen_ai.tool.call.id": [call.id for call in calls],
        },
    ) as span:
        yield span


def guarded(rung: Guarded) -> None:
    """Note on the turn's span what the delegation guard did, and that it did something.

    What was caught is text of a conversation: it stays out of traces.
    """
    span = trace.get_current_span()
    span.set_attribute("conveyor.guard.step", rung.step)
    span.set_attribute("conveyor.guard.trigger", rung.trigger)
    span.add_event(
        "delegation guard",
        {
            "conveyor.guard.trigger": rung.trigger,
            "conveyor.guard.step": rung.step,
            "conveyor.guard.model": rung.model,
        },
    )
