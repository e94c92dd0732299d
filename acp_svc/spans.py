"""Spans of a turn of a harness. Titles, commands and texts are content: they stay out of traces,
unless contents are captured.

What a harness does comes whenever it likes, also while its run waits for people. It belongs to the
turn that is at work then, or else to the one that was last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace

from acp_svc.domain.metering import Spent, together
from acp_svc.domain.permissions import Decision
from acp_svc.domain.session import Session
from acp_svc.domain.toolcalls import ToolCall
from acp_svc.endings import STOP_REASONS
from acp_svc.live import Full
from svckit import conventions as c
from svckit.atwork import AtWork
from svckit.spanning import step
from svckit.turn import LeasedTurn

MOST_TOOL_SPANS = 200
"""Of one prompt. A harness that works for hours would drown the trace of its flow."""
MOST_PERMISSION_SPANS = 50
"""Of one prompt, for the same reason: those that people were asked about."""


@contextmanager
def opening(tracer: trace.Tracer, session: Session) -> Iterator[trace.Span]:
    """A session is made ready: short when it is open, else the start of a process."""
    attributes = _of(session) | c.conversation(session.spec.session_key)
    # Without room the run waits: that is no failure.
    with step(tracer, c.open_span(session.spec.harness_id), attributes, answers=Full) as span:
        yield span


class PromptSpans(AtWork):
    """A harness at work on a prompt, for a `with` block: one span per turn of its run."""

    def __init__(
        self, tracer: trace.Tracer, turn: LeasedTurn, session: Session, *, capture: bool = False
    ) -> None:
        spec = session.spec
        attributes = c.agent_turn(spec.harness_id, turn.run.spec.session_key) | _of(session)
        if spec.model:
            attributes[c.GEN_AI_REQUEST_MODEL] = spec.model
        super().__init__(
            tracer,
            turn,
            c.agent_span(spec.harness_id),
            attributes,
            kind=trace.SpanKind.CLIENT,
            capture=capture,
        )
        self._open: dict[str, trace.Span] = {}
        self._told: set[str] = set()
        self._left_out: set[str] = set()
        self._asked = 0
        self._spent = Spent()

    def saw(self, call: ToolCall) -> None:
        """Take in where a tool call of the harness is now."""
        if call.call_id in self._told:
            return
        span = self._open.get(call.call_id)
        if span is None:
            if len(self._open) + len(self._told) >= MOST_TOOL_SPANS:
                self._left_out.add(call.call_id)
                return
            span = self._open[call.call_id] = self.tracer.start_span(
                c.tool_span(call.shown_kind),
                context=self.within,
                attributes=c.tool_call(call.shown_kind, [call.call_id]),
            )
        if call.over:
            # The kind is often told later than the start.
            span.update_name(c.tool_span(call.shown_kind))
            span.set_attributes(c.tool_name(call.shown_kind))
            if call.status == "failed":
                span.set_attribute(c.ERROR_TYPE, "tool")
                span.set_status(trace.StatusCode.ERROR, "tool")
            span.end()
            del self._open[call.call_id]
            self._told.add(call.call_id)

    def tools_over(self) -> None:
        """End those tools that never were told as over."""
        for span in self._open.values():
            span.end()
        self._told.update(self._open)
        self._open.clear()
        if self._left_out:
            self.note({c.TOOLS_LEFT_OUT: len(self._left_out)})

    def asks(self, call: ToolCall) -> trace.Span:
        """People are asked. End it with `answered`."""
        self._asked += 1
        if self._asked > MOST_PERMISSION_SPANS:
            return trace.INVALID_SPAN
        return self.tracer.start_span(
            c.WAIT_PERMISSION, context=self.within, attributes=_about(call)
        )

    def answered(self, span: trace.Span, decision: Decision) -> None:
        """Note what came of what people were asked. Who they are is nobody's business here."""
        span.set_attributes(_decided(decision))
        span.end()

    def decided(self, call: ToolCall, decision: Decision) -> None:
        """Note what was decided about a permission by rule, at once."""
        self.event(c.EVENT_PERMISSION, _about(call) | _decided(decision))

    def used(self, spent: Spent) -> None:
        """Add what was used. A harness's model calls have no spans of their own: it has these."""
        self._spent = together([self._spent, spent])
        self._note_spent()

    def stopped(self, reason: str) -> None:
        """Note why the harness stopped. What it calls a reason of its own is content."""
        known = reason if reason in STOP_REASONS else "other"
        self.note({c.ACP_STOP_REASON: known, c.GEN_AI_FINISH_REASONS: [known]})

    def waits(self, waits_for: str) -> None:
        """See `AtWork`. What is used from now on belongs to the next turn."""
        super().waits(waits_for)
        self._spent = Spent()

    def next_turn(self, span: trace.Span) -> None:
        """See `AtWork`."""
        super().next_turn(span)
        self._note_spent()

    def _note_spent(self) -> None:
        spent = self._spent
        if spent.read or spent.written:
            self.note(c.used(read=spent.read, written=spent.written, cached=spent.cached))
        if spent.cost_micros:
            self.note({c.LLM_COST_USD: spent.cost_micros / 1e6})


def _about(call: ToolCall) -> c.Attributes:
    return c.tool_name(call.shown_kind) | c.call_id([call.call_id])


def _decided(decision: Decision) -> c.Attributes:
    return {
        c.ACP_PERMISSION_ALLOWED: decision.allowed,
        c.ACP_PERMISSION_RULE: decision.rule.value,
    }


def _of(session: Session) -> c.Attributes:
    return {
        c.ACP_SESSION_ID: session.session_id,
        c.ACP_HARNESS: session.spec.harness_id,
        c.ACP_PERMISSION_MODE: session.spec.permission_mode.value,
    }
