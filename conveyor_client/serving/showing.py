"""What a client of the Agent Client Protocol is shown of a request. Pure: items in, updates out.

The reply comes as message chunks. Each sub-agent is a tool call of the session that is answered:
it begins when the child is spawned and ends when the child is announced, with the child's words as
its content. Tools of the agent itself are tool calls too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, cast

from acp.helpers import (
    plan_entry,
    start_tool_call,
    text_block,
    tool_content,
    update_agent_message_text,
    update_agent_thought_text,
    update_plan,
    update_tool_call,
)
from acp.schema import (
    AgentMessageChunk,
    AgentPlanUpdate,
    AgentThoughtChunk,
    PermissionOption,
    ToolCallLocation,
    ToolCallProgress,
    ToolCallStart,
    ToolCallUpdate,
)
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict

from conveyor.common.v1 import content_pb2 as content_pb
from conveyor.common.v1 import question_pb2 as question_pb
from conveyor.events.v1 import event_pb2 as event_pb
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import announcement_pb2 as announcement_pb
from conveyor.scheduler.v1 import run_pb2 as run_pb

Update: TypeAlias = (
    AgentMessageChunk | AgentThoughtChunk | AgentPlanUpdate | ToolCallStart | ToolCallProgress
)
Status: TypeAlias = Literal["pending", "in_progress", "completed", "failed"]
Kind: TypeAlias = Literal[
    "read", "edit", "delete", "move", "search", "execute", "think", "fetch", "switch_mode", "other"
]
OptionKind: TypeAlias = Literal["allow_once", "allow_always", "reject_once", "reject_always"]

# A child is shown as a tool call of its own, not by the call that spawned it.
_SPAWNING = frozenset({"sessions_spawn", "sessions_yield"})
_KINDS = frozenset({"read", "edit", "delete", "move", "search", "execute", "fetch"})
_STATUSES: dict[int, Status] = {
    event_pb.HARNESS_ITEM_STATUS_PENDING: "pending",
    event_pb.HARNESS_ITEM_STATUS_IN_PROGRESS: "in_progress",
    event_pb.HARNESS_ITEM_STATUS_COMPLETED: "completed",
    event_pb.HARNESS_ITEM_STATUS_FAILED: "failed",
}
_OPTION_KINDS: dict[int, OptionKind] = {
    question_pb.QUESTION_OPTION_KIND_ALLOW_ONCE: "allow_once",
    question_pb.QUESTION_OPTION_KIND_ALLOW_ALWAYS: "allow_always",
    question_pb.QUESTION_OPTION_KIND_REJECT_ONCE: "reject_once",
    question_pb.QUESTION_OPTION_KIND_REJECT_ALWAYS: "reject_always",
}


class Shown:
    """What was shown of one request in the conversation `session_key`."""

    def __init__(self, session_key: str) -> None:
        self._key = session_key
        self._said: dict[str, str] = {}
        self._complete: set[str] = set()
        self._begun: set[str] = set()

    def updates(self, item: gateway_pb.ChatResponse) -> Iterator[Update]:
        """Yield what the client is to be told of the next item of `Chat`."""
        match item.WhichOneof("message"):
            case "delta":
                yield from self._piece(item.delta)
            case "event":
                yield from self._event(item.event)
            case "ended" if item.ended.result.HasField("reply"):
                yield from self._whole(item.ended.result.reply)

    def _piece(self, delta: event_pb.MessageDelta) -> Iterator[Update]:
        if delta.session_key != self._key or delta.message_id in self._complete:
            return
        before = self._said.get(delta.message_id, "")
        yield from self._say(delta.message_id, before[: delta.offset] + delta.text)

    def _whole(self, message: content_pb.Message) -> Iterator[Update]:
        if message.message_id in self._complete:
            return
        self._complete.add(message.message_id)
        texts = [part.text for part in message.parts if part.HasField("text")]
        yield from self._say(message.message_id, "\n\n".join(texts))

    def _say(self, message_id: str, text: str) -> Iterator[Update]:
        """Show what is new of a text. What was shown stays: a new attempt's text follows it."""
        before = self._said.get(message_id, "")
        if not text or before.startswith(text):
            return
        self._said[message_id] = text
        more = text[len(before) :] if text.startswith(before) else f"\n\n{text}"
        yield update_agent_message_text(more).model_copy(update={"message_id": message_id})

    def _event(self, event: event_pb.Event) -> Iterator[Update]:
        ours = event.session_key == self._key
        match event.WhichOneof("payload"):
            case "message_completed" if ours and event.message_completed.kind in (
                event_pb.MESSAGE_KIND_REPLY,
                event_pb.MESSAGE_KIND_INTERIM,
            ):
                yield from self._whole(event.message_completed.message)
            case "child_spawned":
                yield from self._spawned(event.child_spawned)
            case "child_announced":
                yield self._announced(event.child_announced.announcement.result)
            case "tool_call_started" if event.tool_call_started.tool_name not in _SPAWNING:
                yield from self._began(event, ours)
            case "tool_call_ended":
                yield from self._ended(event)
            case "harness_updated":
                yield from self._harness(event, ours)
            case "note_added" if event.note_added.visible:
                yield update_agent_thought_text(event.note_added.text)

    def _spawned(self, child: event_pb.ChildSpawned) -> Iterator[Update]:
        if child.child_run_id not in self._begun:
            self._begun.add(child.child_run_id)
            who = "coding agent" if child.queue == "acp" else "sub-agent"
            title = f"{who}: {child.label}" if child.label else who
            yield start_tool_call(child.child_run_id, title, kind="think", status="in_progress")

    def _announced(self, child: announcement_pb.ChildResult) -> Update:
        good = child.status == run_pb.RUN_STATE_SUCCEEDED
        words = child.text if good else child.error.message or child.text
        return update_tool_call(
            child.run_id,
            status="completed" if good else "failed",
            content=[tool_content(text_block(words))] if words else None,
        )

    def _began(self, event: event_pb.Event, ours: bool) -> Iterator[Update]:
        if not ours:
            return  # what a child does inside is seen in its own session
        called = event.tool_call_started
        call_id = f"{event.run_id}/{called.tool_call_id}"
        if call_id not in self._begun:
            self._begun.add(call_id)
            yield start_tool_call(
                call_id,
                called.tool_name,
                kind="other",
                status="in_progress",
                raw_input=_plain(called.arguments),
            )

    def _ended(self, event: event_pb.Event) -> Iterator[Update]:
        ended = event.tool_call_ended
        call_id = f"{event.run_id}/{ended.tool_call_id}"
        if call_id in self._begun:
            texts = [part.text for part in ended.output if part.text]
            yield update_tool_call(
                call_id,
                status="failed" if ended.HasField("error") else "completed",
                content=[tool_content(text_block(text)) for text in texts],
            )

    def _harness(self, event: event_pb.Event, ours: bool) -> Iterator[Update]:
        did = event.harness_updated
        match did.WhichOneof("update"):
            case "plan" if ours:
                yield update_plan(
                    plan_entry(entry.content, status=_plan_status(entry.status))
                    for entry in did.plan.entries
                )
            case "thought" if ours:
                yield update_agent_thought_text(did.thought)
            case "tool_call":
                yield self._harness_call(event.run_id, did.tool_call)

    def _harness_call(self, run_id: str, called: event_pb.HarnessToolCall) -> Update:
        call_id = f"{run_id}/{called.tool_call_id}"
        status = _STATUSES.get(called.status, "in_progress")
        locations = [ToolCallLocation(path=path) for path in called.locations]
        if call_id in self._begun:
            return update_tool_call(call_id, title=called.title, status=status, locations=locations)
        self._begun.add(call_id)
        return start_tool_call(
            call_id,
            called.title or "tool",
            kind=_kind(called.tool_kind),
            status=status,
            locations=locations,
        )


def permission(
    question: question_pb.Question,
) -> tuple[ToolCallUpdate, list[PermissionOption]]:
    """Return a question as a client asks its user."""
    call = ToolCallUpdate(
        tool_call_id=question.question_id,
        title=question.title,
        kind=_kind(question.tool_kind),
        status="pending",
        raw_input=_plain(question.arguments),
        locations=[ToolCallLocation(path=path) for path in question.locations],
    )
    options = [
        PermissionOption(
            option_id=option.option_id,
            name=option.name,
            kind=_OPTION_KINDS.get(option.kind, "reject_once"),
        )
        for option in question.options
    ]
    return call, options


def _kind(word: str) -> Kind:
    return cast("Kind", word) if word in _KINDS else "other"


def _plan_status(
    status: event_pb.HarnessItemStatus.ValueType,
) -> Literal["pending", "in_progress", "completed"]:
    word = _STATUSES.get(status, "pending")
    return "completed" if word == "failed" else word


def _plain(arguments: struct_pb2.Struct) -> dict[str, Any]:
    return MessageToDict(arguments)
