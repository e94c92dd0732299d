"""What a request may say. Every refusal names the field and the fix."""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as ProtoMessage

from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_svc.domain.records import SECOND, Caps, NewRun, QueueMode, RetryPolicy
from svckit.errors import PayloadTooLarge, invalid_field
from svckit.ids import new_ulid

KIB, MIB = 1024, 1024 * 1024
# A child's key grows with its depth: its parent's, and the kind and id of the child.
CHILD_KEY_LENGTH = 1024
# How long a collected message waits for another one, unless its sender says.
DEBOUNCE = 1 * SECOND
QUEUES = ("agent", "acp")
# A budget above this is a mistake: so many tokens, or millionths of a US dollar.
MOST_SPENT = 10**15
_PRINTABLE = re.compile(r"[^\x00-\x20\x7f]+")


def text(value: str, field: str, most: int, *, required: bool = True) -> str:
    """A key or an id: printable, no spaces, 1 to `most` characters."""
    if not value:
        if required:
            raise invalid_field(field, "is required")
        return value
    if len(value) > most or not _PRINTABLE.fullmatch(value):
        raise invalid_field(field, f"must be 1 to {most} printable characters without spaces")
    return value


def size(message: ProtoMessage | bytes, field: str, most: int) -> None:
    """Raises `PayloadTooLarge` above `most` bytes."""
    count = len(message) if isinstance(message, bytes) else message.ByteSize()
    if count > most:
        raise PayloadTooLarge(
            f"{field} has {count} bytes; at most {most} are allowed",
            metadata={"field": field, "bytes": str(count), "maxBytes": str(most)},
        )


def micros(value: Duration, field: str, *, least: int = 0, most: float = 366 * 86400) -> int:
    """A span of time in microseconds."""
    if not least and not value.seconds and not value.nanos:
        return 0  # most are not given
    try:
        span: timedelta = value.ToTimedelta()
    except (ValueError, OverflowError):
        raise invalid_field(field, "is no valid duration") from None
    if not least <= span.total_seconds() <= most:
        raise invalid_field(field, f"must be {least} to {most:g} seconds")
    return value.ToMicroseconds()


def user_message(message: content_pb2.Message, field: str) -> None:
    """A message as the contract allows it."""
    text(message.message_id, f"{field}.message_id", 64)
    if message.role == content_pb2.ROLE_UNSPECIFIED:
        raise invalid_field(f"{field}.role", "is required")
    if not 1 <= len(message.parts) <= 32:
        raise invalid_field(f"{field}.parts", "must hold 1 to 32 parts")
    for index, part in enumerate(message.parts):
        where = f"{field}.parts[{index}]"
        match part.WhichOneof("part"):
            case None:
                raise invalid_field(where, "must hold text, blob or resource")
            case "text":
                size(part.text.encode(), f"{where}.text", 256 * KIB)
            case "blob":
                text(part.blob.media_type, f"{where}.blob.media_type", 256)
                size(part.blob.data, f"{where}.blob.data", MIB)
            case _:
                text(part.resource.uri, f"{where}.resource.uri", 4096)
    size(message, field, MIB)


def body_hash(*parts: str | ProtoMessage) -> bytes:
    """What the sender said: a repeated `request_id` must come with the same."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else _deterministic(part)
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def digest(message: ProtoMessage) -> str:
    """A short fingerprint of a request."""
    return hashlib.sha256(_deterministic(message)).hexdigest()[:32]


def _deterministic(message: ProtoMessage) -> bytes:
    return message.SerializeToString(deterministic=True)


def lease_id(value: str, field: str = "lease_id") -> tuple[str, int]:
    """(run id, fencing token) of a lease id."""
    run_id, _, token = value.rpartition(":")
    if not run_id or not token.isdigit() or len(token) > 18:
        raise invalid_field(field, "is no lease id; send back the one that LeaseRuns gave")
    return run_id, int(token)


def enqueue_item(item: pb.EnqueueItem, now: int, defaults: NewRunDefaults) -> NewRun:
    """One message or child run, checked, with every default filled in."""
    spec, policy = item.spec, item.queue_policy
    child = bool(item.parent_lease_id)
    mode = QueueMode.FOLLOWUP
    text(item.request_id, "request_id", 128)
    user_message(item.message, "message")
    if child:
        text(item.tool_call_id, "tool_call_id", 64)
        if spec.session_key:
            raise invalid_field("spec.session_key", "must be empty for a child run")
    else:
        text(spec.session_key, "spec.session_key", 256)
        if item.tool_call_id:
            raise invalid_field("tool_call_id", "needs parent_lease_id")
    if spec.queue not in QUEUES:
        raise invalid_field("spec.queue", "must be agent or acp")
    _check_policy(policy)
    if policy.mode and not child:
        mode = QueueMode(policy.mode)
    _check_spec(spec)
    stored = run_pb2.Run(spec=spec)
    said = body_hash(
        lease_id(item.parent_lease_id)[0] if child else spec.session_key, spec.queue, item.message
    )
    entry = stored.inputs.add(
        request_id=item.request_id, body_hash=said, message=item.message, trace=item.trace
    )
    entry.create_time.FromMicroseconds(now)
    entry.message.create_time.FromMicroseconds(now)
    stored.trace.CopyFrom(item.trace)
    lane = "acp" if spec.queue == "acp" else "subagent" if child else "main"
    return NewRun(
        trace=item.trace.traceparent,
        run_id=new_ulid(),
        request_id=item.request_id,
        body_hash=said,
        session_key=spec.session_key,
        customer_key=spec.customer_key,
        queue=spec.queue,
        lane=spec.global_lane or lane,
        estimate_key=spec.estimate_key,
        label=spec.label,
        labels=dict(spec.labels),
        priority=spec.priority,
        queue_timeout=micros(spec.queue_timeout, "spec.queue_timeout") or defaults.queue_timeout,
        run_timeout=micros(spec.run_timeout, "spec.run_timeout") or defaults.run_timeout,
        wall_timeout=micros(spec.wall_timeout, "spec.wall_timeout"),
        retry=_retry(spec.retry_policy, defaults.retry),
        caps=_caps(spec.budget),
        delivers_later=spec.reply_route.delivers_later,
        preferred_worker=spec.preferred_worker,
        question_session_key="" if child else spec.question_session_key,
        lane_cap=policy.cap or defaults.lane_cap,
        drop_oldest=policy.overflow == lane_pb2.OVERFLOW_RULE_DROP_OLDEST,
        mode=mode,
        debounce=micros(policy.debounce, "queue_policy.debounce", most=5)
        if policy.HasField("debounce")
        else DEBOUNCE,
        spec=digest(spec) if mode is QueueMode.COLLECT else "",
        payload=stored.SerializeToString(),
        payload_input=entry.SerializeToString(),
        message=item.message.SerializeToString(),
    )


class NewRunDefaults:
    """What the configuration fills in."""

    def __init__(
        self, retry: RetryPolicy, *, queue_timeout: int, run_timeout: int, lane_cap: int
    ) -> None:
        self.retry = retry
        self.queue_timeout = queue_timeout
        self.run_timeout = run_timeout
        self.lane_cap = lane_cap


_MODES = frozenset(lane_pb2.QueueMode.values())
_RULES = frozenset(lane_pb2.OverflowRule.values())


def _check_policy(policy: lane_pb2.QueuePolicy) -> None:
    if policy.mode not in _MODES:
        raise invalid_field("queue_policy.mode", "must be FOLLOWUP, COLLECT, STEER or INTERRUPT")
    if policy.overflow not in _RULES:
        raise invalid_field("queue_policy.overflow", "must be REJECT or DROP_OLDEST")
    if not 0 <= policy.cap <= 1000:
        raise invalid_field("queue_policy.cap", "must be 1 to 1000, or 0 for the default")


def _check_spec(spec: run_pb2.RunSpec) -> None:
    text(spec.preferred_worker, "spec.preferred_worker", 64, required=False)
    text(spec.customer_key, "spec.customer_key", 128, required=False)
    text(spec.global_lane, "spec.global_lane", 64, required=False)
    text(spec.question_session_key, "spec.question_session_key", 256, required=False)
    size(spec.task, "spec.task", 64 * KIB)
    size(spec.reply_route.address.encode(), "spec.reply_route.address", KIB)
    if len(spec.estimate_key) > 128:
        raise invalid_field("spec.estimate_key", "must be at most 128 characters")
    if len(spec.label) > 64:
        raise invalid_field("spec.label", "must be at most 64 characters")
    if not -3600 <= spec.priority <= 3600:
        raise invalid_field("spec.priority", "must be -3600 to 3600 seconds")
    if len(spec.labels) > 16:
        raise invalid_field("spec.labels", "must be at most 16")
    for key, value in spec.labels.items():
        if not key or len(key) > 64 or len(value) > 64:
            raise invalid_field("spec.labels", "keys and values must be at most 64 characters")


def _retry(policy: run_pb2.RetryPolicy, default: RetryPolicy) -> RetryPolicy:
    if not 0 <= policy.max_attempts <= 10:
        raise invalid_field("spec.retry_policy.max_attempts", "must be 1 to 10, or 0")
    if policy.backoff_multiplier and not 1.0 <= policy.backoff_multiplier <= 100.0:
        raise invalid_field("spec.retry_policy.backoff_multiplier", "must be 1 to 100, or 0")
    where = "spec.retry_policy"
    return RetryPolicy(
        max_attempts=policy.max_attempts or default.max_attempts,
        initial_backoff=micros(policy.initial_backoff, f"{where}.initial_backoff")
        if policy.HasField("initial_backoff")
        else default.initial_backoff,
        max_backoff=micros(policy.max_backoff, f"{where}.max_backoff")
        if policy.HasField("max_backoff")
        else default.max_backoff,
        multiplier=policy.backoff_multiplier or default.multiplier,
    )


def _caps(budget: run_pb2.Budget) -> Caps:
    def cap(name: str, most: int = 1_000_000) -> int | None:
        if not budget.HasField(name):  # type: ignore[arg-type]
            return None
        value: int = getattr(budget, name)
        if not 0 <= value <= most:
            raise invalid_field(f"spec.budget.{name}", f"must be 0 to {most:,}")
        return value

    wall = None
    if budget.HasField("max_wall_time"):
        wall = micros(budget.max_wall_time, "spec.budget.max_wall_time")
        if not wall:
            raise invalid_field("spec.budget.max_wall_time", "must be above 0, or unset")
    reserve = budget.reply_reserve if budget.HasField("reply_reserve") else None
    if reserve is not None and not 0 <= reserve <= 0.5:
        raise invalid_field("spec.budget.reply_reserve", "must be 0 to 0.5")
    return Caps(
        max_depth=cap("max_depth"),
        max_children=cap("max_children"),
        max_descendants=cap("max_descendants"),
        max_tokens=cap("max_tokens", MOST_SPENT),
        max_cost=cap("max_cost_micros_usd", MOST_SPENT),
        max_wall=wall,
        reply_reserve=reserve,
    )


def page_size(value: int, default: int, most: int) -> int:
    """The page size in force."""
    if value < 0:
        raise invalid_field("page_size", "must not be negative")
    return min(value or default, most)
