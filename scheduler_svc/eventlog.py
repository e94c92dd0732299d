"""What the rules emitted, as events of the contract, ready to be stored."""

from __future__ import annotations

from collections.abc import Mapping

from conveyor.common.v1 import content_pb2, question_pb2, trace_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import announcement_pb2, run_pb2
from scheduler_svc import spans
from scheduler_svc.domain import emits
from scheduler_svc.domain.emits import Emit
from scheduler_svc.domain.questions import QuestionState
from scheduler_svc.domain.records import Run
from scheduler_svc.rpc import convert
from scheduler_svc.store.base import EventRow, StoredRun


def event_row(emit: Emit, children: Mapping[str, StoredRun], runs: Mapping[str, Run]) -> EventRow:
    """A numbered event. `children` are the runs whose end is announced, `runs` those that speak."""
    payload = emit.payload
    event = event_pb2.Event()
    event_id = None
    if isinstance(payload, emits.Appended):
        event.ParseFromString(payload.event)
        event_id = payload.event_id
        if isinstance(payload, emits.Asked):
            convert.fill_question(event.question_asked.question, payload.question)
    else:
        event.event_id = f"s-{emit.sequence}"
        _fill(event, emit, children)
        # What is delivered belongs into the tree: below the turn that said it, or the announcement.
        if isinstance(payload, emits.Replied):
            event.trace.traceparent = spans.last_turn(runs[emit.run_id])
        elif isinstance(payload, emits.ChildAnnounced):
            event.trace.traceparent = spans.announcement(children[payload.child_id].run)
    event.session_key, event.sequence, event.position = (
        emit.session_key,
        emit.sequence,
        emit.position,
    )
    event.create_time.FromMicroseconds(emit.time)
    event.run_id, event.flow_id = emit.run_id, emit.flow_id
    event.turn, event.attempt = emit.turn, emit.attempt
    return EventRow(
        position=emit.position,
        session_key=emit.session_key,
        sequence=emit.sequence,
        run_id=emit.run_id,
        flow_id=emit.flow_id,
        kind=event.WhichOneof("payload") or "",
        event_id=event_id,
        data=event.SerializeToString(),
    )


def announced(emit: Emit) -> str:
    """The child whose end the entry announces; empty for other entries."""
    return emit.payload.child_id if isinstance(emit.payload, emits.ChildAnnounced) else ""


def _fill(event: event_pb2.Event, emit: Emit, children: Mapping[str, StoredRun]) -> None:
    match emit.payload:
        case emits.StateChanged() as change:
            _state_changed(event.run_state_changed, change)
        case emits.InputAccepted(message):
            _message(event, message, event_pb2.MESSAGE_KIND_INPUT, emit.time)
        case emits.Replied(message, interim):
            kind = event_pb2.MESSAGE_KIND_INTERIM if interim else event_pb2.MESSAGE_KIND_REPLY
            _message(event, message, kind, emit.time)
        case emits.ChildSpawned() as spawned:
            event.child_spawned.CopyFrom(
                event_pb2.ChildSpawned(
                    child_run_id=spawned.child_id,
                    child_session_key=spawned.child_session,
                    tool_call_id=spawned.tool_call_id,
                    label=spawned.label,
                    queue=spawned.queue,
                )
            )
        case emits.ChildAnnounced(child_id, live_siblings, of_parent):
            child = children[child_id]
            event.child_announced.announcement.CopyFrom(
                announcement_pb2.Announcement(
                    announcement_id=child_id,
                    session_key=emit.session_key,
                    parent_run_id=emit.run_id,
                    flow_id=emit.flow_id,
                    result=convert.child_result(child.run, child.payload, child.result),
                    live_siblings=live_siblings,
                    children=of_parent,
                    create_time=convert.timestamp(emit.time),
                    trace=trace_pb2.TraceContext(traceparent=spans.announcement(child.run)),
                )
            )
        case emits.Steered(request_id, missed, fallback_run_id):
            if missed:
                event.steer_missed.request_id = request_id
                event.steer_missed.fallback_run_id = fallback_run_id
            else:
                event.steer_accepted.request_id = request_id
        case emits.Noted(code, text):
            event.note_added.level = event_pb2.NOTE_LEVEL_WARNING
            event.note_added.code, event.note_added.text = code, text
            event.note_added.visible = True
        case emits.UsageReported(requested, effective, used):
            event.usage_reported.requested_model = requested
            event.usage_reported.effective_model = effective
            event.usage_reported.usage.CopyFrom(convert.usage(used))
        case emits.QuestionClosed() as closed:
            event.question_closed.CopyFrom(
                event_pb2.QuestionClosed(
                    state=question_pb2.QuestionState.ValueType(int(closed.state)),
                    title=closed.title,
                    number=closed.number,
                    option_name=closed.option_name,
                    answer=convert.answer(
                        closed.question_id,
                        closed.option_id,
                        closed.responder,
                        0 if closed.state is QuestionState.CANCELLED else emit.time,
                    ),
                )
            )
        case emits.Appended():
            raise AssertionError("handled by the caller")


def _state_changed(message: event_pb2.RunStateChanged, change: emits.StateChanged) -> None:
    message.previous_state = run_pb2.RunState.ValueType(int(change.previous))
    message.state = run_pb2.RunState.ValueType(int(change.state))
    message.turn, message.attempt = change.turn, change.attempt
    message.cause = change.cause
    if change.wait is not None:
        message.suspension.CopyFrom(convert.suspension(change.wait, holds_lane=change.holds_lane))
    if change.resume_reason is not None:
        message.resume_reason = announcement_pb2.ResumeReason.ValueType(int(change.resume_reason))
    if change.failure is not None:
        message.error.CopyFrom(convert.status_of(change.failure))


def _message(
    event: event_pb2.Event, data: bytes, kind: event_pb2.MessageKind.ValueType, time: int
) -> None:
    message = content_pb2.Message.FromString(data)
    message.create_time.FromMicroseconds(time)
    event.message_completed.message.CopyFrom(message)
    event.message_completed.kind = kind
