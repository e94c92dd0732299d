"""Between the contract's messages and ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from agent_svc.domain import approval
from agent_svc.domain import steps as s
from agent_svc.domain.content import Input, Message, Part, Role, excerpt
from agent_svc.domain.guard.ladder import Taken, outcomes
from agent_svc.domain.reconcile import EndState
from conveyor.agent.v1 import task_pb2 as task_pb
from conveyor.common.v1 import content_pb2, question_pb2, usage_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import announcement_pb2 as ann
from conveyor.scheduler.v1 import run_pb2
from svckit.content import arguments_struct

TITLE_CHARS = 256

_ROLES: dict[content_pb2.Role.ValueType, Role] = {
    content_pb2.ROLE_USER: "user",
    content_pb2.ROLE_AGENT: "agent",
    content_pb2.ROLE_SYSTEM: "system",
}
_ROLE_VALUES = {name: value for value, name in _ROLES.items()}
_REASONS: dict[int, s.StartReason] = {
    ann.RESUME_REASON_CHILDREN_SETTLED: "children_settled",
    ann.RESUME_REASON_CHILD_UNTOLD: "child_untold",
    ann.RESUME_REASON_ANSWERED: "answered",
    ann.RESUME_REASON_LIMIT_GRANTED: "limit_granted",
    ann.RESUME_REASON_TIMED_OUT: "timed_out",
    ann.RESUME_REASON_STEERED: "steered",
}
END_STATES: dict[int, EndState] = {
    run_pb2.RUN_STATE_SUCCEEDED: "succeeded",
    run_pb2.RUN_STATE_FAILED: "failed",
    run_pb2.RUN_STATE_CANCELLED: "cancelled",
    run_pb2.RUN_STATE_EXPIRED: "expired",
}
_OPTION_KINDS = {
    "allow_once": question_pb2.QUESTION_OPTION_KIND_ALLOW_ONCE,
    "allow_always": question_pb2.QUESTION_OPTION_KIND_ALLOW_ALWAYS,
    "reject_once": question_pb2.QUESTION_OPTION_KIND_REJECT_ONCE,
    "reject_always": question_pb2.QUESTION_OPTION_KIND_REJECT_ALWAYS,
}
GUARD_EXCERPT = 512
_TRIGGERS: dict[s.GuardTrigger, event_pb2.GuardTrigger.ValueType] = {
    "ignored_instruction": event_pb2.GUARD_TRIGGER_IGNORED_INSTRUCTION,
    "textual_call": event_pb2.GUARD_TRIGGER_TEXTUAL_CALL,
    "false_claim": event_pb2.GUARD_TRIGGER_FALSE_CLAIM,
    "invented_result": event_pb2.GUARD_TRIGGER_INVENTED_RESULT,
}
_GUARD_STEPS: dict[s.GuardStep, event_pb2.GuardStep.ValueType] = {
    "parse_call": event_pb2.GUARD_STEP_PARSE_CALL,
    "insist": event_pb2.GUARD_STEP_INSIST,
    "force_tool": event_pb2.GUARD_STEP_FORCE_TOOL,
    "fall_back_model": event_pb2.GUARD_STEP_FALL_BACK_MODEL,
    "deliver_with_note": event_pb2.GUARD_STEP_DELIVER_WITH_NOTE,
}
_STOP_REASONS = {
    "end_turn": task_pb.STOP_REASON_END_TURN,
    "max_tokens": task_pb.STOP_REASON_MAX_TOKENS,
    "refusal": task_pb.STOP_REASON_REFUSAL,
}


def message_from_proto(message: content_pb2.Message) -> Message:
    """Read a message."""
    parts = tuple(_part(part) for part in message.parts)
    role = _ROLES.get(message.role, "user")
    return Message(message.message_id, role, parts, message.create_time.ToMicroseconds())


def message_to_proto(message: Message) -> content_pb2.Message:
    """Write a message as it was stored."""
    out = content_pb2.Message(message_id=message.message_id, role=_ROLE_VALUES[message.role])
    for part in message.parts:
        if part.data:
            out.parts.add(blob=content_pb2.Blob(media_type=part.media_type, data=part.data))
        elif part.uri:
            out.parts.add(resource=content_pb2.Resource(uri=part.uri, media_type=part.media_type))
        else:
            out.parts.add(text=part.text)
    if message.create_us:
        out.create_time.FromMicroseconds(message.create_us)
    return out


def inputs_from_proto(inputs: Iterable[run_pb2.RunInput]) -> tuple[Input, ...]:
    """Read the messages among some inputs; answers to questions are left out."""
    return tuple(
        Input(
            item.request_id,
            msgspec.structs.replace(
                message_from_proto(item.message), create_us=item.create_time.ToMicroseconds()
            ),
        )
        for item in inputs
        if item.HasField("message")
    )


def began_from_proto(resumption: ann.Resumption | None) -> s.Began:
    """Read why a turn began. The store adds what it alone knows."""
    if resumption is None:
        return s.Began("first")
    return s.Began(
        reason=_REASONS.get(resumption.reason, "children_settled"),
        lane_released=resumption.lane_released,
        told=tuple(_told(child) for child in resumption.children),
        answers=tuple(
            s.Answer(answer.question_id, answer.option_id, answer.responder)
            for answer in resumption.answers
        ),
    )


def result_details(steps: Sequence[s.Step], last: s.Replied) -> task_pb.AgentResult:
    """Sum up a run for `RunResult.details`."""
    replies = [step.record for step in steps if isinstance(step.record, s.Replied)]
    calls = sum(not reply.ordered for reply in replies)
    guarded = list(outcomes(steps, ended=True))
    return task_pb.AgentResult(
        stop_reason=_STOP_REASONS[last.stop_reason],
        steps=calls,
        requested_model=last.requested_model,
        effective_model=last.effective_model,
        guard_steps=len(guarded),
        interventions=[guard_to_proto(taken) for taken in guarded],
    )


def guard_to_proto(taken: Taken) -> event_pb2.GuardIntervened:
    """Write what the delegation guard did."""
    return event_pb2.GuardIntervened(
        trigger=_TRIGGERS[taken.record.trigger],
        step=_GUARD_STEPS[taken.record.step],
        resolved=taken.resolved,
        model=taken.record.model,
        excerpt=taken.record.excerpt[:GUARD_EXCERPT],
    )


def question(
    run_id: str, call: s.ToolCall, kind: str, timeout_seconds: float
) -> question_pb2.Question:
    """Write the question whether a tool call may run."""
    asks = f"Use {call.name}"
    if call.arguments.strip() not in ("", "{}"):
        asks += f" with {call.arguments}"
    out = question_pb2.Question(
        question_id=approval.question_id(run_id, call.id),
        title=excerpt(asks, TITLE_CHARS),
        tool_kind=kind,
        arguments=arguments_struct(call.arguments),
        options=[
            question_pb2.QuestionOption(
                option_id=option.option_id, name=option.name, kind=_OPTION_KINDS[option.kind]
            )
            for option in approval.OPTIONS
        ],
        default_option_id=approval.DEFAULT_OPTION,
    )
    out.timeout.FromMilliseconds(round(timeout_seconds * 1000))
    return out


def usage_to_proto(usage: s.Usage) -> usage_pb2.Usage:
    """Write the usage of one model call."""
    return usage_pb2.Usage(
        model_calls=1,
        input_tokens=usage.read,
        cached_input_tokens=usage.cached,
        output_tokens=usage.written,
        cost_micros_usd=usage.cost or 0,
        unpriced_calls=1 if usage.cost is None else 0,
    )


def _part(part: content_pb2.ContentPart) -> Part:
    kind = part.WhichOneof("part")
    if kind == "blob":
        return Part(media_type=part.blob.media_type, data=part.blob.data)
    if kind == "resource":
        return Part(media_type=part.resource.media_type, uri=part.resource.uri)
    return Part(text=part.text)


def _told(child: ann.ChildResult) -> s.ToldChild:
    usage = child.usage
    return s.ToldChild(
        run_id=child.run_id,
        call_id=child.tool_call_id,
        status=END_STATES.get(child.status, "live"),
        label=child.label,
        text=child.text,
        truncated=child.text_truncated,
        error=child.error.message if child.HasField("error") else "",
        tokens=usage.input_tokens + usage.output_tokens,
        duration_ms=child.duration.ToMilliseconds(),
        cost=usage.cost_micros_usd,
        unpriced=usage.unpriced_calls > 0,
        trace_id=child.trace_id,
        model=child.effective_model,
        asked_model=child.requested_model,
    )
