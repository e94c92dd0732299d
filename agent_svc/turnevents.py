"""The events that a turn of an agent writes. Their ids are made of what they tell, so that a later
attempt that tells it again stores nothing twice."""

from __future__ import annotations

import hashlib

from google.rpc import status_pb2

from agent_svc import convert
from agent_svc.domain import steps as s
from agent_svc.domain.guard.ladder import Taken
from agent_svc.toolsets import Note
from conveyor.agent.v1 import task_pb2
from conveyor.common.v1 import question_pb2
from conveyor.events.v1 import event_pb2
from svckit import tracecontext
from svckit.content import EVENT_BYTES, arguments_struct, cut, spoken


def call_started(run_id: str, tool_call: s.ToolCall) -> event_pb2.Event:
    """A tool call began."""
    return event_pb2.Event(
        event_id=f"{run_id}-{tool_call.id}-started",
        trace=tracecontext.current(),
        tool_call_started=event_pb2.ToolCallStarted(
            tool_call_id=tool_call.id,
            tool_name=tool_call.name[:64],
            arguments=arguments_struct(tool_call.arguments),
        ),
    )


def call_ended(
    run_id: str, call_id: str, output: str, error: status_pb2.Status | None = None
) -> event_pb2.Event:
    """A tool call ended; `output` is what the model sees."""
    ended = event_pb2.ToolCallEnded(tool_call_id=call_id, error=error)
    if output:
        ended.output.add(text=cut(output, EVENT_BYTES))
    return event_pb2.Event(
        event_id=f"{run_id}-{call_id}-ended", trace=tracecontext.current(), tool_call_ended=ended
    )


def question_asked(run_id: str, call_id: str, question: question_pb2.Question) -> event_pb2.Event:
    """The run asks a question about a tool call."""
    return event_pb2.Event(
        event_id=f"{run_id}-{call_id}-asked",
        trace=tracecontext.current(),
        question_asked=event_pb2.QuestionAsked(question=question),
    )


def said_between(run_id: str, turn: int, step: int, text: str) -> event_pb2.Event:
    """Text that the model wrote beside its tool calls. It is not delivered."""
    message_id = f"{run_id}-{turn}.{step}"
    return event_pb2.Event(
        event_id=f"{message_id}-said",
        trace=tracecontext.current(),
        message_completed=event_pb2.MessageCompleted(
            message=spoken(message_id, text),
            kind=event_pb2.MESSAGE_KIND_INTERNAL,
        ),
    )


def caught_text(run_id: str, turn: int, step: int, text: str) -> event_pb2.Event:
    """A reply that the delegation guard caught. It is not delivered."""
    message_id = f"{run_id}-{turn}.{step}"
    return event_pb2.Event(
        event_id=f"{message_id}-caught",
        trace=tracecontext.current(),
        message_completed=event_pb2.MessageCompleted(
            message=spoken(message_id, text),
            kind=event_pb2.MESSAGE_KIND_INTERNAL,
            caught=True,
        ),
    )


def guard_intervened(run_id: str, taken: Taken) -> event_pb2.Event:
    """The delegation guard took a rung, and this came of it."""
    return event_pb2.Event(
        event_id=f"{run_id}-{taken.turn}.{taken.step}-guard",
        trace=tracecontext.current(),
        guard_intervened=convert.guard_to_proto(taken),
    )


def customer_told(notice: task_pb2.CustomerNotice) -> event_pb2.Event:
    """What the customer has to know before the answer. Told once per session."""
    return event_pb2.Event(
        event_id=notice.notice_id,
        trace=tracecontext.current(),
        note_added=event_pb2.NoteAdded(code="customer_notice", text=notice.text, visible=True),
    )


def noted(run_id: str, turn: int, note: Note) -> event_pb2.Event:
    """Something that operators should learn. Told once per turn, however often it is written."""
    about = hashlib.sha256(f"{note.code}/{note.about}".encode()).hexdigest()[:12]
    level = event_pb2.NOTE_LEVEL_WARNING if note.warns else event_pb2.NOTE_LEVEL_INFO
    return event_pb2.Event(
        event_id=f"{run_id}-{turn}-note-{about}",
        trace=tracecontext.current(),
        note_added=event_pb2.NoteAdded(level=level, code=note.code, text=note.text),
    )


def fallback_note(reply: s.Replied) -> Note | None:
    """What to tell when a fallback replied. A provider's own name for the model is no fallback."""
    if not reply.passed_over:
        return None
    pair = f"{reply.requested_model} → {reply.effective_model}"
    why = reply.passed_over.replace("_", " ")
    text = f"{reply.requested_model} did not answer ({why}): {reply.effective_model} did."
    return Note("model_fallback", pair, text)
