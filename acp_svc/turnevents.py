"""The events that a prompt writes. Their ids count, so that one written again is no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from acp_svc.domain import updates as u
from acp_svc.domain.cutting import line
from acp_svc.domain.permissions import Decision, Question
from acp_svc.domain.toolcalls import TITLE_CHARS, ToolCall
from conveyor.common.v1 import content_pb2, question_pb2
from conveyor.events.v1 import event_pb2
from svckit import tracecontext
from svckit.content import arguments_struct, spoken

STATUSES: Mapping[str, event_pb2.HarnessItemStatus.ValueType] = MappingProxyType(
    {
        "pending": event_pb2.HARNESS_ITEM_STATUS_PENDING,
        "in_progress": event_pb2.HARNESS_ITEM_STATUS_IN_PROGRESS,
        "completed": event_pb2.HARNESS_ITEM_STATUS_COMPLETED,
        "failed": event_pb2.HARNESS_ITEM_STATUS_FAILED,
    }
)
OPTION_KINDS: Mapping[str, question_pb2.QuestionOptionKind.ValueType] = MappingProxyType(
    {
        "allow_once": question_pb2.QUESTION_OPTION_KIND_ALLOW_ONCE,
        "allow_always": question_pb2.QUESTION_OPTION_KIND_ALLOW_ALWAYS,
        "reject_once": question_pb2.QUESTION_OPTION_KIND_REJECT_ONCE,
        "reject_always": question_pb2.QUESTION_OPTION_KIND_REJECT_ALWAYS,
    }
)


class Events:
    """Builds the events of one prompt of a run."""

    def __init__(self, run_id: str, turn: int, session_id: str) -> None:
        self._base = f"{run_id}-{turn}"
        self._session_id = session_id
        self._count = 0

    def told(self, told: u.Told) -> event_pb2.Event:
        """What the harness told."""
        match told:
            case u.Between(text):
                return self.said(text)
            case u.Thinking(text):
                return self._harness(event_pb2.HarnessUpdated(thought=text))
            case u.Planned(entries):
                plan = event_pb2.HarnessPlan()
                for entry in entries:
                    plan.entries.add(content=entry.content, status=STATUSES.get(entry.status, 0))
                return self._harness(event_pb2.HarnessUpdated(plan=plan))
            case u.Shown():
                return self._harness(event_pb2.HarnessUpdated(tool_call=_tool_call(told)))
            case u.LeftOut():
                event = self._event()
                event.note_added.level = event_pb2.NOTE_LEVEL_INFO
                event.note_added.code = "harness_updates_left_out"
                event.note_added.text = (
                    f"The harness told more than {u.MOST_EVENTS} things in this turn: what follows "
                    "of its plan, thoughts and new tool calls is left out."
                )
                return event

    def said(self, text: str) -> event_pb2.Event:
        """Text that is not the reply: said between tool calls, or before the turn broke off."""
        event = self._event()
        event.message_completed.kind = event_pb2.MESSAGE_KIND_INTERNAL
        event.message_completed.message.CopyFrom(spoken(event.event_id, text))
        return event

    def asked(self, question: question_pb2.Question) -> event_pb2.Event:
        """People are asked."""
        event = self._event()
        event.question_asked.question.CopyFrom(question)
        return event

    def decided(self, call: ToolCall, decision: Decision) -> event_pb2.Event:
        """A permission was allowed or denied."""
        event = self._event()
        event.permission_decided.CopyFrom(
            event_pb2.PermissionDecided(
                acp_session_id=self._session_id,
                tool_call_id=call.call_id,
                title=call.shown_title,
                tool_kind=call.shown_kind,
                allowed=decision.allowed,
                rule=decision.rule.value,
                responder=decision.responder,
                option_name=line(decision.option.name, TITLE_CHARS) if decision.option else "",
            )
        )
        return event

    def question(
        self, question_id: str, asked: Question, timeout_seconds: float
    ) -> question_pb2.Question:
        """Write what people are asked."""
        out = question_pb2.Question(
            question_id=question_id,
            acp_session_id=self._session_id,
            title=asked.title,
            tool_kind=asked.kind,
            locations=asked.locations,
            options=[
                question_pb2.QuestionOption(
                    option_id=offer.option_id, name=offer.name, kind=OPTION_KINDS[offer.kind]
                )
                for offer in asked.offers
            ],
            default_option_id=asked.default_id,
        )
        if asked.arguments:
            out.arguments.CopyFrom(arguments_struct(json.dumps(asked.arguments)))
        out.timeout.FromMilliseconds(round(timeout_seconds * 1000))
        return out

    def _harness(self, update: event_pb2.HarnessUpdated) -> event_pb2.Event:
        event = self._event()
        update.acp_session_id = self._session_id
        event.harness_updated.CopyFrom(update)
        return event

    def _event(self) -> event_pb2.Event:
        self._count += 1
        return event_pb2.Event(
            event_id=f"{self._base}-h{self._count}", trace=tracecontext.current()
        )


def _tool_call(shown: u.Shown) -> event_pb2.HarnessToolCall:
    output = [content_pb2.ContentPart(text=shown.output)] if shown.output else []
    return event_pb2.HarnessToolCall(
        tool_call_id=shown.call_id,
        title=shown.title,
        tool_kind=shown.kind,
        status=STATUSES.get(shown.status, event_pb2.HARNESS_ITEM_STATUS_PENDING),
        locations=shown.locations,
        output=output,
    )
