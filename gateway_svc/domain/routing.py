"""Turns an inbound message into the run that the scheduler is asked for.

Everything that configuration decides about a message is decided here: the session, the agent that
answers, the customer, the queue policy, and the caps of the spawn tree. What a bound conversation
says goes to its ACP session, in the same lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from google.protobuf import any_pb2, duration_pb2

from conveyor.agent.v1 import task_pb2
from conveyor.common.v1 import content_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from gateway_svc.domain.binding import AcpRules, Bound, Notice, acp_spec
from gateway_svc.domain.keys import SessionKey, default_customer, own_key, parse_key
from gateway_svc.domain.principals import Principal
from gateway_svc.domain.reply_route import ReplyAddress, encode_address
from svckit.errors import AgentNotFound, InvalidField, PayloadTooLarge, invalid_field

MAX_PARTS = 32
MAX_TEXT_BYTES = 256 * 1024
MAX_BLOB_BYTES = 1024 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024
MAX_REQUEST_ID = 128
MAX_MESSAGE_ID = 64
MAX_LABELS = 16
MAX_LABEL_LENGTH = 64
MAX_PRIORITY = 3600
MAX_ESTIMATE_KEY = 128
_RUN_ID_LENGTH = 26
_COUNTED_CAPS: tuple[
    Literal["max_depth", "max_children", "max_descendants", "max_tokens", "max_cost_micros_usd"],
    ...,
] = ("max_depth", "max_children", "max_descendants", "max_tokens", "max_cost_micros_usd")


@dataclass(frozen=True, slots=True)
class AgentRules:
    """What the configuration says about one agent, as far as it concerns its messages.

    `caps` holds the configured caps of a spawn tree; unset fields cap nothing. `model` is what its
    turns are compared with when times are estimated.
    """

    queue_mode: lane_pb2.QueueMode.ValueType = lane_pb2.QUEUE_MODE_FOLLOWUP
    caps: run_pb2.Budget = field(default_factory=run_pb2.Budget)
    model: str = ""


@dataclass(frozen=True, slots=True)
class ChannelRules:
    """What the configuration says about one channel. Unset fields leave it to the agent."""

    agent_id: str = ""
    queue_mode: lane_pb2.QueueMode.ValueType | None = None


@dataclass(frozen=True, slots=True)
class RouteRule:
    """Which agent answers a peer. Empty fields match anything; the first match counts.

    `account` is the account of the channel that was written to, for example one of several bots.
    """

    agent_id: str
    channel: str = ""
    account: str = ""
    peer: str = ""

    def matches(self, address: ReplyAddress) -> bool:
        """True when the rule speaks about this peer."""
        return (
            self.channel in ("", address.channel)
            and self.account in ("", address.account)
            and self.peer in ("", address.peer)
        )


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """What the configuration says about messages. `holders` are those who have a token."""

    agents: Mapping[str, AgentRules]
    default_agent: str = "main"
    routes: Sequence[RouteRule] = ()
    channels: Mapping[str, ChannelRules] = field(default_factory=dict)
    lane_cap: int = 0
    debounce_ms: int = 0
    overflow: lane_pb2.OverflowRule.ValueType = lane_pb2.OVERFLOW_RULE_UNSPECIFIED
    acp: AcpRules = field(default_factory=AcpRules)
    holders: Sequence[Principal] = ()


@dataclass(frozen=True, slots=True)
class KnownSession:
    """What is remembered of a session that exists: it keeps its agent and its customer.

    `queue_mode` is what its messages do when it is busy; unspecified means as configured. `model`
    is the one that was chosen for it; empty means the agent's. `bound` is the ACP session that
    answers it instead of the agent, `notice` what its customer is told with the next answer, and
    `trace` the `traceparent` of its last message.
    """

    agent_id: str
    customer_key: str
    epoch: int
    queue_mode: lane_pb2.QueueMode.ValueType = lane_pb2.QUEUE_MODE_UNSPECIFIED
    model: str = ""
    bound: Bound | None = None
    notice: Notice | None = None
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Routed:
    """A message with everything decided that the scheduler needs to know.

    `notice` is what its run tells the customer first, `previous_trace` the `traceparent` of the
    message before it.
    """

    key: SessionKey
    agent_id: str
    customer_key: str
    message: content_pb2.Message
    spec: run_pb2.RunSpec
    policy: lane_pb2.QueuePolicy
    notice: Notice | None = None
    previous_trace: str = ""


def choose_session(
    inbound: gw.InboundMessage, *, sender: ReplyAddress, rules: RoutingRules, field_name: str
) -> SessionKey:
    """Return the session that a message goes to; raises `InvalidField` for a child's session.

    Without a session key it is `sender`'s own, with the agent that the routes name.
    """
    if not inbound.session_key:
        agent_id = inbound.agent_id or agent_by_route(sender, rules)
        own = own_key(agent_id, sender.peer, sender.channel, sender.account)
        return parse_key(own, field_name)
    key = parse_key(inbound.session_key, field_name)
    if not key.is_conversation:
        raise invalid_field(
            field_name, "names the session of a child run or a harness; steer its run instead"
        )
    return key


def route(
    inbound: gw.InboundMessage,
    *,
    request_id: str,
    key: SessionKey,
    known: KnownSession | None,
    rules: RoutingRules,
    address: ReplyAddress,
    caller_customer: str = "",
) -> Routed:
    """Decide about a message. `known` is `None` for the first message of a session.

    `caller_customer` is the customer of the caller's token, empty when it has none.

    Raises `InvalidField`, `PayloadTooLarge` or `AgentNotFound`.
    """
    check_request_id(request_id)
    _check_labels(inbound.labels)
    if inbound.queue_mode not in lane_pb2.QueueMode.values():
        raise invalid_field(
            "inbound.queue_mode", "must be FOLLOWUP, COLLECT, STEER, INTERRUPT or unset"
        )
    if not -MAX_PRIORITY <= inbound.priority <= MAX_PRIORITY:
        raise invalid_field("inbound.priority", f"must be within ±{MAX_PRIORITY}")
    message = checked_message(inbound.message, request_id=request_id, field_name="inbound.message")
    if known is None:
        writer = ReplyAddress(key.channel, key.peer, account=address.account)
        agent_id = inbound.agent_id or key.agent_id or agent_by_route(writer, rules)
        customer = inbound.customer_key or caller_customer or default_customer(key)
    else:
        agent_id, customer = known.agent_id, known.customer_key
    if not 1 <= len(customer) <= 128 or not customer.isprintable():
        raise invalid_field("inbound.customer_key", "must have 1 to 128 printable characters")
    agent = rules.agents.get(agent_id)
    if agent is None:
        raise AgentNotFound(f"no agent is called {agent_id!r}", metadata={"agentId": agent_id})
    if known is not None and known.bound is not None:
        spec = acp_spec(
            known.bound, rules.acp, session_key=key.text, customer_key=customer, address=address
        )
    else:
        spec = _agent_spec(agent_id, agent, known)
        spec.session_key, spec.customer_key = key.text, customer
        spec.reply_route.address, spec.reply_route.delivers_later = encode_address(address), True
    spec.session_epoch = known.epoch if known else 0
    spec.priority = inbound.priority
    spec.budget.CopyFrom(lowered(inbound.budget, agent.caps))
    spec.labels.update(inbound.labels)
    mode = (
        inbound.queue_mode
        or (known.queue_mode if known else lane_pb2.QUEUE_MODE_UNSPECIFIED)
        or queue_mode_of(key, agent_id, rules)
    )
    notice = known.notice if known is not None and known.bound is None else None
    previous = known.trace if known is not None else ""
    policy = policy_of(mode, rules)
    return Routed(key, agent_id, customer, message, spec, policy, notice, previous)


def _agent_spec(agent_id: str, agent: AgentRules, known: KnownSession | None) -> run_pb2.RunSpec:
    model = known.model if known else ""
    task = task_pb2.AgentTask(agent_id=agent_id, model=model)
    if known is not None and known.notice is not None:
        task.notice.notice_id, task.notice.text = known.notice.notice_id, known.notice.text
    packed = any_pb2.Any()
    packed.Pack(task)
    return run_pb2.RunSpec(
        queue="agent",
        task=packed,
        estimate_key=f"{agent_id}/{model or agent.model}"[:MAX_ESTIMATE_KEY],
    )


def policy_of(mode: lane_pb2.QueueMode.ValueType, rules: RoutingRules) -> lane_pb2.QueuePolicy:
    """Return how messages enter their lane in this queue mode."""
    policy = lane_pb2.QueuePolicy(mode=mode, cap=rules.lane_cap, overflow=rules.overflow)
    # Also when it is none: left out it would be what the scheduler takes by default.
    policy.debounce.CopyFrom(_milliseconds(rules.debounce_ms))
    return policy


def agent_by_route(sender: ReplyAddress, rules: RoutingRules) -> str:
    """Return the agent that answers somebody whose session key and message name none."""
    for rule in rules.routes:
        if rule.matches(sender):
            return rule.agent_id
    channel = rules.channels.get(sender.channel)
    return (channel.agent_id if channel else "") or rules.default_agent


def queue_mode_of(
    key: SessionKey, agent_id: str, rules: RoutingRules
) -> lane_pb2.QueueMode.ValueType:
    """Return what a message does by configuration when its session is busy."""
    channel = rules.channels.get(key.channel)
    if channel is not None and channel.queue_mode is not None:
        return channel.queue_mode
    agent = rules.agents.get(agent_id)
    return agent.queue_mode if agent else lane_pb2.QUEUE_MODE_FOLLOWUP


def checked_message(
    message: content_pb2.Message, *, request_id: str, field_name: str
) -> content_pb2.Message:
    """Return a copy that may enter the suite: checked, and with an id.

    The id of a message without one follows from the request id, so that a repeated call says the
    same thing to the byte. Raises `InvalidField` or `PayloadTooLarge`.
    """
    if message.role != content_pb2.ROLE_USER:
        raise invalid_field(f"{field_name}.role", "must be ROLE_USER")
    if not 1 <= len(message.parts) <= MAX_PARTS:
        raise invalid_field(f"{field_name}.parts", f"must have 1 to {MAX_PARTS} parts")
    total = 0
    for index, part in enumerate(message.parts):
        total += _check_part(part, f"{field_name}.parts[{index}]")
    if total > MAX_MESSAGE_BYTES:
        raise too_large(f"{field_name}.parts", total, MAX_MESSAGE_BYTES)
    # Vendors refuse a blank message, and would again in every later turn that reads it.
    if all(part.HasField("text") and not part.text.strip() for part in message.parts):
        raise invalid_field(f"{field_name}.parts", "must say something: the text is blank")
    copy = content_pb2.Message()
    copy.CopyFrom(message)
    copy.ClearField("create_time")
    if len(copy.message_id) > MAX_MESSAGE_ID:
        raise invalid_field(
            f"{field_name}.message_id", f"has more than {MAX_MESSAGE_ID} characters"
        )
    if not copy.message_id:
        copy.message_id = message_id_for(request_id)
    return copy


def message_id_for(request_id: str) -> str:
    """Return the id of the message that came with `request_id`."""
    prefix = "in-"
    if len(request_id) + len(prefix) <= MAX_MESSAGE_ID:
        return prefix + request_id
    # Long request ids are told apart at either end, depending on who makes them.
    return f"{prefix}{request_id[:28]}.{request_id[-28:]}"


def check_request_id(request_id: str, field_name: str = "request_id") -> None:
    """Refuse what can be no idempotency key of a client."""
    printable = request_id.isprintable() and " " not in request_id
    if not 1 <= len(request_id) <= MAX_REQUEST_ID or not printable:
        raise invalid_field(
            field_name, f"must be 1 to {MAX_REQUEST_ID} printable characters without spaces"
        )
    # `<run id>/<tool call id>` belongs to child runs: who could take such an id in advance would
    # keep another run from spawning.
    head, slash, _ = request_id.partition("/")
    if slash and len(head) == _RUN_ID_LENGTH and head.isalnum():
        raise invalid_field(field_name, "must not look like the id of a child run")


def lowered(asked: run_pb2.Budget, configured: run_pb2.Budget) -> run_pb2.Budget:
    """Return the asked caps, none above its configured one; what was not asked is as configured."""
    budget = run_pb2.Budget()
    budget.CopyFrom(configured)
    for name in _COUNTED_CAPS:
        if not asked.HasField(name):
            continue
        value = getattr(asked, name)
        if value < 0:
            raise invalid_field(f"inbound.budget.{name}", "must not be negative")
        if not configured.HasField(name) or value < getattr(configured, name):
            setattr(budget, name, value)
    if asked.HasField("max_wall_time"):
        capped = configured.HasField("max_wall_time")
        if not capped or _seconds(asked.max_wall_time) < _seconds(configured.max_wall_time):
            budget.max_wall_time.CopyFrom(asked.max_wall_time)
    if asked.HasField("reply_reserve"):
        budget.reply_reserve = asked.reply_reserve
    return budget


def too_large(field_name: str, size: int, limit: int) -> PayloadTooLarge:
    """Return the error for something of `size` bytes where `limit` are allowed."""
    return PayloadTooLarge(
        f"{field_name} has {size} bytes; at most {limit} are allowed",
        metadata={"field": field_name, "bytes": str(size), "maxBytes": str(limit)},
    )


def _check_part(part: content_pb2.ContentPart, field_name: str) -> int:
    kind = part.WhichOneof("part")
    if kind == "text":
        size = len(part.text.encode())
        if size > MAX_TEXT_BYTES:
            raise too_large(f"{field_name}.text", size, MAX_TEXT_BYTES)
        return size
    if kind == "blob":
        if not part.blob.media_type:
            raise invalid_field(f"{field_name}.blob.media_type", "is required")
        if len(part.blob.data) > MAX_BLOB_BYTES:
            raise too_large(f"{field_name}.blob.data", len(part.blob.data), MAX_BLOB_BYTES)
        return len(part.blob.data)
    if kind == "resource":
        if ":" not in part.resource.uri:
            raise invalid_field(f"{field_name}.resource.uri", "must be an absolute URI")
        return len(part.resource.uri.encode())
    raise _empty_part(field_name)


def _empty_part(field_name: str) -> InvalidField:
    return invalid_field(field_name, "must hold text, a blob or a resource")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        raise invalid_field("inbound.labels", f"has more than {MAX_LABELS} entries")
    for name, value in labels.items():
        if not 1 <= len(name) <= MAX_LABEL_LENGTH or len(value) > MAX_LABEL_LENGTH:
            raise invalid_field(
                "inbound.labels", f"has a key or a value of more than {MAX_LABEL_LENGTH} characters"
            )


def _milliseconds(value: int) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=value // 1000, nanos=value % 1000 * 1_000_000)


def _seconds(value: duration_pb2.Duration) -> float:
    return value.seconds + value.nanos / 1e9
