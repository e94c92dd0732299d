"""Short ways to build what a gateway streams."""

from __future__ import annotations

from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import announcement_pb2, run_pb2, scheduler_service_pb2

SESSION = "agent:main:cli:direct:me"


def message(text: str, message_id: str = "m") -> content_pb2.Message:
    return content_pb2.Message(
        message_id=message_id,
        role=content_pb2.ROLE_AGENT,
        parts=[content_pb2.ContentPart(text=text)],
    )


def accepted(run_id: str = "R", token: str = "t0") -> gateway_pb.ChatResponse:
    run = run_pb2.Run(run_id=run_id, state=run_pb2.RUN_STATE_QUEUED)
    run.spec.session_key = SESSION
    return gateway_pb.ChatResponse(
        accepted=scheduler_service_pb2.AcceptedRun(run=run), resume_token=token
    )


def announced(label: str, sequence: int) -> gateway_pb.ChatResponse:
    announcement = announcement_pb2.Announcement(
        announcement_id=label,
        result=announcement_pb2.ChildResult(
            run_id=label, label=label, status=run_pb2.RUN_STATE_SUCCEEDED, text=f"{label} done"
        ),
    )
    return gateway_pb.ChatResponse(
        event=event_pb2.Event(
            session_key=SESSION,
            sequence=sequence,
            run_id="R",
            child_announced=event_pb2.ChildAnnounced(announcement=announcement),
        ),
        resume_token=f"t{sequence}",
    )


def replied(text: str, sequence: int) -> gateway_pb.ChatResponse:
    completed = event_pb2.MessageCompleted(message=message(text), kind=event_pb2.MESSAGE_KIND_REPLY)
    return gateway_pb.ChatResponse(
        event=event_pb2.Event(
            session_key=SESSION, sequence=sequence, run_id="R", message_completed=completed
        ),
        resume_token=f"t{sequence}",
    )


def ended(
    state: run_pb2.RunState.ValueType = run_pb2.RUN_STATE_SUCCEEDED, error: str = ""
) -> gateway_pb.ChatResponse:
    run = run_pb2.Run(run_id="R", state=state)
    run.spawn.flow_id = "R"
    if error:
        run.error.message = error
    return gateway_pb.ChatResponse(ended=run)
