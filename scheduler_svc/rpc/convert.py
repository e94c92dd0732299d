"""Records to messages of the contract. Total: every field the scheduler knows is filled in."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from conveyor.common.v1 import question_pb2, usage_pb2
from conveyor.scheduler.v1 import (
    announcement_pb2,
    flow_service_pb2,
    lane_pb2,
    limit_service_pb2,
    run_pb2,
)
from conveyor.scheduler.v1 import worker_service_pb2 as worker_pb2
from scheduler_svc.domain.lanes import GlobalLane
from scheduler_svc.domain.leasing import LeaseStatus
from scheduler_svc.domain.questions import Question, QuestionState
from scheduler_svc.domain.records import (
    Answer,
    Failure,
    Lease,
    PreviousRun,
    Resumption,
    Run,
    RunState,
    Usage,
    Wait,
    WaitKind,
)
from scheduler_svc.domain.reserving import Grant
from scheduler_svc.store.base import FlowFigures, StoredQuestion, StoredRun
from svckit.errors import BY_REASON, Internal
from svckit.grpc import status as grpc_status

CHILD_TEXT_BYTES = 32 * 1024
# What all children together may say to one turn, so that a lease can be received.
CHILDREN_TEXT_BYTES = 1024 * 1024


def timestamp(us: int) -> Timestamp | None:
    """A time; `None` for 0, which leaves the field unset."""
    if not us:
        return None
    value = Timestamp()
    value.FromMicroseconds(us)
    return value


def duration(us: int) -> Duration:
    """A span of time, 0 included."""
    value = Duration()
    value.FromMicroseconds(us)
    return value


def optional_duration(us: int) -> Duration | None:
    """A limit; `None` for 0, which means that there is none."""
    return duration(us) if us else None


def usage(value: Usage) -> usage_pb2.Usage:
    """Totals of model calls."""
    return usage_pb2.Usage(
        model_calls=value.model_calls,
        input_tokens=value.input_tokens,
        cached_input_tokens=value.cached_input_tokens,
        output_tokens=value.output_tokens,
        cost_micros_usd=value.cost_micros_usd,
        unpriced_calls=value.unpriced_calls,
    )


def status_of(failure: Failure) -> status_pb2.Status:
    """A stored failure. What a worker reported comes back as it was."""
    reported = status_pb2.Status.FromString(failure.status) if failure.status else None
    if reported is not None and failure.reason != "ATTEMPTS_EXHAUSTED":
        return reported
    error = BY_REASON.get(failure.reason, Internal)(failure.message, metadata=failure.metadata)
    status = grpc_status.to_proto(error)
    if reported is not None:  # the last attempt's own words, beside the scheduler's
        status.details.add().Pack(reported)
    return status


def wait_condition(wait: Wait) -> run_pb2.WaitCondition:
    """What a suspended run waits for."""
    if wait.kind is WaitKind.CHILDREN:
        return run_pb2.WaitCondition(
            children=run_pb2.ChildrenWait(
                run_ids=wait.run_ids, mode=run_pb2.AnnounceMode.ValueType(int(wait.mode))
            )
        )
    if wait.kind is WaitKind.APPROVAL:
        return run_pb2.WaitCondition(approval=run_pb2.ApprovalWait(question_ids=wait.question_ids))
    limit = run_pb2.LimitWait(name=wait.name)
    if wait.reservation:
        limit.reservation_id = wait.reservation
    return run_pb2.WaitCondition(limit=limit)


def suspension(wait: Wait, *, holds_lane: bool) -> run_pb2.Suspension:
    """How a suspended run waits."""
    return run_pb2.Suspension(
        condition=wait_condition(wait),
        holds_session_lane=holds_lane,
        yield_time=timestamp(wait.yield_time),
        expire_time=timestamp(wait.expire_time),
        lease_worker=wait.lease_worker,
    )


def run_message(
    run: Run, payload: bytes, result: bytes | None = None, *, brief: bool = False
) -> run_pb2.Run:
    """A run. `payload` is what was asked for; `brief` leaves out task, inputs and result."""
    # Filled in place: a message given to a constructor is copied, which costs more than all the
    # rest, and every call of a turn answers with its run.
    message = run_pb2.Run.FromString(payload)
    if brief:
        message.spec.ClearField("task")
        message.ClearField("inputs")
    elif result is not None:
        message.result.ParseFromString(result)
    message.run_id, message.turn, message.attempt = run.run_id, run.turn, run.attempt
    message.state = run_pb2.RunState.ValueType(int(run.state))
    _fill_spec(message.spec, run)
    _fill_spawn(message.spawn, run)
    _fill_timing(message.timing, run)
    if run.wait and run.state is RunState.SUSPENDED:
        message.suspension.CopyFrom(suspension(run.wait, holds_lane=run.holds_lane))
    if run.failure:
        message.error.CopyFrom(status_of(run.failure))
    message.usage.CopyFrom(usage(run.usage))
    message.tree_usage.CopyFrom(usage(run.tree_usage))
    message.worker = run.held.worker if run.held else ""
    message.cancel_reason, message.interim_sent = run.cancel_reason, run.interim_sent
    message.requested_model, message.effective_model = run.requested_model, run.effective_model
    for did in run.guard:
        message.guard.add(
            trigger=did.trigger, step=did.step, model=did.model, resolved=did.resolved
        )
    return message


def outcome_of(payload: bytes, request_id: str) -> lane_pb2.EnqueueOutcome.ValueType:
    """How a message came to the run that holds it: it began it, joined it, or was steered to it."""
    inputs = [entry.request_id for entry in run_pb2.Run.FromString(payload).inputs]
    if request_id not in inputs:
        return lane_pb2.ENQUEUE_OUTCOME_STEERED
    first = inputs[0] == request_id
    return lane_pb2.ENQUEUE_OUTCOME_QUEUED if first else lane_pb2.ENQUEUE_OUTCOME_COLLECTED


def with_inputs(payload: bytes, inputs: list[bytes]) -> bytes:
    """What a run was asked for, with further messages behind those it has."""
    message = run_pb2.Run.FromString(payload)
    for data in inputs:
        message.inputs.add().ParseFromString(data)
    return message.SerializeToString()


def _fill_spec(spec: run_pb2.RunSpec, run: Run) -> None:
    # What the sender left open, as the scheduler decided it.
    spec.session_key, spec.customer_key = run.session_key, run.customer_key
    spec.global_lane, spec.priority = run.lane, run.priority
    spec.run_timeout.FromMicroseconds(run.run_timeout)
    if run.queue_timeout:
        spec.queue_timeout.FromMicroseconds(run.queue_timeout)
    retry = spec.retry_policy
    retry.max_attempts, retry.backoff_multiplier = run.retry.max_attempts, run.retry.multiplier
    retry.initial_backoff.FromMicroseconds(run.retry.initial_backoff)
    retry.max_backoff.FromMicroseconds(run.retry.max_backoff)
    if run.caps.max_depth is not None:
        spec.budget.max_depth = run.caps.max_depth
    if run.caps.max_children is not None:
        spec.budget.max_children = run.caps.max_children
    if run.caps.max_descendants is not None:
        spec.budget.max_descendants = run.caps.max_descendants
    if run.caps.max_tokens is not None:
        spec.budget.max_tokens = run.caps.max_tokens
    if run.caps.max_cost is not None:
        spec.budget.max_cost_micros_usd = run.caps.max_cost
    if run.caps.max_wall is not None:
        spec.budget.max_wall_time.FromMicroseconds(run.caps.max_wall)
    if run.caps.reply_reserve is not None:
        spec.budget.reply_reserve = run.caps.reply_reserve


def _fill_spawn(spawn: run_pb2.SpawnLink, run: Run) -> None:
    spawn.flow_id, spawn.depth = run.flow_id, run.depth
    spawn.parent_run_id, spawn.parent_session_key = run.parent_id, parent_session(run)
    spawn.tool_call_id = run.tool_call_id


def _fill_timing(timing: run_pb2.RunTiming, run: Run) -> None:
    # Clock times and totals; the present state is left out of the totals.
    timing.create_time.FromMicroseconds(run.create_time)
    timing.state_time.FromMicroseconds(run.state_time)
    if run.start_time:
        timing.start_time.FromMicroseconds(run.start_time)
    if run.end_time:
        timing.end_time.FromMicroseconds(run.end_time)
    timing.session_lane_wait.FromMicroseconds(run.session_wait)
    timing.global_lane_wait.FromMicroseconds(run.global_wait)
    timing.suspended.FromMicroseconds(run.suspended)
    timing.executed.FromMicroseconds(run.executed)


def parent_session(run: Run) -> str:
    """The session that gets a child's announcement: its key without the last two parts."""
    return run.session_key.rsplit(":", 2)[0] if run.parent_id else ""


def lease(value: Lease, run: Run, now: int) -> worker_pb2.Lease:
    """A lease, with the time left by the server's clock."""
    return worker_pb2.Lease(
        lease_id=lease_id(run.run_id, value.token),
        run_id=run.run_id,
        turn=run.turn,
        attempt=run.attempt,
        fencing_token=value.token,
        expire_time=timestamp(value.expire_time),
        ttl=duration(max(0, value.expire_time - now)),
    )


def lease_id(run_id: str, token: int) -> str:
    """The id that workers send back. Opaque to them."""
    return f"{run_id}:{token}"


def steered(offers: list[bytes], answers: list[Answer], room: int) -> list[run_pb2.RunInput]:
    """Steered input and answers, oldest first, as much as fits into `room` bytes. The rest is
    offered later."""
    given = [answer_input(value) for value in answers]
    inputs = [*map(run_pb2.RunInput.FromString, offers), *given] if offers else given
    if offers and given:
        inputs.sort(key=lambda entry: entry.create_time.ToMicroseconds())
    found = []
    for entry in inputs:
        room -= entry.ByteSize()
        if room < 0:
            break
        found.append(entry)
    return found


def answer(question_id: str, option_id: str, responder: str, time: int) -> question_pb2.Answer:
    """How a question was closed."""
    return question_pb2.Answer(
        question_id=question_id,
        option_id=option_id,
        responder=responder,
        answer_time=timestamp(time),
    )


def answer_input(value: Answer) -> run_pb2.RunInput:
    """An answer as input of a turn."""
    entry = run_pb2.RunInput(
        request_id=value.request_id,
        answer=answer(value.question_id, value.option_id, value.responder, value.time),
        create_time=timestamp(value.time),
    )
    if value.trace:
        entry.trace.ParseFromString(value.trace)
    return entry


def fill_question(message: question_pb2.Question, asked: Question) -> None:
    """Fills in what the scheduler gave to a question when it was stored."""
    message.session_key, message.customer_key = asked.session_key, asked.customer_key
    message.run_id, message.flow_id = asked.run_id, asked.flow_id
    message.root_session_key, message.number = asked.root_session_key, asked.number
    message.timeout.FromMicroseconds(asked.timeout)
    message.state = question_pb2.QUESTION_STATE_OPEN
    message.create_time.FromMicroseconds(asked.create_time)
    message.expire_time.FromMicroseconds(asked.expire_time)


def question(stored: StoredQuestion) -> question_pb2.Question:
    """A question as it is now."""
    message, now = question_pb2.Question.FromString(stored.data), stored.question
    fill_question(message, now)
    message.state = question_pb2.QuestionState.ValueType(int(now.state))
    if now.state in (QuestionState.ANSWERED, QuestionState.EXPIRED):
        message.answer.CopyFrom(
            answer(now.question_id, now.option_id, now.responder, now.close_time)
        )
    return message


def lease_status(value: LeaseStatus, now: int, room: int) -> worker_pb2.LeaseStatus:
    """What a worker learns about one lease, with steered input of at most `room` bytes."""
    if value.lease is None or value.run is None:
        return worker_pb2.LeaseStatus(lost=True)
    return worker_pb2.LeaseStatus(
        lease=lease(value.lease, value.run, now),
        cancel_requested=value.cancel_requested,
        cancel_reason=value.cancel_reason,
        steered=steered(value.steered, value.answers, room),
    )


def child_result(
    child: Run, payload: bytes, result: bytes | None, most: int = CHILD_TEXT_BYTES
) -> announcement_pb2.ChildResult:
    """How a child ended, or where it is. The text is the child's own, untrusted, cut to `most`."""
    text = ""
    if result is not None:
        reply = run_pb2.RunResult.FromString(result).reply
        text = "\n".join(part.text for part in reply.parts if part.HasField("text"))
    data = text.encode()
    # Of a run that an earlier release accepted, only the payload knows.
    trace = child.trace or run_pb2.Run.FromString(payload).trace.traceparent
    return announcement_pb2.ChildResult(
        run_id=child.run_id,
        session_key=child.session_key,
        tool_call_id=child.tool_call_id,
        label=child.label,
        status=run_pb2.RunState.ValueType(int(child.state)),
        text=data[:most].decode(errors="ignore"),
        text_truncated=len(data) > most,
        usage=usage(child.tree_usage),
        duration=duration(child.end_time - child.start_time)
        if child.start_time and child.end_time
        else None,
        trace_id=trace_id(trace),
        error=status_of(child.failure) if child.failure else None,
        requested_model=child.requested_model,
        effective_model=child.effective_model,
    )


def trace_id(traceparent: str) -> str:
    """The trace id of a `traceparent`; empty when not traced."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else ""


def reserve_grant(value: Grant) -> limit_service_pb2.ReserveGrant:
    """A reserved model call."""
    return limit_service_pb2.ReserveGrant(
        reservation_id=value.reservation_id,
        delay=optional_duration(value.delay),
        reserved_time=timestamp(value.time),
        limit=value.limit,
        expire_time=timestamp(value.expire_time),
    )


def resumption(
    value: Resumption, children: dict[str, StoredRun], grant: Grant | None = None
) -> announcement_pb2.Resumption:
    """What a resumed turn starts with. `children` holds every run that it names."""
    named = [children[child] for child in (*value.told, *value.live) if child in children]
    most = min(CHILD_TEXT_BYTES, CHILDREN_TEXT_BYTES // max(1, len(named)))
    return announcement_pb2.Resumption(
        reason=announcement_pb2.ResumeReason.ValueType(int(value.reason)),
        condition=wait_condition(value.wait) if value.wait else None,
        children=[child_result(c.run, c.payload, c.result, most) for c in named],
        answers=[
            answer(told.question_id, told.option_id, told.responder, told.time)
            for told in value.answers
        ],
        lane_released=value.lane_released,
        grant=reserve_grant(grant) if grant is not None else None,
    )


def previous_run(value: PreviousRun) -> worker_pb2.PreviousRun:
    """How an earlier run of the session ended."""
    return worker_pb2.PreviousRun(
        run_id=value.run_id, state=run_pb2.RunState.ValueType(int(value.state)), turn=value.turn
    )


def global_lane(lane: GlobalLane, oldest: int) -> lane_pb2.Lane:
    """A global lane. `oldest` is when its longest waiting run became ready."""
    customers = set[str]().union(*(queue.customers() for queue in lane.ready.values()))
    return lane_pb2.Lane(
        kind=lane_pb2.LANE_KIND_GLOBAL,
        name=lane.name,
        limit=lane.limit,
        configured_limit=lane.configured,
        running=lane.running,
        suspended=lane.suspended,
        waiting=lane.waiting,
        waiting_customers=len(customers),
        oldest_waiting_time=timestamp(oldest),
    )


def flow(root: StoredRun, figures: FlowFigures) -> flow_service_pb2.Flow:
    """A whole spawn tree, by its root."""
    run = root.run
    message = run_message(run, root.payload, brief=True)
    return flow_service_pb2.Flow(
        flow_id=run.run_id,
        state=message.state,
        session_key=run.session_key,
        customer_key=run.customer_key,
        label=run.label,
        timing=message.timing,
        state_counts=[
            flow_service_pb2.StateCount(state=run_pb2.RunState.ValueType(int(s)), runs=count)
            for s, count in sorted(figures.states.items())
        ],
        depth=figures.depth,
        budget=message.spec.budget,
        usage=message.tree_usage,
        error=message.error if message.HasField("error") else None,
        trace_id=trace_id(message.trace.traceparent),
    )
