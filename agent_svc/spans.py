"""Spans of an agent's turn: the turn itself, its model calls, its tools, and what happened between.

One span stands for one model that is asked, its repeated calls included; a fallback has one of its
own. What was said stays out of them unless contents are captured, and so do the names of tools that
only the model knows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Self

from opentelemetry import trace

from agent_svc.domain import steps as s
from agent_svc.domain.prompt import Answered, Prompt, PromptMessage, Said
from agent_svc.models.base import CallFailed, Model, ModelReply
from svckit import captured
from svckit import conventions as c
from svckit.atwork import AtWork
from svckit.spanning import step
from svckit.turn import LeasedTurn

MOST_TOOL_SPANS = 200
"""Of one turn. A model that calls more goes round in circles, and would drown the trace."""
DEMO = "conveyor"
"""The provider of the demo models: this suite."""
_FINISHED: Mapping[s.StopReason, str] = {
    "end_turn": "stop",
    "max_tokens": "length",
    "refusal": "content_filter",
}


class TurnSpans(AtWork):
    """One attempt of a turn, for a `with` block. `model` is the one that the run asks for."""

    def __init__(
        self,
        tracer: trace.Tracer,
        turn: LeasedTurn,
        agent_id: str,
        model: Model,
        *,
        capture: bool = False,
    ) -> None:
        attributes = c.agent_turn(agent_id, turn.run.spec.session_key)
        attributes |= c.model(model.name, provider_of(model))
        super().__init__(tracer, turn, c.agent_span(agent_id), attributes, capture=capture)
        self._tools = 0

    def guarded(self, rung: s.Guarded) -> None:
        """Note what the delegation guard did, and that it did something.

        What was caught is text of a conversation: it stays out of traces.
        """
        self.span.set_attributes({c.GUARD_STEP: rung.step, c.GUARD_TRIGGER: rung.trigger})
        self.event(
            c.EVENT_GUARD,
            {
                c.GUARD_TRIGGER: rung.trigger,
                c.GUARD_STEP: rung.step,
                c.GUARD_MODEL: rung.model,
            },
        )

    def began(self, began: s.Began) -> None:
        """Note what people answered since the last turn. Who they are is nobody's business here."""
        for answer in began.answers:
            self.event(
                c.EVENT_ANSWER,
                {
                    c.QUESTION_ID: answer.question_id,
                    c.QUESTION_OUTCOME: answer.option_id or "nobody answered",
                },
            )

    def question(self, call: s.ToolCall, question_id: str) -> None:
        """Note that people are asked about a call of a tool that is offered."""
        self.event(
            c.EVENT_QUESTION,
            {c.QUESTION_ID: question_id, c.GEN_AI_TOOL_NAME: call.name, **c.call_id([call.id])},
        )

    def not_run(self, call_id: str) -> None:
        """Note that a call has a result without being run: denied, or interrupted by a crash."""
        self.event(c.EVENT_NOT_RUN, c.call_id([call_id]))

    def calls(self, prompt: Prompt, call: str) -> ModelCalls:
        """The models that are asked for one reply, for a `with` block; `call` names it."""
        attributes = c.conversation(self.turn.run.spec.session_key) | {c.MODEL_CALL: call}
        return ModelCalls(self.tracer, attributes, prompt, capture=self.capture)

    @contextmanager
    def tool(self, name: str, calls: Sequence[s.ToolCall]) -> Iterator[ToolSpan]:
        """One tool at work; calls that start children go together.

        `name` is that of a tool that is offered, empty for what the model made up.
        """
        self._tools += 1
        if self._tools > MOST_TOOL_SPANS:
            self.span.set_attribute(c.TOOLS_LEFT_OUT, self._tools - MOST_TOOL_SPANS)
            yield ToolSpan(trace.INVALID_SPAN, capture=False)
            return
        shown = name or c.UNKNOWN_TOOL
        attributes = c.tool_call(shown, [call.id for call in calls])
        attributes |= c.conversation(self.turn.run.spec.session_key)
        with step(self.tracer, c.tool_span(shown), attributes) as span:
            tool = ToolSpan(span, capture=self.capture)
            tool.asked(calls)
            yield tool


class ToolSpan:
    """One tool at work."""

    def __init__(self, span: trace.Span, *, capture: bool) -> None:
        self._span = span
        self._capture = capture and span.is_recording()

    def asked(self, calls: Sequence[s.ToolCall]) -> None:
        """Note what it is called with."""
        if self._capture:
            said = "\n".join(call.arguments for call in calls)
            self._span.set_attributes(c.tool_arguments(captured.plain(said)))

    def ended(self, results: Sequence[s.Record]) -> None:
        """Note what came of it. It failed when each of its calls did."""
        returned = [result for result in results if isinstance(result, s.Returned)]
        failed = sum(result.failed for result in returned)
        children = sum(isinstance(result, s.Spawned) for result in results)
        if children:
            self._span.set_attribute(c.CHILDREN_STARTED, children)
        if failed:
            self._span.set_attribute(c.TOOL_CALLS_FAILED, failed)
        if failed == len(results):
            self._span.set_attribute(c.ERROR_TYPE, "tool")
            self._span.set_status(trace.StatusCode.ERROR, "tool")
        if self._capture and returned:
            said = "\n".join(result.content for result in returned)
            self._span.set_attributes(c.tool_result(captured.plain(said)))


class ModelCalls:
    """What is asked of models for one reply: it watches `asking.ask`, for a `with` block.

    The span of a model ends when it has answered, or when nobody waits for it any more. A model
    that is passed over without a call has none.
    """

    def __init__(
        self,
        tracer: trace.Tracer,
        attributes: c.Attributes,
        prompt: Prompt,
        *,
        capture: bool = False,
    ) -> None:
        self._tracer = tracer
        self._attributes = attributes
        self._prompt = prompt
        self._capture = capture
        self._model: Model | None = None
        self._passed_over = ""
        self._span: trace.Span | None = None
        self._tries = 0
        self._failure: CallFailed | None = None
        self._last_ns = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._span is not None and self._failure is None and error is not None:
            self._span.set_attribute(c.ERROR_TYPE, c.error_type(error))
        self._end()

    def asks(self, model: Model, passed_over: str) -> None:
        """A model is next; `passed_over` is why the one before it did not answer, if it did not."""
        self._end()
        self._model, self._passed_over = model, passed_over

    def trying(self) -> AbstractContextManager[object]:
        """It is called now, for the first time or again."""
        span = self._begun()
        self._tries += 1
        self._failure, self._last_ns = None, 0
        return trace.use_span(span, record_exception=False, set_status_on_exception=False)

    def failed(self, failure: CallFailed) -> None:
        """It did not answer; it may be called again."""
        span = self._begun()
        self._failure, self._last_ns = failure, time.time_ns()
        facts: c.Attributes = {
            c.ERROR_TYPE: failure.error.reason,
            c.MODEL_ATTEMPT: self._tries,
            c.RETRY_REASON: failure.cause or failure.outcome,
        }
        if failure.retry_after is not None:
            facts[c.RETRY_AFTER] = failure.retry_after
        span.add_event(c.EVENT_MODEL_FAILED, facts)

    def answered(self, reply: ModelReply) -> None:
        """It answered."""
        span, model, used = self._begun(), self._model, reply.usage
        assert model is not None
        self._last_ns = time.time_ns()
        if not span.is_recording():
            return
        reason = "tool_call" if reply.calls else _FINISHED[reply.stop_reason]
        span.set_attributes(
            c.model_answered(
                reply.served or model.name,
                read=used.read,
                written=used.written,
                cached=used.cached,
                stored=used.stored,
                finish_reason=reason,
            )
        )
        if self._capture:
            parts = [captured.text(reply.text)] if reply.text else []
            parts += [captured.tool_call("", name, said) for name, said in reply.calls]
            answer = captured.message("assistant", parts, finish_reason=reason)
            messages = captured.dump([answer])
            text = captured.plain(reply.text) if reply.text and not reply.calls else messages
            span.set_attributes(c.answered(messages, text))

    def priced(self, cost_micros: int | None) -> None:
        """Note what the answer cost, where that is known."""
        if self._span is not None and cost_micros is not None:
            self._span.set_attribute(c.LLM_COST_USD, cost_micros / 1e6)

    def _begun(self) -> trace.Span:
        if self._span is None:
            model = self._model
            assert model is not None
            attributes = self._attributes | c.model_call(model.name, provider_of(model))
            attributes[c.MODEL_PROVIDER_ID] = model.provider_id
            if self._passed_over:
                attributes |= {c.MODEL_FALLBACK: True, c.RETRY_REASON: self._passed_over}
            self._span = self._tracer.start_span(
                c.chat_span(model.name), kind=trace.SpanKind.CLIENT, attributes=attributes
            )
            if self._capture and self._span.is_recording():
                asked = captured.dump(_messages(self._prompt))
                system = captured.text(self._prompt.system)["content"]
                self._span.set_attributes(c.asked(asked, asked) | c.instructions(system))
        return self._span

    def _end(self) -> None:
        span, failure = self._span, self._failure
        if span is not None:
            span.set_attribute(c.MODEL_ATTEMPT, self._tries)
            if failure is not None:
                span.set_attribute(c.ERROR_TYPE, failure.error.reason)
                span.set_status(trace.StatusCode.ERROR, failure.error.reason)
            span.end(self._last_ns or None)
        self._span, self._failure, self._tries, self._last_ns = None, None, 0, 0


def provider_of(model: Model) -> str:
    """The provider as the conventions call it."""
    kind = model.provider_kind
    return DEMO if kind == "demo" else c.PROVIDERS.get(kind, kind)


def _messages(prompt: Prompt) -> list[captured.Message]:
    return [_message(one) for one in prompt.messages]


def _message(one: PromptMessage) -> captured.Message:
    if isinstance(one, Said):
        role = "user" if one.origin == "person" else "system"
        extra = [captured.attachment(part.media_type) for part in one.attachments]
        return captured.message(role, [captured.text(one.text), *extra])
    if isinstance(one, Answered):
        parts = [captured.text(one.text)] if one.text else []
        parts += [captured.tool_call(call.id, call.name, call.arguments) for call in one.calls]
        return captured.message("assistant", parts)
    return captured.message("tool", [captured.tool_result(one.call_id, one.content)])
