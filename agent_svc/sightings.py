"""Runs and events of the contract, as the session tools show them."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import json_format

from agent_svc.domain.family import Member, State
from agent_svc.domain.session_texts import Entry
from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2

MESSAGE_KINDS = ("message_completed",)
TOOL_KINDS = ("tool_call_started", "tool_call_ended")
LOG_KINDS = (
    *MESSAGE_KINDS,
    *TOOL_KINDS,
    "run_state_changed",
    "child_spawned",
    "child_announced",
    "note_added",
)

_STATES: dict[int, State] = {
    run_pb2.RUN_STATE_QUEUED: "queued",
    run_pb2.RUN_STATE_RUNNING: "working",
    run_pb2.RUN_STATE_SUSPENDED: "waiting",
    run_pb2.RUN_STATE_CANCELLING: "stopping",
    run_pb2.RUN_STATE_SUCCEEDED: "succeeded",
    run_pb2.RUN_STATE_FAILED: "failed",
    run_pb2.RUN_STATE_CANCELLED: "cancelled",
    run_pb2.RUN_STATE_EXPIRED: "expired",
}
_WAITS = {"children": "its sub-agents", "approval": "a person's answer", "limit": "a limit"}
_SPEAKERS = {
    event_pb2.MESSAGE_KIND_INPUT: "asked",
    event_pb2.MESSAGE_KIND_REPLY: "replied",
    event_pb2.MESSAGE_KIND_INTERIM: "said meanwhile",
    event_pb2.MESSAGE_KIND_INTERNAL: "said",
}


def member(run: run_pb2.Run) -> Member:
    """A run, in full or as lists show it."""
    own, tree = run.usage, run.tree_usage
    # What is compared when times are estimated: agent and model, as whoever enqueued it wrote them.
    agent_id, _, model = run.spec.estimate_key.partition("/")
    if run.spec.queue == "acp":  # a harness brings its own model
        agent_id, model = model, ""
    condition = run.suspension.condition.WhichOneof("condition")
    return Member(
        run_id=run.run_id,
        session_key=run.spec.session_key,
        customer_key=run.spec.customer_key,
        parent_id=run.spawn.parent_run_id,
        flow_id=run.spawn.flow_id or run.run_id,
        label=run.spec.label,
        queue=run.spec.queue,
        agent_id=agent_id,
        state=_STATES.get(run.state, "queued"),
        epoch=run.spec.session_epoch,
        depth=run.spawn.depth,
        turn=run.turn,
        requested_model=run.requested_model or model,
        effective_model=run.effective_model,
        tokens=own.input_tokens + own.output_tokens,
        tree_tokens=tree.input_tokens + tree.output_tokens,
        cost=tree.cost_micros_usd,
        unpriced=tree.unpriced_calls > 0,
        create_us=run.timing.create_time.ToMicroseconds(),
        start_us=run.timing.start_time.ToMicroseconds(),
        end_us=run.timing.end_time.ToMicroseconds(),
        waits_for=_WAITS.get(condition or "", "") if run.HasField("suspension") else "",
        error=run.error.message,
        trace_id=_trace_id(run.trace.traceparent),
    )


def asked_and_said(run: run_pb2.Run) -> tuple[str, str]:
    """What a run was asked, and what it replied so far."""
    asked = "\n\n".join(_text(item.message) for item in run.inputs if item.HasField("message"))
    return asked, _text(run.result.reply)


def entries(events: Iterable[event_pb2.Event]) -> list[Entry]:
    """What happened in a session, in its order. Kinds that say nothing to a model are left out."""
    found: list[Entry] = []
    names: dict[str, str] = {}
    for event in events:
        at = event.create_time.ToMicroseconds()
        kind = event.WhichOneof("payload")
        if kind == "message_completed":
            told = event.message_completed
            if told.caught:
                continue  # kept from the customer, and no model should take it for true
            found.append(Entry(at, _SPEAKERS.get(told.kind, "said"), _text(told.message)))
        elif kind == "tool_call_started":
            started = event.tool_call_started
            names[started.tool_call_id] = started.tool_name
            given = json_format.MessageToJson(
                started.arguments, indent=None, ensure_ascii=False, sort_keys=True
            )
            found.append(Entry(at, f"called {started.tool_name}", given, "tool"))
        elif kind == "tool_call_ended":
            ended = event.tool_call_ended
            name = names.get(ended.tool_call_id, ended.tool_call_id)
            text = "\n".join(part.text for part in ended.output) or ended.error.message
            how = "failed" if ended.HasField("error") else "answered"
            found.append(Entry(at, f"{name} {how}", text, "tool"))
        elif kind == "run_state_changed":
            change = event.run_state_changed
            words = _STATES.get(change.state, "queued")
            found.append(Entry(at, "is", f"{words} {change.cause}".strip(), "state"))
        elif kind == "child_spawned":
            found.append(Entry(at, "started", event.child_spawned.label, "state"))
        elif kind == "child_announced":
            result = event.child_announced.announcement.result
            words = _STATES.get(result.status, "queued")
            found.append(Entry(at, f"learnt that «{result.label}»", words, "state"))
        elif kind == "note_added":
            found.append(Entry(at, "note", event.note_added.text, "state"))
    return found


def _text(message: content_pb2.Message) -> str:
    return "\n\n".join(part.text for part in message.parts if part.text)


def _trace_id(traceparent: str) -> str:
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else ""
